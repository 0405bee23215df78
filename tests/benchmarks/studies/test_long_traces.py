"""The study of long teacher traces, as a user starts it, on invented solutions."""

import json

import pytest

from tests.helpers.scripts import run_here

SCRIPT = "benchmarks/studies/long_traces.py"


def rated(index):
    """A problem with two right and three wrong solutions; every third has a long right one."""
    a, b = 20 + index, 3 + index % 4
    human = f"She sells {a} - {b} = {a - b} eggs.\nShe makes {a - b} * 2 = ${2 * (a - b)}.\n#### {2 * (a - b)}"
    halves = " ".join(f"Egg {i}: {a} - {i} = {a - i}." for i in range(1, b + 1)) * (index % 3 == 0)
    wrong = [f"She sells {a} + {k} = {a + k} eggs. She makes {a + k} * 2 = ${2 * (a + k)}." for k in range(1, 4)]
    texts = [(human, True), (f"{halves} {human}", True), *((text, False) for text in wrong)]
    rationales = [{"source": f"model-{i}", "text": text, "correct": good} for i, (text, good) in enumerate(texts)]
    return {
        "question": f"Ann has {a} eggs and eats {b}. What does she make at $2 an egg?",
        "rationales": [{"source": "human", "text": human, "correct": True}, *rationales],
    }


@pytest.mark.slow
def test_the_script_measures_every_condition_and_says_what_it_read(tmp_path) -> None:
    path = tmp_path / "rated.jsonl"
    path.write_text("".join(json.dumps(rated(i)) + "\n" for i in range(9)))
    done = run_here(SCRIPT, ["--rationales", path, "--out", tmp_path / "out", "--quick"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["quick"] is True
    found = json.loads((tmp_path / "out/results.json").read_text())["conditions"]
    assert {"short", "checks, 30", "mixed, 10", "its own short one", "longest"} <= set(found)
    assert (found["short"]["problems"], found["short"]["solutions"], found["short"]["right"]) == (9, 36, 18)
    assert 0 < found["longest"]["problems"] < 9
    checks = found["checks, 30"]
    assert checks["teacher_steps"] == {"all": 30, "distinct": 2, "path": 2}
    whole, chosen = (checks["scores"][name] for name in ("ordered / mean", "ordered / mean, path steps"))
    assert whole["weight"] > 2
    assert chosen["weight"] == pytest.approx(1)
    assert chosen["mean"] == pytest.approx(found["short"]["scores"]["ordered / mean"]["mean"])


def test_a_file_without_wrong_solutions_is_refused(tmp_path) -> None:
    row = rated(0)
    row["rationales"] = row["rationales"][:3]
    (tmp_path / "rated.jsonl").write_text(json.dumps(row) + "\n")
    done = run_here(SCRIPT, ["--rationales", tmp_path / "rated.jsonl", "--out", tmp_path / "out"], tmp_path)
    assert done.returncode == 1
    assert "no problem has two steps by 'human', a right solution and two wrong ones" in done.stderr
