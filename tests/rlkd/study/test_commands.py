import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from rlkd.errors import UsageError
from rlkd.study.commands import key_words, plan, read_options
from rlkd.study.definition import read_study

OPTIONS = {
    "sft": frozenset({"output_dir", "seed", "max_steps", "dataset_name", "eval_samples", "resume_from_checkpoint"}),
    "rationales": frozenset({"output_dir", "seed", "writers", "selector_kwargs", "dataset_name"}),
}
STUDY = {
    "title": "t",
    "question": "q",
    "recipe": "sft",
    "settings": {"eval_samples": 2},
    "shared": [{"recipe": "rationales", "keys": {"writers": ["free", "bank"]}}],
    "arms": {
        "all": {"dataset_name": "{shared}/rationales.jsonl"},
        "selected": [
            {
                "recipe": "rationales",
                "name": "selected",
                "keys": {"writers": ["ready"], "seed": 5, "dataset_name": "{shared}/rationales.jsonl"},
            },
            {"keys": {"dataset_name": "{run}/selected/rationales.jsonl", "max_steps": None}},
        ],
    },
    "control": "all",
    "seeds": [11, 23],
    "primary": ["sampled_accuracy"],
}


@pytest.fixture
def study(tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    return read_study(tmp_path / "mine.yaml", words=["--max_steps", "9"])


def test_runs_come_seed_by_seed_and_wait_for_what_they_share(study) -> None:
    runs = plan(study, Path("out"), ["all", "selected"], [11, 23], OPTIONS)
    assert [run.name for run in runs] == [
        f"{arm}-{seed}" for seed in (11, 23) for arm in ("shared", "all", "selected")
    ]
    assert [run.needs and run.needs.name for run in runs[3:]] == [None, "shared-23", "shared-23"]


def test_a_stage_writes_to_its_folder_and_names_those_of_others(study, root) -> None:
    shared, _, selected = plan(study, Path("out"), ["all", "selected"], [11], OPTIONS)
    (written,) = shared.commands
    assert written.folder == Path("out/shared-11")
    assert written.words == [
        *(sys.executable, str(root / "recipes/rationales.py"), "--config", str(root / "recipes/rationales.yaml")),
        *("--output_dir", "out/shared-11", "--seed", "11", "--writers", "free", "bank"),
    ]
    first, last = selected.commands
    assert (first.folder, last.folder) == (Path("out/selected-11/selected"), Path("out/selected-11"))
    assert "--seed 5" in " ".join(first.words)
    assert "--dataset_name out/shared-11/rationales.jsonl" in " ".join(first.words)
    assert "--resume_from_checkpoint" not in first.words
    assert "--max_steps" not in first.words
    assert last.words[-7:] == [
        *("--eval_samples", "2", "--dataset_name", "out/selected-11/selected/rationales.jsonl"),
        *("--max_steps", "9", "--resume_from_checkpoint"),
    ]


def test_a_key_that_the_recipe_does_not_take_is_named_before_the_first_run(study) -> None:
    options = OPTIONS | {"sft": OPTIONS["sft"] - {"eval_samples"} | {"eval_sample"}}
    with pytest.raises(
        UsageError, match=r"arms: all: 'eval_samples' is no key of the recipe sft\. Did you mean 'eval_sample'"
    ):
        plan(study, Path("out"), ["all"], [11], options)


def test_an_arm_drops_a_setting_that_its_recipe_does_not_take(study) -> None:
    (stage,) = study.arms["all"]
    dropped = replace(study, arms={"all": [replace(stage, keys={**stage.keys, "strange": None})]})
    (_, run) = plan(dropped, Path("out"), ["all"], [11], OPTIONS)
    assert "--strange" not in run.commands[0].words


def test_a_word_for_all_runs_that_a_recipe_does_not_take_is_named(study) -> None:
    with pytest.raises(
        UsageError, match=r"behind --: 'max_step' is no key of the recipe sft\. Did you mean 'max_steps'"
    ):
        plan(replace(study, words=["--max-step=3"]), Path("out"), ["all"], [11], OPTIONS)
    # They go to the last stage, and not to the recipes before it.
    assert plan(replace(study, words=["--max-steps", "-1"]), Path("out"), ["selected"], [11], OPTIONS)


def test_keys_become_words_of_a_command_line() -> None:
    keys = {"a": 3e-5, "b": [1, 2.5], "c": {"x": [True]}, "d": False, "e": None, "f": [{"y": 1}], "g": "two words"}
    assert key_words(keys) == [
        *("--a", "3e-05", "--b", "1", "2.5", "--c", '{"x": [true]}', "--d", "false", "--f", '{"y": 1}', "--g"),
        "two words",
    ]
    with pytest.raises(UsageError, match="no empty list"):
        key_words({"selectors": []})


def test_the_keys_of_a_recipe_are_read_from_its_help(tmp_path) -> None:
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "import argparse\np = argparse.ArgumentParser()\np.add_argument('--steps', help='--not this')\np.parse_args()"
    )
    assert read_options([str(recipe)]) == {str(recipe): {"steps"}}
    recipe.write_text("1 / 0")
    with pytest.raises(UsageError, match=r"(?s)does not list its keys \(--help\).*ZeroDivisionError"):
        read_options([str(recipe)])
