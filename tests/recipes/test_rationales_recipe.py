"""The rationale recipe: whole runs against a served teacher, its stages alone, and what it refuses."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlkd.data.loading import load_rows
from rlkd.errors import UsageError
from rlkd.rationales.write import teacher as teacher_module
from tests.helpers import HELPERS
from tests.helpers.quick_retries import shorten_pauses
from tests.helpers.scripts import load_script, run_here

pytestmark = pytest.mark.slow

SERVER = HELPERS / "scripted_teacher.py"
SERVED = SimpleNamespace(**runpy.run_path(str(SERVER), run_name="scripted_teacher"))
ENGINE_FREE = ["clean", "correct", "diverse"]


@pytest.fixture(scope="module")
def recipe() -> SimpleNamespace:
    return load_script("recipes/rationales.py")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    with path.open("w") as file:
        for n in range(30):
            row = {
                "id": f"r{n}",
                "question": f"What is {n} and {2 * n} together?",
                "answer": str(3 * n),
                "level": n % 3,
            }
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture
def teacher() -> Any:
    server = SERVED.ScriptedTeacher()
    yield server
    server.shut_down()


@pytest.fixture
def arguments(recipe, rows, teacher, tmp_path) -> Any:
    def make(**changed: Any) -> Any:
        settings = {
            "dataset_name": str(rows),
            "teacher": teacher.spec,
            "candidates": 2,
            "wave": 8,
            "seed_share": 0.2,
            "route_threshold": 0.05,
            "selectors": ENGINE_FREE,
            "output_dir": str(tmp_path / "out"),
        }
        return recipe.RationalesScriptArguments(**(settings | changed))

    return make


def files(folder: Path) -> dict[str, bytes]:
    names = ("written.jsonl", "dropped.jsonl", "rationales.jsonl", "bank.json", "summary.json", "summary.md")
    return {name: (folder / name).read_bytes() for name in names}


# Whole runs


def test_a_whole_run_ends_with_rows_to_train_on_and_a_second_one_sends_no_requests(
    recipe, arguments, teacher, tmp_path, capsys
) -> None:
    recipe.main(arguments(hinted_retry=True))
    output = capsys.readouterr().out
    assert "30 questions" in output
    found = load_rows(str(tmp_path / "out/rationales.jsonl"))
    assert len(found) > 20
    for row in found:
        assert len(row["rationales"]) == len(row["sources"]) == len(row["paths"]) == len(row["scores"])
        assert all(text.endswith(f"#### {row['answer']}") for text in row["rationales"])
        assert row["level"] in (0, 1, 2)
    sources = {source for row in found for source in row["sources"]}
    assert {"bank", "generated"} <= sources
    step_keyed = [row for row in found if all(row["paths"])]
    assert step_keyed
    assert all(len(row["structures"]) == len(row["rationales"]) for row in step_keyed)
    before, sent = files(tmp_path / "out"), len(teacher.requests)
    recipe.main(arguments(hinted_retry=True))
    assert len(teacher.requests) == sent
    assert files(tmp_path / "out") == before
    assert "0 requests sent" in capsys.readouterr().out


def test_the_summary_counts_what_the_files_hold(recipe, arguments, tmp_path) -> None:
    recipe.main(arguments(writers=["free", "steps"]))
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    counts = summary["write"]["counts"]
    assert counts["requests"] == {"free": 60, "steps": 60}
    assert counts["unusable"] > 0
    assert counts["right"] + counts["wrong"] == sum(counts["candidates"].values())
    kept = load_rows(str(tmp_path / "out/rationales.jsonl"))
    assert summary["select"]["kept"] == sum(len(row["rationales"]) for row in kept)
    dropped = [json.loads(line)["stage"] for line in (tmp_path / "out/dropped.jsonl").open()]
    for stage in summary["select"]["stages"]:
        assert sum(stage["dropped"].values()) == dropped.count(stage["stage"])
    assert "## Paths" in (tmp_path / "out/summary.md").read_text()
    assert not (tmp_path / "out/bank.json").exists()


def test_one_prompt_that_is_refused_at_once_costs_its_own_question_and_never_the_run(
    recipe, arguments, teacher, tmp_path, capsys
) -> None:
    def fault(body: dict[str, Any]) -> int | None:
        if "What is 0 and" in json.dumps(body["messages"]):
            return 400
        time.sleep(0.02)
        return None

    teacher.fault = fault
    settings = {"writers": ["free"], "candidates": 1, "selectors": ["clean"]}
    for start in range(2):
        recipe.main(arguments(**settings))
        written = [json.loads(line) for line in (tmp_path / "out/written.jsonl").open()]
        assert [question["id"] for question in written if not question["candidates"]] == ["r0"]
        output = capsys.readouterr().out
        assert f"{1 if start else 30} requests sent" in output
        assert "1 failed.\nThe last failure: http://" in output
        assert "400" in output


def test_the_stages_alone_do_what_the_whole_does(recipe, arguments, tmp_path) -> None:
    recipe.main(arguments(), stage="all")
    apart = arguments(output_dir=str(tmp_path / "apart"))
    recipe.main(apart, stage="write")
    assert not (tmp_path / "apart/rationales.jsonl").exists()
    recipe.main(apart, stage="select")
    assert files(tmp_path / "apart") == files(tmp_path / "out")


def test_a_bank_that_is_brought_along_needs_no_seed_round(recipe, arguments, tmp_path, capsys) -> None:
    recipe.main(arguments(), stage="write")
    bank = tmp_path / "out/bank.json"
    recipe.main(arguments(bank_file=str(bank), output_dir=str(tmp_path / "second")), stage="write")
    summary = json.loads((tmp_path / "second/summary.json").read_text())
    assert summary["write"]["counts"]["requests"] == {"guided": 60}
    capsys.readouterr()
    recipe.bank_command(["inspect", str(bank)])
    output = capsys.readouterr().out
    assert "AddBothParts" in output
    assert "addition" in output


def test_ready_made_traces_need_no_teacher(recipe, arguments, tmp_path, teacher) -> None:
    path = tmp_path / "traces.jsonl"
    texts = ["2 + 5 = 7\n#### 7", "2 + 5 = 8\n#### 8"]
    record = {
        "q": "2 and 5?",
        "gold": "7",
        "rationales": [{"source": f"s{n}", "text": t} for n, t in enumerate(texts)],
    }
    path.write_text(json.dumps(record) + "\n")
    recipe.main(
        arguments(dataset_name=str(path), writers=["ready"], columns={"question": "q", "answer": "gold"}),
    )
    [row] = load_rows(str(tmp_path / "out/rationales.jsonl"))
    assert (row["rationales"], row["sources"]) == (texts[:1], ["s0"])
    assert teacher.requests == []


def test_a_line_of_traces_that_is_not_utf_8_is_named(recipe, arguments, tmp_path) -> None:
    path = tmp_path / "traces.jsonl"
    line = json.dumps({"question": "2 and 5?", "answer": "7", "rationales": [{"source": "s", "text": "#### 7"}]})
    path.write_bytes(line.encode() + b"\n" + line.encode().replace(b"2 and", b"\xff and") + b"\n")
    with pytest.raises(UsageError, match=r"traces\.jsonl, line 2: not JSON"):
        recipe.main(arguments(dataset_name=str(path), writers=["ready"]))


def test_where_nothing_is_left_the_warning_says_why(recipe, arguments, tmp_path, capsys) -> None:
    path = tmp_path / "traces.jsonl"
    path.write_text(json.dumps({"question": "2 and 5?", "gold": "7", "rationales": ["2 + 5 = 7\n#### 7"]}) + "\n")
    recipe.main(arguments(dataset_name=str(path), writers=["ready"]))
    output = capsys.readouterr().out
    assert "nothing is left to train on" in output
    assert "dropped by correct: the question has no right answer (1). Name the column of the answer" in output
    assert "--columns" in output


def test_a_selector_of_ones_own_is_taken_from_a_file_with_its_parameters(recipe, arguments, tmp_path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "from rlkd.rationales.select import SelectorVerdict\n"
        "def brief(questions, limit=1000):\n"
        "    return [[SelectorVerdict(None if len(c.text) <= limit else 'too long') for c in q.candidates]\n"
        "            for q in questions]\n"
    )
    recipe.main(arguments(selectors=["correct", f"{own}:brief"], selector_kwargs={"brief": {"limit": 30}}))
    reasons = {json.loads(line)["reason"] for line in (tmp_path / "out/dropped.jsonl").open()}
    assert "too long" in reasons


def test_a_teacher_in_this_process_gets_no_request_twice_either(recipe, arguments, tiny_model, tmp_path) -> None:
    def run(folder: str) -> dict[str, bytes]:
        recipe.main(
            arguments(
                teacher=f"transformers:{tiny_model}", max_rows=3, max_new_tokens=6, output_dir=str(tmp_path / folder)
            ),
            stage="write",
        )
        return {
            path.name: path.read_bytes() for path in (tmp_path / folder).iterdir() if not path.name.startswith(".")
        }

    first = run("out")
    assert run("out") == first
    assert run("other") == first
    counts = json.loads(first["summary.json"])["write"]["counts"]
    assert counts["unusable"] == counts["truncated"] == 6
    assert counts["tokens"] == {"seed": 6, "guided": 30}


def test_a_token_budget_is_counted_in_the_tokens_of_the_student(recipe, arguments, tiny_model, tmp_path) -> None:
    recipe.main(arguments(student=f"transformers:{tiny_model}", token_budget=500))
    texts = [text for row in load_rows(str(tmp_path / "out/rationales.jsonl")) for text in row["rationales"]]
    # The tiny model's tokens are characters.
    assert 350 < sum(map(len, texts)) <= 500
    with pytest.raises(UsageError, match="token_budget=0"):
        recipe.main(arguments(token_budget=0))


def test_a_bank_that_offers_too_little_logs_a_warning(recipe, arguments, tmp_path, capsys) -> None:
    recipe.main(arguments(route_threshold=0.99), stage="write")
    assert "WARNING" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/summary.json").read_text())["write"]["paths"]["offered_share"] < 0.5


# What is refused, before anything is loaded or asked


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"writers": ["bnak"]}, r"writers=\['bnak'\]: expected one or more of ready, free, steps, bank"),
        ({"teacher": "http://127.0.0.1:1/v1"}, r"name the model, http://127.0.0.1:1/v1#MODEL"),
        ({"teacher": "http://127.0.0.1:1/v1#m"}, r"--teacher: .*no connection"),
        ({"teacher": "tranformers:embedded"}, r"does not name an engine"),
        ({"embedder": "word2vec"}, r"word2vec"),
        ({"selectors": ["corect"]}, r"unknown selector 'corect'.*Did you mean 'correct'"),
        ({"selector_kwargs": {"correct": {"strict": 1}}}, r"no parameter 'strict'"),
        ({"writers": ["ready"]}, r"no row of .* has a rationale.*--columns"),
        ({"max_rows": 0}, r"max_rows=0"),
        ({"bank_file": "nowhere.json"}, r"nowhere.json"),
        ({"route_threshold": 5.0}, r"route_threshold=5.0"),
        ({"bank_size": 0}, r"bank_size=0"),
        ({"category": "levle"}, r"category='levle'.*Did you mean 'level'"),
        ({"embedder": "transformers:/no/such/folder"}, r"--embedder transformers:/no/such/folder"),
        (
            {"selectors": ["difficulty"], "student": "transformers:/no/such"},
            r"transformers:/no/such: the model cannot be read",
        ),
        (
            {"token_budget": 9, "student": "transformers:/no/such/folder"},
            r"transformers:/no/such/folder: the model cannot be read",
        ),
        (
            {"selector_kwargs": {"correct": {"second_look": "vllm:/no/such/folder"}}},
            r"vllm:/no/such/folder: the model cannot be read",
        ),
        ({"limit_by": "log_rdd", "per_question": 1}, r"limit_by=log_rdd: no selector gives this score"),
        (
            {"limit_by": "log_rd", "keep_ratio": 0.5, "selectors": ["clean", "correct"]},
            r"Add 'difficulty' to the selectors, or remove limit_by and keep_ratio from the config",
        ),
        (
            {
                "limit_by": "log_rdd",
                "per_question": 1,
                "selectors": ["easy=difficulty"],
                "student": "transformers:/no/such",
            },
            r"Did you mean 'log_rd'",
        ),
    ],
)
def test_impossible_settings_are_refused(recipe, arguments, teacher, changed, message, monkeypatch) -> None:
    shorten_pauses(monkeypatch)
    with pytest.raises(UsageError, match=message):
        recipe.main(arguments(**changed))
    assert teacher.requests == []


def test_the_scores_of_the_built_in_selectors_are_known(recipe, tiny_model) -> None:
    import asyncio

    from rlkd.rationales.records import Question, candidate
    from rlkd.rationales.select import BUILT_IN, apply, load_selector
    from rlkd.rationales.select.selection import SCORES

    texts = ["3 + 4 = 7\n#### 7", "First 3 apples, then 4 pears, so 3 + 4 = 7 fruits.\n#### 7", "4 + 4 = 8\n#### 8"]
    questions = [
        Question(name, f"{name}: what are 3 and 4?", "7", tuple(candidate(name, text, "ready") for text in texts))
        for name in ("a", "b", "c")
    ]
    given = {"student": f"transformers:{tiny_model}", "engine": f"transformers:{tiny_model}"}
    assert set(SCORES) == set(BUILT_IN)
    for name, scores in SCORES.items():
        kept, dropped = asyncio.run(apply(load_selector(name, defaults=given), questions))
        judged = [each for question in kept for each in question.candidates] + [each.candidate for each in dropped]
        assert {score for each in judged for score in each.scores} == set(scores), name


def test_a_bank_that_the_run_would_write_over_is_refused(recipe, arguments, teacher, tmp_path) -> None:
    recipe.main(arguments(), stage="write")
    bank, sent = tmp_path / "out/bank.json", len(teacher.requests)
    before = bank.read_bytes()
    with pytest.raises(UsageError, match=r"bank.json is where this run writes its own bank"):
        recipe.main(arguments(bank_file=str(bank)), stage="write")
    with pytest.raises(UsageError, match=r"route \(0.05, expected 0.99\)"):
        recipe.main(
            arguments(bank_file=str(bank), route_threshold=0.99, output_dir=str(tmp_path / "other")), stage="write"
        )
    assert (bank.read_bytes(), len(teacher.requests)) == (before, sent)


def test_the_teacher_is_closed_before_the_student_is_loaded(
    recipe, arguments, tiny_model, tmp_path, monkeypatch
) -> None:
    opened: list[Any] = []
    real = teacher_module.open_engine

    def opening(*given: Any, **settings: Any) -> Any:
        opened.append(real(*given, **settings))
        return opened[-1]

    own = tmp_path / "own.py"
    own.write_text("from rlkd.rationales.select import SelectorVerdict\ndef look(questions):\n    raise LookupError\n")
    model = f"transformers:{tiny_model}"
    monkeypatch.setattr(teacher_module, "open_engine", opening)
    with pytest.raises(LookupError):
        recipe.main(
            arguments(teacher=model, writers=["free"], max_rows=2, max_new_tokens=4, selectors=[f"{own}:look"])
        )
    [teacher] = opened
    assert (tmp_path / "out/written.jsonl").exists()
    assert "not loaded" in repr(teacher)


def test_hinted_rationales_without_a_second_look_log_a_warning(recipe, arguments, capsys) -> None:
    recipe.main(arguments(hinted_retry=True, writers=["free"]))
    assert "WARNING: hinted_retry without a second look" in capsys.readouterr().out
    recipe.main(arguments(writers=["free"]))
    assert "second look" not in capsys.readouterr().out


def test_contrastive_writers_need_a_teacher_in_this_process(recipe, arguments, capsys) -> None:
    with pytest.raises(UsageError, match="need the log-probabilities of all tokens at each step"):
        recipe.main(arguments(writers=["contrast"]))
    assert "WARNING: the writer contrast without a second look" in capsys.readouterr().out


def test_the_shipped_configuration_with_hints_has_a_second_look(recipe, root) -> None:
    import yaml

    for path in sorted((root / "recipes").glob("rationales*.yaml")):
        script = recipe.RationalesScriptArguments(**yaml.safe_load(path.read_text()))
        assert script.selection().has_second_look or not script.hinted_retry


def test_parameters_of_an_unknown_selector_are_refused_and_those_of_a_built_in_one_have_no_effect(arguments) -> None:
    with pytest.raises(ValueError, match=r"selector_kwargs: 'dificulty' is not among the selectors"):
        arguments(selector_kwargs='{"dificulty": {"keep": 1}}')
    # As where the command line replaces the selectors of a config.
    arguments(selector_kwargs='{"difficulty": {"keep": 1}}')


def test_a_deadline_of_no_time_is_refused(arguments) -> None:
    with pytest.raises(ValueError, match=r"deadline=0: expected seconds, above 0"):
        arguments(deadline=0.0)


def test_a_model_that_the_server_does_not_have_is_refused(recipe, arguments, teacher) -> None:
    with pytest.raises(UsageError, match=r"has no model 'other'; it offers scripted"):
        recipe.main(arguments(teacher=teacher.spec.replace("#scripted", "#other")))


def test_an_attempt_at_a_server_may_take_half_of_the_time_of_a_request(teacher, monkeypatch) -> None:
    assert teacher_module.open_teacher(teacher.spec, deadline=900.0).timeout == 450.0
    monkeypatch.setenv("RLKD_TEACHER_SPEC", teacher.spec)
    named = teacher_module.open_teacher("env:RLKD_TEACHER_SPEC", deadline=900.0, concurrency=3)
    assert (named.timeout, named.concurrency) == (450.0, 3)


def test_several_processes_are_refused(recipe, arguments, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="one process writes and selects"):
        recipe.main(arguments())


def test_selecting_before_writing_is_refused(recipe, arguments) -> None:
    with pytest.raises(UsageError, match="run the stage `write` first"):
        recipe.main(arguments(), stage="select")


def test_a_server_that_fails_too_often_stops_the_run_and_its_answers_stay_in_the_journal(
    recipe, arguments, teacher, tmp_path
) -> None:
    teacher.fault = lambda body: 400 if json.dumps(body["messages"]).count("7 and") else None
    with pytest.raises(UsageError, match=r"requests failed, more than max_failure_rate 0.01.*out of order"):
        recipe.main(arguments(max_failure_rate=0.01))
    assert not (tmp_path / "out/written.jsonl").exists()
    teacher.fault = lambda body: None
    good = set(teacher.requests)
    recipe.main(arguments())
    repeated = [body for body in teacher.requests if body in good]
    # Only what had failed was asked a second time.
    assert all("7 and" in body for body in {body for body in repeated if repeated.count(body) > 1})


# In processes of their own


def command(root: Path, *words: Any) -> list[str]:
    return [sys.executable, str(root / "recipes/rationales.py"), *map(str, words)]


@pytest.mark.slow
def test_a_killed_run_resumes_from_its_journal(root, rows, tmp_path) -> None:
    slow = SERVED.ScriptedTeacher(delay=0.05)
    settings = ["--dataset_name", rows, "--teacher", slow.spec, "--concurrency", 2, "--wave", 8, "--writers", "bank"]
    settings += ["--selectors", *ENGINE_FREE, "--route_threshold", 0.05]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    try:
        process = subprocess.Popen(
            command(root, *settings, "--output_dir", "cut"), cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL
        )
        limit = time.monotonic() + 240
        while slow.answered < 12 and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was over before it was killed"
        known = (tmp_path / "cut/journal.jsonl").read_bytes().count(b"\n")
        assert known >= 10
        slow.delay = 0.0
        again = run_here("recipes/rationales.py", [*settings, "--output_dir", "cut"], tmp_path)
        assert again.returncode == 0, again.stderr
        assert f"{known} answers" in again.stdout
        assert len(slow.requests) - len(set(slow.requests)) <= 2
        whole = run_here("recipes/rationales.py", ["write", *settings, "--output_dir", "whole"], tmp_path)
        assert whole.returncode == 0, whole.stderr
        assert not (tmp_path / "whole/rationales.jsonl").exists()
        assert (
            run_here("recipes/rationales.py", ["select", *settings, "--output_dir", "whole"], tmp_path).returncode == 0
        )
    finally:
        slow.shut_down()
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    shown = run_here("recipes/rationales.py", ["bank", "inspect", "cut/bank.json"], tmp_path)
    assert shown.returncode == 0
    assert "AddBothParts" in shown.stdout
    wrong = run_here("recipes/rationales.py", ["bank", "inspect", "cut/summary.json"], tmp_path)
    assert wrong.returncode == 1
