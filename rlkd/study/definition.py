"""The file of a study: read, checked, resolved.

    title: RLKD against its controls
    question: Does the structure reward save rollouts?
    recipe: rlkd                       # of `rlkd run`, or a file
    config: my_config.yaml             # beside the recipe, else beside this file; default: the recipe's own
    settings: {eval_samples: 4}        # keys of the recipe, for all runs
    arms:
      accuracy: {reward_funcs: [accuracy], reward_weights: [1.0], reward_kwargs: {}}
      structure: {}
    control: accuracy                  # the arm whose gain sets the goal, and which the others are compared with
    comparisons: {structure: accuracy} # arm -> another one, or several; default: each arm with the control
    seeds: [11, 23, 37]
    primary: [sampled_accuracy]        # figures, fixed before the first run
    smoke: {max_steps: 2}              # what --smoke changes

An arm is a mapping of the keys that differ, or a list of stages, each with `recipe`, `config`, `keys`, `smoke` and
`name`. The last stage is the one that is measured: it has recipe, config, settings and smoke of the study where it
does not name its own. `shared` is a list of stages that run once per seed, before the arms. In a text `{run}` is the
folder of the run, `{shared}` that of the shared stages, `{seed}` the seed. A key without a value is the config's.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rlkd.errors import UsageError
from rlkd.installation import recipes, studies
from rlkd.registry import suggestion

FIGURES = {
    "sampled_accuracy": "share of right sampled answers to the held-out rows, after the last step",
    "accuracy": "share of right greedy answers to the held-out rows, after the last step",
    "rollouts_to_goal": "rollouts until half of the control's mean gain is reached",
}
# Set by the runner.
RESERVED = ("output_dir", "resume_from_checkpoint")
SHARED = "shared"
_NEEDED = ("title", "question", "arms", "control", "seeds", "primary")
_KEYS = (*_NEEDED, "recipe", "config", "settings", "comparisons", "smoke", SHARED)
_STAGE_KEYS = ("name", "recipe", "config", "keys", "smoke")


@dataclass(frozen=True)
class Stage:
    """One recipe of a run. `base` is the content of its config, `keys` what the study changes in it."""

    name: str
    recipe: str
    config: str | None
    base: Mapping[str, Any]
    keys: Mapping[str, Any]

    def setting(self, key: str, default: Any = None) -> Any:
        """The value of a key of the recipe in this stage."""
        value = self.keys.get(key)
        return self.base.get(key, default) if value is None else value


@dataclass(frozen=True)
class Study:
    """A study, resolved: every stage of every arm with all its keys.

    `comparisons`: pairs of an arm and the one it is compared with. `words` go to the last stage of every run.
    """

    name: str
    title: str
    question: str
    arms: Mapping[str, Sequence[Stage]]
    control: str
    seeds: Sequence[int]
    primary: Sequence[str]
    comparisons: Sequence[Sequence[str]]
    shared: Sequence[Stage] = ()
    smoke: bool = False
    words: Sequence[str] = field(default=())

    def recipes(self) -> list[str]:
        """The recipes that it needs, each once."""
        stages = [*self.shared, *(stage for arm in self.arms.values() for stage in arm)]
        return list(dict.fromkeys(stage.recipe for stage in stages))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, from which `from_dict` makes an equal study."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Study:
        """The study of a `to_dict`."""
        arms = {arm: [Stage(**stage) for stage in stages] for arm, stages in values["arms"].items()}
        return cls(**{**values, "arms": arms, "shared": [Stage(**stage) for stage in values["shared"]]})


def find_study(name: str) -> Path:
    """The file of a study: by the name of an included one, or a path. Raises `UsageError` where there is none."""
    included = studies()
    if name in included:
        return included[name]
    if Path(name).suffix in (".yaml", ".yml"):
        return Path(name).expanduser()
    raise UsageError(
        f"no study {name!r}.{suggestion(name, included)} A study of your own: the path of its .yaml file."
    )


def read_study(path: Path, *, smoke: bool = False, words: Sequence[str] = ()) -> Study:
    """The study of a file. With `smoke`: its first two seeds, and its keys for a try.

    Raises `UsageError` naming the file, the key, the value and the way out.
    """
    return _StudyFile(path).study(smoke, list(words))


def recipe_path(recipe: str) -> Path:
    """The script of a recipe's name or path."""
    return recipes().get(recipe) or Path(recipe)


