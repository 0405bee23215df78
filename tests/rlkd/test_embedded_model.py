"""The embedded model itself: fetched, converted, and put to work in the engine, the decomposer and the judge."""

import json
from pathlib import Path

import pytest

from rlkd.data.samples import sample_rows
from rlkd.engines import Completion, EngineError, Sampling, open_engine, run
from rlkd.models import ModelUnavailable, embedded_model, verify_model
from tests.helpers.rewards import build_reward

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        return embedded_model()
    except ModelUnavailable as error:
        pytest.skip(f"the embedded model cannot be fetched here: {error}")


def test_the_converted_files_are_those_of_the_manifest(folder: Path) -> None:
    verify_model("embedded")
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(
        json.loads((folder / "manifest.json").read_text())["files"]
    )


def test_padding_is_not_the_end_token(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is True


def test_it_answers_a_question_and_ends_its_answer(folder: Path) -> None:
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    (answer,) = run(open_engine("transformers:embedded").generate([chat], Sampling(max_new_tokens=24)))
    assert isinstance(answer, Completion)
    assert "Paris" in answer.text
    assert answer.finish_reason == "stop"


def test_the_structure_reward_works_with_a_model_that_decomposes_and_judges(folder: Path, tmp_path: Path) -> None:
    row = sample_rows("rl")[0]
    parameters = {
        "decomposer": "prompted",
        "judge": "model",
        "engine": "transformers:embedded",
        "max_new_tokens": 96,
        "store": str(tmp_path / "structures.sqlite"),
    }
    reward = build_reward("structure", parameters)
    scores = run(
        reward(
            prompts=[row["question"]] * 2,
            completions=[row["rationales"][0], ""],
            rationales=[row["rationales"]] * 2,
            structures=[row["structures"]] * 2,
        )
    )
    copied, empty = reward.outcomes
    # So small a model may give nothing usable: then the reward has failed, which is no score of 0.
    assert copied.status in ("score", "failed")
    assert (copied.status == "score") == (scores[0] is not None)
    assert (empty.status, scores[1]) == ("score", 0.0)
    if copied.status == "score":
        assert copied.detail["teacher"] == row["structures"][0]


def test_the_same_words_are_judged_the_same(folder: Path) -> None:
    engine = open_engine("transformers:embedded")
    prompts = [[{"role": "user", "content": "Is 2 + 2 equal to 4? Answer with Yes or No."}]]
    (first,) = run(engine.choose(prompts, ("Yes", "No")))
    (again,) = run(engine.choose(prompts, ("Yes", "No")))
    assert not isinstance(first, EngineError)
    assert first == again
    assert all(value < 0 for value in first)
