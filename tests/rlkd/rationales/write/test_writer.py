"""Writing: what the teacher is asked, and what is left after a kill."""

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from rlkd.errors import UsageError
from rlkd.rationales.records import Question, candidate
from rlkd.rationales.write.journal import Journal
from rlkd.rationales.write.teacher import RationaleTeacher
from rlkd.rationales.write.writer import Writer
from rlkd.rationales.write.writing import Writing
from tests.helpers.scripted_teacher import ScriptedTeacher, mark
from tests.helpers.scripted_writing import STEPS, Scripted, number_of, question, questions, reply


def test_the_gold_answer_is_in_no_first_request(written) -> None:
    engine = Scripted(lambda prompt, place: reply(prompt, right=number_of(prompt) % 3 != 0))
    wanted = questions(20)
    for manner in ("free", "steps", "bank"):
        written(engine, wanted, Writing((manner,), candidates=2, seed_share=0.2), name=manner)
    assert len(engine.prompts) > 100
    assert not re.search(r"70\d\d", engine.sent())


def test_the_answer_is_a_hint_only_where_nothing_was_right_and_the_result_is_marked(written) -> None:
    engine = Scripted(lambda prompt, place: reply(prompt, right=number_of(prompt) % 4 != 0 or "7000" in str(prompt)))
    setting = Writing(("steps",), hinted_retry=True, candidates=1)
    writer, found, discarded = written(engine, questions(8), setting)
    hinted = [each.id for each in found if any(c.source == "hinted" for c in each.candidates)]
    assert hinted == ["buying-0"]
    assert writer.counts.requests == {"steps": 8, "hinted": 2}
    assert sorted(re.findall(r"70\d\d", engine.sent())) == ["7000", "7004"]
    assert [c.answer for c in found[0].candidates] == ["1", "7000"]
    # The hint did not help with the other one: the same wrong text again.
    assert [c.source for c in found[4].candidates] == ["generated"]
    assert len(discarded) == 1


def test_exact_duplicates_are_discarded_with_their_reason_and_the_first_stays(written) -> None:
    engine = Scripted(lambda prompt, place: "2 + 2 = 4\n#### 7001" if place < 3 else f"draw {place}\n#### 7001")
    text = "2 + 2 = 4\n#### 7001"
    one = Question("q", "What, number 1?", "7001", (candidate("q", text, "human"), candidate("q", " ", "human")))
    writer, [found], discarded = written(engine, [one], Writing(("ready", "free"), candidates=4))
    assert [c.source for c in found.candidates] == ["human", "generated"]
    assert [each.reason for each in discarded] == ["empty", "exact duplicate", "exact duplicate", "exact duplicate"]
    assert writer.counts.discarded == {"empty": 1, "exact duplicate": 3}
    assert writer.counts.tokens["free"] == sum(len(c) for c in [text] * 3 + ["draw 3\n#### 7001"])


def test_the_result_does_not_depend_on_the_wave_that_was_interrupted(written, tmp_path) -> None:
    class Stops(Exception):
        pass

    def answer(prompt, place):
        path = ["CompareRates", "ScaleUp"] if number_of(prompt) % 3 else None
        return reply(prompt, right=number_of(prompt) % 5 != 0, path=path)

    setting = Writing(("bank",), candidates=3, seed_share=0.2, wave=4)
    wanted = questions(24)
    whole_engine = Scripted(lambda prompt, place: answer(prompt, place) + " " * place)
    _, whole, _ = written(whole_engine, wanted, setting, name="whole")
    total = len(whole_engine.prompts)
    for stop_after in (3, 11, 30):
        name = f"cut-{stop_after}"

        def stopping(prompt, place, left=[stop_after]):  # noqa: B006 (a counter)
            left[0] -= 1
            if left[0] < 0:
                raise Stops
            return answer(prompt, place) + " " * place

        with pytest.raises(BaseExceptionGroup):
            written(Scripted(stopping), wanted, setting, name=name)
        with Journal(tmp_path / name) as journal:
            known = len(journal)
        assert known >= stop_after - 3
        engine = Scripted(lambda prompt, place: answer(prompt, place) + " " * place)
        _, again, _ = written(engine, wanted, setting, name=name)
        assert again == whole
        assert len(engine.prompts) == total - known


def test_one_greedy_retry_beside_ready_rationales_is_no_contradiction(written) -> None:
    setting = Writing(("ready",), candidates=4, temperature=0.0, hinted_retry=True)
    writer, _, _ = written(Scripted(lambda prompt, place: "#### 7001"), [question(1)], setting)
    assert writer.counts.requests == {"hinted": 1}


