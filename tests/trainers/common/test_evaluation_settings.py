"""Settings of an evaluation from a training's config and from a run's own record."""

import json

import pytest

from rlkd.errors import UsageError
from tests.helpers import ROOT
from trainers.common.evaluation_settings import RECORD, settings_of_config, settings_of_run

KNOWN = {"dataset_name", "eval_rows", "temperature", "metrics"}
TRAININGS = [p for p in sorted((ROOT / "recipes").glob("*.yaml")) if p.stem.startswith(("rlkd", "sft", "validity"))]


@pytest.mark.parametrize("path", TRAININGS, ids=lambda path: path.stem)
def test_the_config_of_every_training_recipe_can_be_read(path) -> None:
    found = settings_of_config(path, KNOWN)
    assert "dataset_name" in found
    assert found.keys() <= KNOWN


def test_a_key_of_no_recipe_is_refused_with_the_likely_one(tmp_path) -> None:
    path = tmp_path / "eval.yaml"
    path.write_text("dataset_name: rows.jsonl\nlearning_rate: 1.0e-5\nevalrows: 3\n")
    with pytest.raises(UsageError, match=r"eval\.yaml: no key 'evalrows'. Did you mean 'eval_rows'\?"):
        settings_of_config(path, KNOWN)


@pytest.mark.parametrize(
    ("text", "message"), [("[1, 2]", "found list"), ("a: [", "is not YAML"), (None, "No such file")]
)
def test_a_file_that_is_no_config_is_named(tmp_path, text, message) -> None:
    path = tmp_path / "eval.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=message):
        settings_of_config(path, KNOWN)


def test_a_run_gives_its_model_and_what_it_recorded(tmp_path) -> None:
    with pytest.raises(UsageError, match="there is no such folder"):
        settings_of_run(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"saved no model yet.*checkpoint-N"):
        settings_of_run(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"no readable evaluation\.json.*--dataset_name"):
        settings_of_run(tmp_path)
    (tmp_path / RECORD).write_text(json.dumps({"dataset_name": "mawps-sample", "eval_rows": 3}))
    assert settings_of_run(tmp_path) == {
        "dataset_name": "mawps-sample",
        "eval_rows": 3,
        "model_name_or_path": str(tmp_path),
    }
