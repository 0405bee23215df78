"""The named test sets, without the hub: what is asked of it, and what becomes of its rows."""

from collections import Counter

import pytest

from rewards import build_reward
from rlkd.data.benchmarks import BENCHMARKS, benchmark_rows
from rlkd.errors import UsageError

# A row of each dataset, in the form that it has on the hub.
RECORDS = {
    "gsm8k": {"question": "Ann has 3 eggs and buys 4. How many?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"},
    "math500": {
        "problem": "What is $1+1$?",
        "solution": r"$\boxed{2}$",
        "answer": "2",
        "subject": "Algebra",
        "level": 1,
        "unique_id": "test/algebra/1.json",
    },
    "aime24": {
        "id": 60,
        "problem": "Find $n$.",
        "solution": r"\boxed{204}",
        "answer": "204",
        "url": "",
        "year": "2024",
    },
    "aime25": {"problem": "Find $m$.", "answer": "070", "id": "0"},
    "mawps": {
        "id": "mawps__1",
        "question": "Joan found 70 seashells and gave Sam 27. How many are left?",
        "chain": "",
        "result": "43",
        "result_unit": "",
        "equation": "",
        "expression": "70-27",
    },
    "strategyqa": {"qid": "a1", "term": "Genghis Khan", "question": "Are dogs fish?", "answer": False, "facts": "..."},
    "commonsenseqa": {
        "id": "c1",
        "question": "Where do you put a coat?",
        "question_concept": "coat",
        "choices": {"label": ["A", "B", "C"], "text": ["river", "closet", "moon"]},
        "answerKey": "B",
    },
    "gpqa_diamond": {
        "Record ID": "rec1",
        "Question": "Which gas is the lightest?",
        "Correct Answer": "hydrogen\n",
        "Incorrect Answer 1": "neon",
        "Incorrect Answer 2": "argon",
        "Incorrect Answer 3": "xenon",
        "Subdomain": "Chemistry (general)",
    },
}
REWARD = {"exact": "accuracy", "boolean": "boolean", "choice": "multiple_choice"}


@pytest.fixture
def hub(monkeypatch):
    asked = []

    def load(source, config=None, *, split, revision):
        asked.append((source, config, split, revision))
        name = next(name for name, each in BENCHMARKS.items() if each.hub_id == source)
        return [RECORDS[name]]

    monkeypatch.setattr("datasets.load_dataset", load)
    return asked


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_row_of_each_benchmark_is_read_and_its_gold_answer_compares(hub, name) -> None:
    [row] = benchmark_rows(name)
    benchmark = BENCHMARKS[name]
    assert hub == [(benchmark.hub_id, benchmark.config, benchmark.split, benchmark.revision)]
    assert len(benchmark.revision) == 40
    gold = {"gsm8k": "7", "strategyqa": "no", "aime25": "70"}.get(name, row["answer"])
    reward = build_reward(REWARD[benchmark.answers], cache=False)
    columns = {"answer": [row["answer"]] * 2, "choices": [row.get("choices")] * 2}
    assert reward(completions=[f"The answer is {gold}.", "The answer is 9,999."], **columns) == [1.0, 0.0]


def test_options_are_shown_in_the_question(hub) -> None:
    [row] = benchmark_rows("commonsenseqa")
    assert row["question"] == "Where do you put a coat?\nA. river\nB. closet\nC. moon"


def test_options_in_columns_are_mixed_the_same_way_each_time_and_the_answer_is_the_letter_of_the_right_one(
    hub,
) -> None:
    [row] = benchmark_rows("gpqa_diamond")
    assert [row] == benchmark_rows("gpqa_diamond")
    texts = dict(zip(row["choices"]["label"], row["choices"]["text"], strict=True))
    assert sorted(texts.values()) == ["argon", "hydrogen", "neon", "xenon"]
    assert texts[row["answer"]] == "hydrogen"
    assert "Correct Answer" not in row
    assert row["question"].splitlines()[1:] == [f"{letter}. {text}" for letter, text in texts.items()]


def test_the_right_option_has_every_letter_about_equally_often(hub, monkeypatch) -> None:
    rows = [RECORDS["gpqa_diamond"] | {"Record ID": f"rec{number}"} for number in range(400)]
    monkeypatch.setattr("datasets.load_dataset", lambda *arguments, **options: rows)
    counts = Counter(row["answer"] for row in benchmark_rows("gpqa_diamond"))
    assert set(counts) == set("ABCD")
    assert min(counts.values()) > 70


def test_without_the_hub_the_error_names_the_dataset_and_what_can_be_read_instead(monkeypatch) -> None:
    def unreachable(*arguments, **options):
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(UsageError, match=r"openai/gsm8k \(split test\).*reach the hub.*embedded gsm8k-sample"):
        benchmark_rows("gsm8k")
    with pytest.raises(UsageError, match=r"Idavidrein/gpqa.*gated: accept its conditions"):
        benchmark_rows("gpqa_diamond")
    with pytest.raises(UsageError, match=r"math-ai/aime25.*a file of its rows.*\"question\": \"problem\""):
        benchmark_rows("aime25")