def test_only_writers_that_send_requests_need_a_teacher() -> None:
    with pytest.raises(UsageError, match="need a teacher"):
        Writer(Writing(("free",)))
    [(found, _)] = Writer(Writing(("ready",))).write([Question("q", "?", "1", (candidate("q", "#### 1", "ready"),))])
    assert len(found.candidates) == 1


def test_a_writer_can_be_used_inside_another_event_loop(written) -> None:
    async def inside():
        return written(Scripted(lambda prompt, place: reply(prompt)), [question(1)], STEPS)

    _, [one], _ = asyncio.run(inside())
    assert one.candidates


DRIVER = """
import sys
from pathlib import Path
from rlkd.engines import open_engine
from rlkd.embedders import open_embedder
from rlkd.rationales.pipeline import write_stage
from rlkd.rationales.questions import load_questions
from rlkd.rationales.write.writing import Writing

rows, folder, teacher = sys.argv[1:]
write_stage(
    Path(folder),
    load_questions(rows),
    Writing(("free", "bank"), candidates=2, hinted_retry=True, seed_share=0.2, wave=8),
    engine=open_engine(teacher, concurrency=4),
    embedder=open_embedder("hashed-ngrams"),
    route_threshold=0.05,
    concurrency=4,
)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.nightly)])
def test_a_writer_that_is_killed_again_and_again_repeats_nothing_it_knew_and_ends_with_the_same_files(
    tmp_path, kills
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"id": f"r{n}", "question": f"What is {n} and {3 * n + 1} together?", "answer": str(4 * n + 1)})
            + "\n"
            for n in range(40)
        )
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    names = ["written.jsonl", "dropped.jsonl", "bank.json", "summary.json", "summary.md"]

    def start(folder: str, teacher: ScriptedTeacher) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", DRIVER, str(rows), str(tmp_path / folder), teacher.spec]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, cwd=tmp_path)

    whole = ScriptedTeacher()
    assert start("whole", whole).wait(timeout=300) == 0
    whole.shut_down()
    total = len(whole.requests)
    assert len(set(whole.requests)) == total > 150

    teacher = ScriptedTeacher(delay=0.02)
    moments = random.Random(7)
    journal = tmp_path / "cut" / "journal.jsonl"
    repeats_allowed = 0
    try:
        for _ in range(kills):
            process = start("cut", teacher)
            target = teacher.answered + moments.randint(1, total // 12)
            limit = time.monotonic() + 120
            while teacher.answered < target and process.poll() is None and time.monotonic() < limit:
                time.sleep(0.001)
            time.sleep(moments.random() * 0.02)
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, "it was over before it was killed"
            time.sleep(0.3)  # what it had sent still arrives
            assert not (tmp_path / "cut" / "written.jsonl").exists()
            known = journal.read_bytes().rpartition(b"\n")[0].decode() if journal.exists() else ""
            with teacher.lock:
                in_flight = {body for body in teacher.requests if mark(body) not in known}
            assert len(in_flight) <= 4
            repeats_allowed += len(in_flight)
        assert start("cut", teacher).wait(timeout=300) == 0
    finally:
        teacher.shut_down()
    assert set(teacher.requests) == set(whole.requests)
    assert len(teacher.requests) - total <= repeats_allowed
    for name in names:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert sorted(json.loads(line)["id"] for line in (tmp_path / "cut/written.jsonl").open()) == sorted(
        f"r{n}" for n in range(40)
    )


def test_the_student_writes_behind_the_prompt_of_its_training(tmp_path) -> None:
    teacher = Scripted(lambda prompt, place: f"#### {7000 + number_of(prompt)}")
    student = Scripted(lambda prompt, place: "#### 1")
    student.name = "pupil"
    settings = Writing(("student", "free"), temperature=0.0)
    with Journal(tmp_path / "journal") as journal:
        writer = Writer(
            settings,
            RationaleTeacher(teacher, journal),
            student=RationaleTeacher(student, journal),
            prompt_style={"system_prompt": "Be short."},
        )
        found = [question for question, _ in writer.write(questions(3))]
    assert [[each.source for each in question.candidates] for question in found] == [["student", "generated"]] * 3
    assert student.prompts == [
        [{"role": "system", "content": "Be short."}, {"role": "user", "content": question.question}]
        for question in found
    ]
    assert len(teacher.prompts) == 3
    assert (writer.counts.right, writer.counts.wrong) == (3, 3)


def test_the_student_alone_needs_no_teacher() -> None:
    assert not Writing(("ready", "student")).needs_teacher
    with pytest.raises(UsageError, match="--student SPEC names it"):
        Writer(Writing(("student",)))
