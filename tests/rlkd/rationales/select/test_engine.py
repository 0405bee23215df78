"""Rationales are measured behind the prompt that the student is trained with."""

import logging

import pytest
from transformers import AutoTokenizer

from benchmarks.tiny import byte_tokenizer, save_llama
from rlkd.data.rows import build_prompt
from rlkd.data.samples import few_shot_examples
from rlkd.engines.transformers import TransformersEngine
from rlkd.rationales.records import Question, candidate
from rlkd.rationales.select import load_selector
from rlkd.rationales.select.engine import TEMPLATE

QUESTION = Question("a", "2 and 3?", "5", (candidate("0", " 2 + 3 = 5\n#### 5 ", "ready"),))
STYLE = {"system_prompt": "Be short.", "examples": 1}


def trained_with(model: str, style: dict) -> str:
    """The prompt as the trainers render it."""
    messages = build_prompt(QUESTION.question, style.get("system_prompt"), few_shot_examples(style.get("examples", 0)))
    return AutoTokenizer.from_pretrained(model).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )


@pytest.mark.parametrize("style", [{}, {"system_prompt": "Be short."}, STYLE])
@pytest.mark.parametrize("name", ["difficulty", "srd", "rank_surprisal"])
def test_the_prompt_is_that_of_training(tiny_model, name, style) -> None:
    student = TransformersEngine(tiny_model, device="cpu")
    selector = load_selector(name, defaults={"student": student, "prompt_style": style})
    assert selector.prompt(QUESTION) == trained_with(tiny_model, style)


def test_rationale_and_answer_follow_it_as_a_reply_does(tiny_model) -> None:
    student = TransformersEngine(tiny_model, device="cpu")
    selector = load_selector("difficulty", defaults={"student": student, "prompt_style": STYLE})
    prompt = trained_with(tiny_model, STYLE)
    assert selector.requests(QUESTION) == [(f"{prompt}####", " 5"), (f"{prompt}2 + 3 =\n####", " 5")]
    assert selector.continuation(QUESTION.candidates[0].text) == "2 + 3 = 5\n#### 5"


def test_a_template_of_ones_own_comes_first(tiny_model) -> None:
    student = TransformersEngine(tiny_model, device="cpu")
    selector = load_selector("srd", {"template": "Q {question} A "}, defaults={"student": student})
    assert (selector.prompt(QUESTION), selector.continuation(" x")) == ("Q 2 and 3? A", " x")


def test_a_model_without_a_chat_template_gets_the_plain_text(tmp_path, caplog) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    student = TransformersEngine(save_llama(tmp_path, tokenizer), device="cpu")
    selector = load_selector("difficulty", defaults={"student": student})
    assert selector.prompt(QUESTION) == TEMPLATE.replace("{question}", "2 and 3?").rstrip()
    assert not caplog.records


def test_a_student_whose_tokenizer_is_unknown_is_said_to_be_measured_elsewhere(caplog) -> None:
    selector = load_selector("difficulty", {"student": "http://127.0.0.1:9/v1#tiny"})
    with caplog.at_level(logging.WARNING):
        assert selector.prompt(QUESTION) == selector.prompt(QUESTION) == "Question: 2 and 3?\nAnswer:"
    [record] = [record for record in caplog.records if "names no tokenizer" in record.message]
    assert "not behind the prompt of its training" in record.message


def test_an_unknown_part_of_the_style_is_refused(tiny_model) -> None:
    with pytest.raises(ValueError, match="prompt_style"):
        load_selector("srd", {"student": "transformers:x", "prompt_style": {"system": "x"}})
