"""The commands of a study: every stage of every run as the words of a command line."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkd.errors import UsageError
from rlkd.registry import suggestion
from rlkd.study.definition import SHARED, Stage, Study, recipe_path

Options = Mapping[str, frozenset[str]]
"""The keys that each recipe takes."""


@dataclass(frozen=True)
class StageCommand:
    """A command, and the folder that it writes to."""

    folder: Path
    words: Sequence[str]

    @property
    def done(self) -> Path:
        """The file that says that the stage has ended well."""
        return self.folder / "done"


@dataclass(frozen=True)
class PlannedRun:
    """The commands of an arm with a seed, or of the shared stages; `needs` must be done before."""

    name: str
    folder: Path
    commands: Sequence[StageCommand]
    needs: PlannedRun | None = None

    def is_done(self) -> bool:
        """Whether all its stages are."""
        return all(command.done.exists() for command in self.commands)


def plan(study: Study, out: Path, arms: Sequence[str], seeds: Sequence[int], options: Options) -> list[PlannedRun]:
    """The runs in their order: seed by seed, so that an interrupted study has whole seeds.

    Raises `UsageError` for a key that its recipe does not take.
    """
    check_keys(study, options)
    runs: list[PlannedRun] = []
    for seed in seeds:
        shared = out / f"{SHARED}-{seed}"
        first = None
        if study.shared:
            first = PlannedRun(shared.name, shared, _commands(study.shared, shared, shared, seed, options))
            runs.append(first)
        for arm in arms:
            folder = out / f"{arm}-{seed}"
            commands = _commands(study.arms[arm], folder, shared, seed, options, study.words)
            runs.append(PlannedRun(folder.name, folder, commands, first))
    return runs


def check_keys(study: Study, options: Options) -> None:
    """Raise `UsageError` for a key of a stage, or a word behind `--`, that the recipe does not take."""
    words = [word[2:].partition("=")[0].replace("-", "_") for word in study.words if word.startswith("--")]
    for arm, stages in {SHARED: study.shared, **study.arms}.items():
        for stage in stages:
            of_run = words if arm != SHARED and stage is stages[-1] else []
            # A key without a value is not handed over: so an arm drops a setting that its own recipe does not take.
            given = [key for key, value in stage.keys.items() if value is not None]
            for key in (*given, *of_run):
                if key not in options[stage.recipe]:
                    hint = suggestion(key, options[stage.recipe]).split(" Known:")[0]
                    place = "behind --" if key in of_run else SHARED if arm == SHARED else f"arms: {arm}"
                    raise UsageError(
                        f"{study.name}: {place}: {key!r} is no key of the recipe {stage.recipe}.{hint} "
                        f"rlkd run {stage.recipe} --help lists them."
                    )


def _commands(
    stages: Sequence[Stage], run: Path, shared: Path, seed: int, options: Options, words: Sequence[str] = ()
) -> list[StageCommand]:
    """The last stage writes to the folder of the run, an earlier one to a folder of its own in there."""
    made = []
    for stage in stages:
        folder = run if stage is stages[-1] else run / stage.name
        takes = options[stage.recipe]
        keys = {"output_dir": str(folder), "seed": seed}
        command = [sys.executable, str(recipe_path(stage.recipe))]
        command += ["--config", stage.config] if stage.config else []
        command += key_words({key: value for key, value in keys.items() if key in takes} | dict(stage.keys))
        # Not by `str.format`: JSON has braces, too.
        places = {"{run}": str(run), "{shared}": str(shared), "{seed}": str(seed)}
        command = [
            functools.reduce(lambda text, place: text.replace(*place), places.items(), word) for word in command
        ]
        command += words if stage is stages[-1] else []
        command += ["--resume_from_checkpoint"] if "resume_from_checkpoint" in takes else []
        made.append(StageCommand(folder, command))
    return made


def key_words(keys: Mapping[str, Any]) -> list[str]:
    """Keys as words of a command line: a list as several words, a mapping as JSON, nothing for None.

    >>> key_words({"max_steps": 2, "reward_funcs": ["accuracy", "structure"], "reward_kwargs": {}, "bf16": True})
    ['--max_steps', '2', '--reward_funcs', 'accuracy', 'structure', '--reward_kwargs', '{}', '--bf16', 'true']

    Raises `UsageError` for an empty list, which a command line cannot say.
    """
    found = []
    for key, value in keys.items():
        if value is None:
            continue
        if value == []:
            raise UsageError(
                f"{key}: [] cannot be handed over: a command line has no empty list. Take a config for it"
            )
        found += [f"--{key}", *(map(_word, value) if isinstance(value, list) else [_word(value)])]
    return found


def _word(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list | bool) else str(value)


def read_options(recipes: Sequence[str]) -> Options:
    """The keys of recipes, as their `--help` lists them; all at once, as each takes seconds.

    Raises `UsageError` where a recipe cannot say.
    """
    started = {
        recipe: subprocess.Popen(
            [sys.executable, str(recipe_path(recipe)), "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for recipe in recipes
    }
    found = {}
    for recipe, process in started.items():
        out, error = (stream.decode(errors="replace") for stream in process.communicate())
        found[recipe] = frozenset(re.findall(r"^ +--(\w+)", out, re.MULTILINE))
        if process.returncode or not found[recipe]:
            raise UsageError(f"the recipe {recipe} does not list its keys (--help): {error[-1000:]}")
    return found