class _StudyFile:
    """The checks of one file; `fail` names it."""

    def __init__(self, path: Path):
        self.path = path
        self.content = self._load(path, "")

    def fail(self, problem: str) -> UsageError:
        return UsageError(f"{self.path}: {problem}")

    def study(self, smoke: bool, words: list[str]) -> Study:
        found = self.mapping(self.content, "the study", _KEYS)
        for key in _NEEDED:
            if not found.get(key):
                raise self.fail(f"there is no {key}. A study needs {', '.join(_NEEDED)}")
        last = {key: found.get(key) for key in ("recipe", "config", "smoke")}
        last["keys"] = self.mapping(found.get("settings"), "settings")
        arms = self.mapping(found["arms"], "arms")
        if len(arms) < 2:
            raise self.fail(f"arms: {', '.join(arms)} alone; a comparison needs at least 2")
        for arm in arms:
            if not isinstance(arm, str) or not re.fullmatch(r"\w[\w.-]*", arm) or arm == SHARED:
                raise self.fail(
                    f"arms: {arm!r} names a folder; take letters, digits, `_`, `-` and `.`, not `{SHARED}`"
                )
        if found["control"] not in arms:
            raise self.fail(f"control: {found['control']!r} is no arm.{suggestion(str(found['control']), arms)}")
        shared = self.stages(found.get("shared") or [], "shared", None, smoke)
        study = Study(
            name=self.path.stem,
            title=str(found["title"]),
            question=str(found["question"]),
            arms={arm: self.stages(given, f"arms: {arm}", last, smoke) for arm, given in arms.items()},
            control=found["control"],
            seeds=self.seeds(found["seeds"])[: 2 if smoke else None],
            primary=self.primary(found["primary"]),
            comparisons=self.comparisons(found.get("comparisons"), list(arms), found["control"]),
            shared=shared,
            smoke=smoke,
            words=words,
        )
        self.check_measured(study)
        return study

    def seeds(self, given: Any) -> list[int]:
        if not isinstance(given, list) or not all(type(seed) is int for seed in given) or len(set(given)) < 2:
            raise self.fail(
                f"seeds: {given!r}: expected a list of at least 2 numbers; one seed says nothing of others"
            )
        if len(set(given)) < len(given):
            raise self.fail(f"seeds: {given!r}: each must be another number")
        return given

    def comparisons(self, given: Any, arms: list[str], control: str) -> list[list[str]]:
        """Pairs of an arm and another one; each arm with the control where the file names none."""
        named = self.mapping(given, "comparisons", arms) or {arm: control for arm in arms if arm != control}
        pairs = [
            [arm, base] for arm, bases in named.items() for base in (bases if isinstance(bases, list) else [bases])
        ]
        for arm, base in pairs:
            if base not in arms or base == arm:
                raise self.fail(
                    f"comparisons: {arm} with {base!r}: expected another arm.{suggestion(str(base), arms)}"
                )
        return pairs

    def primary(self, given: Any) -> list[str]:
        for name in given if isinstance(given, list) else [given]:
            if name not in FIGURES:
                raise self.fail(f"primary: {name!r} is no figure.{suggestion(str(name), FIGURES)}")
        return list(dict.fromkeys(given if isinstance(given, list) else [given]))

    def check_measured(self, study: Study) -> None:
        """Whether every arm measures what the primary figures need."""
        needs = {"sampled_accuracy": "eval_samples", "rollouts_to_goal": "eval_every"}
        given = [word.removeprefix("--").partition("=")[0] for word in study.words]
        for arm, stages in study.arms.items():
            held_out = any(
                stages[-1].setting(key) or key in given for key in ("dataset_test_split", "dataset_test_name")
            )
            # A recipe of the user's own may evaluate by keys of its own.
            if stages[-1].recipe in recipes() and (not held_out or stages[-1].setting("eval_rows") == 0):
                raise self.fail(
                    f"arm {arm!r} evaluates no held-out rows: add dataset_test_name (or dataset_test_split) and "
                    f"eval_rows to settings"
                )
            for figure, key in needs.items():
                if figure in study.primary and not stages[-1].setting(key) and key not in given:
                    raise self.fail(
                        f"primary: {figure} needs {key} above 0, and arm {arm!r} has none: add it to settings"
                    )

    def stages(self, given: Any, place: str, last: Mapping[str, Any] | None, smoke: bool) -> list[Stage]:
        """The stages of an arm, whose last one falls back to `last`; an arm may be the keys of a single stage."""
        if not isinstance(given, list):
            given = [{"keys": self.mapping(given, place)}]
        elif not given and last is not None:
            raise self.fail(f"{place}: a list without a stage")
        made: list[Stage] = []
        for number, entry in enumerate(given, start=1):
            here = place if len(given) == 1 else f"{place}, stage {number}"
            made.append(self.stage(entry, here, last if number == len(given) else None, smoke))
        names = [stage.name for stage in made]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise self.fail(f"{place}: two stages called {twice!r} would share a folder; give one another `name`")
        return made

    def stage(self, given: Any, place: str, last: Mapping[str, Any] | None, smoke: bool) -> Stage:
        own = self.mapping(given, place, _STAGE_KEYS)
        common = last or {}
        recipe = own.get("recipe") or common.get("recipe")
        if not recipe:
            raise self.fail(f"{place}: no recipe.{suggestion('', recipes())}")
        recipe = self.recipe(str(recipe), place)
        config = own.get("config")
        if config is None and "recipe" not in own:
            config = common.get("config")
        base, config = self.config(config, recipe, place)
        keys = {**common.get("keys", {}), **self.mapping(own.get("keys"), place)}
        if smoke:
            keys |= self.mapping(common.get("smoke"), "smoke") | self.mapping(own.get("smoke"), f"{place}, smoke")
        for key in RESERVED:
            if key in keys:
                raise self.fail(f"{place}: {key} is set by the study; take it out")
        return Stage(str(own.get("name") or Path(recipe).stem), recipe, config, base, keys)

    def recipe(self, name: str, place: str) -> str:
        """The name of an included recipe, or the path of a file of the user's."""
        known = recipes()
        if name.removesuffix(".py") in known:
            return name.removesuffix(".py")
        for folder in (self.path.parent, Path()):
            if name.endswith(".py") and (folder / name).is_file():
                return str((folder / name).resolve())
        raise self.fail(f"{place}: no recipe {name!r}.{suggestion(name, known)}")

    def config(self, name: Any, recipe: str, place: str) -> tuple[dict[str, Any], str | None]:
        """The content and the path of a config; by default that of the recipe, if it has one."""
        script = recipe_path(recipe)
        if name is None:
            own = script.with_suffix(".yaml")
            return (self._load(own, place), str(own)) if own.is_file() else ({}, None)
        for folder in (script.parent, self.path.parent, Path()):
            if (folder / str(name)).is_file():
                path = (folder / str(name)).resolve()
                return self._load(path, place), str(path)
        raise self.fail(f"{place}: there is no config {name!r}, neither beside the recipe nor beside this file")

    def mapping(self, given: Any, place: str, known: Collection[str] = ()) -> dict[str, Any]:
        """`given`, which must be a mapping, with known keys only; empty for None."""
        if given is None:
            return {}
        if not isinstance(given, dict):
            raise self.fail(f"{place}: expected keys with values, found {given!r}")
        for key in given:
            if known and key not in known:
                raise self.fail(f"{place}: unknown key {key!r}.{suggestion(str(key), known)}")
        return given

    def _load(self, path: Path, place: str) -> dict[str, Any]:
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{self.path}: {place}{': ' if place else ''}{error.strerror} ({path})") from error
        except yaml.YAMLError as error:
            raise UsageError(f"{path} is not YAML: {error}") from error
        return content if isinstance(content, dict) else self.mapping(content, str(path))
