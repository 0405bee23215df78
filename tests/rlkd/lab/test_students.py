"""The laboratory's tokenizer and untrained student."""

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlkd.lab.problems import ALL_LENGTHS, dependency_rows, recall_rows
from rlkd.lab.strategies import pretraining_rows, strategy_rows
from rlkd.lab.students import (
    SHAPE,
    STRATEGY_WORDS,
    identity,
    tokenizer,
    untrained_student,
    vocabulary,
    widened_student,
)
from rlkd.models import resolve_model
from tests.helpers import ROOT


def test_the_page_lists_the_words_and_its_row_is_made_of_them() -> None:
    words = tokenizer()
    page = (ROOT / "docs/laboratory.md").read_text().partition("### Its words")[2].partition("\n## ")[0]
    listed = re.findall(r"[A-Za-z]+|#+|[-+*=.:?,]|[0-9]+", page)
    spoken = {piece for token in vocabulary()[5:] for piece in re.findall(r"[A-Za-z]+|#+|[-+*=.:?,]", token)}
    assert spoken <= set(listed)
    row = json.loads(page.partition("```json\n")[2].partition("\n```")[0])
    for text in (row["question"], *row["rationales"]):
        assert words.unk_token_id not in words(text).input_ids
    assert {" 0", " 90", " 2 more than", " 9 fewer than"} <= set(vocabulary())
    assert not {" 91", " 10 more than", " has"} & set(vocabulary())


def test_every_text_of_the_task_is_made_of_known_tokens_and_decodes_exactly() -> None:
    words = tokenizer()
    exercises = recall_rows(50)
    for row in [*dependency_rows("pretraining", 200, steps=ALL_LENGTHS, short_cuts=0.5), *exercises]:
        for text in (row["question"], *row["rationales"]):
            ids = words(text).input_ids
            assert words.unk_token_id not in ids
            assert words.decode(ids) == text


def test_a_word_is_the_same_token_at_the_start_of_a_line() -> None:
    words = tokenizer()
    first, *_, second = (words(text).input_ids for text in ("Ann has 3", "so\nAnn has 3"))
    assert second[-2:] == first


def test_with_further_words_the_strategy_problems_are_known_and_old_words_keep_their_ids() -> None:
    words, before = tokenizer(STRATEGY_WORDS), tokenizer().get_vocab()
    assert before.items() <= words.get_vocab().items()
    for row in [*strategy_rows("test", 200), *pretraining_rows(300)]:
        for text in (row["question"], *row["rationales"]):
            ids = words(text).input_ids
            assert words.unk_token_id not in ids
            assert words.decode(ids) == text


@pytest.mark.slow
def test_a_widened_student_is_the_student_with_further_words_and_always_the_same(tmp_path) -> None:
    student = resolve_model("lab-student")
    for name in "ab":
        widened_student(tmp_path / name, student)
    one, other = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in "ab")
    assert all(torch.equal(x, y) for x, y in zip(one.parameters(), other.parameters(), strict=True))
    before = AutoModelForCausalLM.from_pretrained(student).get_input_embeddings().weight
    assert torch.equal(one.get_input_embeddings().weight[: len(before)], before)
    assert len(one.get_input_embeddings().weight) == len(AutoTokenizer.from_pretrained(tmp_path / "a"))


def test_the_vocabulary_has_no_token_twice() -> None:
    assert len(set(vocabulary())) == len(vocabulary()) == len(tokenizer())


@pytest.mark.slow
def test_an_untrained_student_is_an_ordinary_checkpoint_and_always_the_same(tmp_path) -> None:
    untrained_student(tmp_path / "a")
    torch.manual_seed(5)
    untrained_student(tmp_path / "b")
    one, other = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in "ab")
    for left, right in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right)
    words = AutoTokenizer.from_pretrained(tmp_path / "a")
    prompt = words.apply_chat_template([{"role": "user", "content": "How many pens does Ann have?"}], tokenize=False)
    assert prompt.startswith("<|user|>")
    assert words.decode(words("Ann has 3 pens.\nBen has 4.").input_ids) == "Ann has 3 pens.\nBen has 4."


def test_another_shape_or_vocabulary_is_another_untrained_student(monkeypatch) -> None:
    before = identity()
    assert before == identity()
    monkeypatch.setitem(SHAPE, "hidden_size", 64)
    assert identity() != before
