"""Rows of D-RPC's released teacher files, made of records in their form."""

import gzip
import json
import sys
from collections import Counter

import pytest

from benchmarks import drpc_rows
from rlkd.data.loading import load_rows

KEYED = {
    "index": 0,
    "question": "A pen costs 3 and a book 4. What do 2 pens and a book cost?",
    "gold_answer": "2 * 3 + 4 = 10\n#### 10",
    "gold_answer_extracted": "10",
    "reasoning_path_bank": {"category": "shopping", "reasoning_path": ["PricePens", "AddBook"]},
    "rationale": {"PricePens": "Step1: 2 * 3 = 6", "AddBook": "Step1: 6 + 4 = 10"},
    "ans": 10,
    "ans_matches_gold": True,
}
TEXT = {
    "index": 5,
    "question": "1 + 1?",
    "gold": "2",
    "response_payload": "...",
    "response_rationale": "1 + 1 = 2.",
    "response_ans": "2",
    "gold_matches_answer": True,
}


def test_a_step_keyed_rationale_becomes_lines_with_its_structure_and_answer() -> None:
    [row] = drpc_rows.rows([KEYED], Counter())
    assert row["rationales"] == ["PricePens: Step1: 2 * 3 = 6\nAddBook: Step1: 6 + 4 = 10\n#### 10"]
    assert [step["meta"] for step in row["structures"][0]] == ["Price Pens", "Add Book"]
    assert row["answer"] == "10"


def test_an_escaped_rationale_is_read_as_the_object_that_it_is() -> None:
    escaped = KEYED | {"rationale": json.dumps(KEYED["rationale"])}
    assert list(drpc_rows.rows([escaped], Counter())) == list(drpc_rows.rows([KEYED], Counter()))


@pytest.mark.parametrize(("wrong", "kept"), [(False, 2), (True, 3)])
def test_records_without_a_rationale_are_left_out_and_wrong_ones_by_choice(wrong, kept) -> None:
    counts: Counter[str] = Counter()
    records = [KEYED, TEXT, KEYED | {"rationale": {}}, KEYED | {"ans": 11, "ans_matches_gold": False}]
    assert len(list(drpc_rows.rows(records, counts, wrong=wrong))) == kept
    assert counts["without a rationale"] == 1
    assert counts["kept"] == kept


def test_a_compressed_file_becomes_rows_that_recipes_read(tmp_path, monkeypatch, capsys) -> None:
    source, target = tmp_path / "cot.jsonl.gz", tmp_path / "rows.jsonl"
    with gzip.open(source, "wt") as file:
        file.writelines(json.dumps(TEXT | {"index": number}) + "\n" for number in range(3))
    monkeypatch.setattr(sys, "argv", ["drpc_rows.py", str(source), str(target)])
    drpc_rows.main()
    assert "3 kept" in capsys.readouterr().out
    loaded = load_rows(str(target))
    assert [row["rationales"] for row in loaded] == [["1 + 1 = 2.\n#### 2"]] * 3
    assert [row["id"] for row in loaded] == ["drpc-0", "drpc-1", "drpc-2"]
