"""Arguments of `rlkd evaluate`: mistakes that would give other figures than the ones asked for are refused."""

import json

import pytest

from rlkd.errors import UsageError
from trainers.common.evaluate_arguments import parse


def test_the_argument_that_is_unknown_is_named_and_not_an_alias_before_it() -> None:
    for arguments, name in (
        (["--samples", "4", "--tempratur", "1"], "tempratur"),
        (["--dataset-name", "gsm8k", "--sampels=3"], "sampels"),
        (["comapre", "a", "b"], "comapre"),
    ):
        with pytest.raises(UsageError, match=f"no argument '{name}'"):
            parse(arguments)


def test_samples_at_temperature_0_are_refused() -> None:
    with pytest.raises(UsageError, match="eval_samples 4 at temperature 0: all would be the greedy completion"):
        parse(["--samples", "4", "--temperature", "0"])
    assert parse(["--temperature", "0"]).temperature == 0


def test_a_training_that_skips_its_evaluation_does_not_mean_all_rows(tmp_path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps({"dataset_name": "mawps-sample", "eval_rows": 0}))
    with pytest.raises(UsageError, match="eval_rows 0: expected at least 1"):
        parse(["--config", str(config)])


def test_the_configuration_of_a_hub_dataset_is_that_of_training_rows_of_the_same_dataset(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(
        "trainers.common.evaluate_arguments.load_rows", lambda source, **options: asked.append((source, options)) or []
    )
    for tests in ("gsm8k", "openai/gsm8k", "some/other"):
        parse(
            ["--check_contamination", "openai/gsm8k", "--dataset_config", "main", "--dataset_name", tests]
        ).train_rows()
    assert [(source, options["config"]) for source, options in asked] == [
        ("openai/gsm8k", "main"),
        ("openai/gsm8k", "main"),
        ("openai/gsm8k", None),
    ]


def test_another_revision_of_the_hub_is_refused_and_a_folder_has_none(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"model_revision v2: .*hf download some/model --revision v2"):
        parse(["--model_name_or_path", "some/model", "--model_revision", "v2"]).open_engine()
    parse(["--model_name_or_path", str(tmp_path), "--model_revision", "v2"]).open_engine()
    parse(["--model_name_or_path", "some/model", "--model_revision", "main"]).open_engine()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "x#y"], "without samples there is no rate"),
        (["--engine", "x#y", "--samples", "4", "--metrics", "tag_count"], "add accuracy to metrics"),
        (["--samples", "4"], "no model to measure"),
        (["--engine", "x#y", "--samples", "4", "--check_contamination", "a.jsonl"], "Run them apart"),
    ],
)
def test_pass_rates_without_what_they_need_are_refused(arguments, message) -> None:
    with pytest.raises(UsageError, match=message):
        parse(["--dataset_name", "mawps-sample", "--pass_rates", "rows.jsonl", *arguments])
