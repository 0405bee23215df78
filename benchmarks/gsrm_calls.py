"""Cost of a structure reward at a server: requests and time of our scheme against those of RLKD's authors.

    python benchmarks/gsrm_calls.py            # 4 questions, 0.2 s per request: a minute and a half
    python benchmarks/gsrm_calls.py --quick    # 2 questions, 0.1 s per request: half a minute

Compared on one batch of 8 completions per question and six steps per trace, with the same prompts at the same server:

- **authors**: RLKD's released code (arXiv 2505.16142). The student's trace and the teacher's are decomposed for every
  completion; then pairs of steps are judged one request after another, first the meta parts until one differs, then
  question and answer of the steps before it. Decompositions run concurrently here, which is cheaper than the original.
- **ours**: `StructureReward` as in a run; then the next epoch (new completions of the same questions), and the first
  one again with a new reward, so that only results on disk are known.

The server has no model: it sleeps for the latency, at most 32 requests at a time, and returns a prepared reply. Three
quarters of the completions turn to another sub-problem at some step; some questions and answers differ.

Exits with 1 if scores or verdicts differ, or if a figure misses its bound: structure calls at most (G+1)/(2G) of the
authors' and 1/2 in the next epoch, 1/8 of their time, no judge call in the repeated epoch.
"""

import argparse
import asyncio
import itertools
import json
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from typing import Any

import harness
from rewards import Scored
from rewards.structure import StructureReward
from rlkd.engines import EngineError, Message, run
from rlkd.engines.server import ServerEngine
from rlkd.gsrm import PromptedDecomposer, ReasoningTrace, Verdict
from rlkd.gsrm.judges import model_question
from rlkd.gsrm.prompts import Field, verdict_request
from rlkd.http import get_json
from rlkd.structure import Step, Structure

GROUP = 8
STEPS = 6
CONCURRENCY = 32
MODEL = "written-down"
FIELDS: tuple[Field, ...] = ("meta", "question", "answer")


def main() -> int:
    parser = argparse.ArgumentParser(description="Count and time the requests of a structure reward.")
    quick = harness.parse(parser, quick="2 questions and 0.1 s per request instead of 4 and 0.2 s").quick
    n_questions, latency = (2, 0.1) if quick else (4, 0.2)
    first, following = batch(n_questions, epoch=0), batch(n_questions, epoch=1)
    with server(replies([*first, *following]), latency) as url, tempfile.TemporaryDirectory() as folder:
        run(ServerEngine(url, MODEL).models())  # both arms find their libraries loaded

        authors = measured(url, lambda: asyncio.run(by_the_authors(url, first)))
        reward = our_reward(url, folder)
        ours = measured(url, lambda: by_us(reward, first))
        next_epoch = measured(url, lambda: by_us(reward, following))
        repeated = measured(url, lambda: by_us(our_reward(url, folder), first))

    wall_ratio = ours.seconds / authors.seconds
    figures = {
        "questions": n_questions,
        "group": GROUP,
        "steps": STEPS,
        "latency_s": latency,
        "concurrency": CONCURRENCY,
        "structure_call_ratio": ours.structure_calls / authors.structure_calls,
        # The authors store nothing, so their first epoch stands for any other.
        "structure_call_ratio_next_epoch": next_epoch.structure_calls / authors.structure_calls,
        "judge_call_ratio": round(ours.judge_calls / authors.judge_calls, 3),
        "repeat_epoch_judge_calls": repeated.judge_calls,
        "wall_ratio": round(wall_ratio, 4),
        "authors_s": round(authors.seconds, 2),
        "ours_s": round(ours.seconds, 2),
        "scores_equal": authors.results == ours.results == repeated.results,
    }
    rows = {"authors": authors, "ours": ours, "ours, next epoch": next_epoch, "ours, first epoch again": repeated}
    print(f"{n_questions} questions, {GROUP} completions each, {STEPS} steps a trace, {latency:g} s a request\n")
    print(f"{'':<24} {'structure calls':>16} {'judge calls':>12} {'at once':>8} {'seconds':>8}")
    for name, arm in rows.items():
        print(f"{name:<24} {arm.structure_calls:>16} {arm.judge_calls:>12} {arm.at_once:>8} {arm.seconds:>8.2f}")
    scores = sorted({score for score, _ in authors.results})
    print(f"\nscores of the first epoch: {', '.join(f'{score:g}' for score in scores)}")
    bounds = {
        "scores_equal": figures["scores_equal"],
        "structure_call_ratio": figures["structure_call_ratio"] <= (GROUP + 1) / (2 * GROUP),
        "structure_call_ratio_next_epoch": figures["structure_call_ratio_next_epoch"] <= 1 / 2,
        "wall_ratio": wall_ratio <= 1 / 8,
        "repeat_epoch_judge_calls": repeated.judge_calls == 0,
    }
    return harness.report(figures, bounds)


# The data: completions with structures and verdicts that are known beforehand.


@dataclass(frozen=True)
class Sample:
    """A completion with the teacher's trace, the structures of both, and the verdicts by which they agree."""

    question: str
    completion: str
    rationale: str
    student: Structure
    teacher: Structure
    verdicts: tuple[Verdict, ...]


def batch(n_questions: int, epoch: int) -> list[Sample]:
    """`GROUP` different completions of each question; another epoch has other words and other verdicts."""
    samples = []
    for q, c in itertools.product(range(n_questions), range(GROUP)):
        # Completions 0 to 5 leave the teacher's path at one of the six steps, shifted so that all depths occur in
        # each group; the other two follow it to the end.
        leaves_at = (c + q + epoch) % STEPS if c < STEPS else STEPS
        gold, own, verdicts = [], [], []
        for i in range(STEPS):
            verdict = Verdict(
                meta=i != leaves_at, question=(q + 2 * c + i) % 4 > 0, answer=(q + c + epoch + i) % 3 > 0
            )
            result = 100 * q + 7 * i + 1
            found = result if verdict.answer else result + 1 + c
            way = f"in way {GROUP * epoch + c}"
            answers = (
                (f"{result} pieces of kind {i}", f"{found} pieces, {way}") if i % 2 else (f"{result}", f"{found}")
            )
            which = "Which is" if verdict.meta else "Leaving that aside, which is"
            verb = "take" if verdict.question else "guess"
            gold.append(Step(f"What is quantity {i} of problem {q}?", f"{q + 1} * {i + 1} + {i}", answers[0]))
            own.append(Step(f"{which} quantity {i} {way}?", f"{verb} {q + 1}, {i + 1} and {i} {way}", answers[1]))
            verdicts.append(verdict)
        student, teacher = Structure(own), Structure(gold)
        samples.append(Sample(f"Problem {q}?", as_text(student), as_text(teacher), student, teacher, tuple(verdicts)))
    assert len({sample.completion for sample in samples}) == len(samples)
    return samples


def as_text(structure: Structure) -> str:
    """The reasoning that has this structure."""
    return " ".join(f"{step.meta} I {step.question}, and get {step.answer}." for step in structure)


def replies(samples: Sequence[Sample]) -> dict[str, str]:
    """The server's reply to each prompt: a structure as JSON, or Yes or No. A prompt is known by its last message."""
    decomposer = PromptedDecomposer(ServerEngine("http://127.0.0.1:1/v1", MODEL))
    found: dict[str, str] = {}
    for sample in samples:
        for text, structure in ((sample.completion, sample.student), (sample.rationale, sample.teacher)):
            prompt = decomposer._messages(ReasoningTrace(sample.question, text))[-1]["content"]
            found[prompt] = json.dumps({"steps": structure.to_list()})
        for own, gold, verdict in zip(sample.student, sample.teacher, sample.verdicts, strict=True):
            for field in FIELDS:
                prompt = judge_prompt(field, getattr(own, field), getattr(gold, field))[-1]["content"]
                reply = "Yes" if getattr(verdict, field) else "No"
                assert found.setdefault(prompt, reply) == reply, "one question, two answers"
    return found


def judge_prompt(field: Field, own: str, gold: str) -> list[Message]:
    """The prompt of our judge, which both schemes send."""
    return verdict_request(model_question(field, own, gold))


# The two schemes. A result is the score and the verdicts it rests on.

Result = tuple[float, list[dict[str, bool | None]]]


async def by_the_authors(url: str, samples: Sequence[Sample]) -> list[Result]:
    """RLKD, stage C, one completion after another; see the module. Raises where a request fails."""
    engine = ServerEngine(url, MODEL, concurrency=CONCURRENCY)
    decomposer = PromptedDecomposer(engine)

    async def decompose(trace: ReasoningTrace) -> Structure:
        [structure] = await decomposer.decompose([trace])
        if not isinstance(structure, Structure):
            raise structure
        return structure

    async def same(field: Field, own: Step, gold: Step) -> bool:
        prompt = judge_prompt(field, getattr(own, field), getattr(gold, field))
        [reply] = await engine.choose([prompt], ("Yes", "No"))
        if isinstance(reply, EngineError):
            raise reply
        yes, no = reply
        return yes > no

    students = [decompose(ReasoningTrace(sample.question, sample.completion)) for sample in samples]
    teachers = [decompose(ReasoningTrace(sample.question, sample.rationale, teacher=True)) for sample in samples]
    structures = await asyncio.gather(*students, *teachers)
    results = []
    for student, teacher in zip(structures[: len(samples)], structures[len(samples) :], strict=True):
        pairs = list(zip(student, teacher, strict=False))
        alive = 0
        for own, gold in pairs:
            if not await same("meta", own, gold):
                break
            alive += 1
        score, verdicts = 0.0, []
        for own, gold in pairs[:alive]:
            question = await same("question", own, gold)
            answer = await same("answer", own, gold)
            score += (1.0 if question else 0.5) * (1.0 if answer else 0.5)
            verdicts.append({"meta": True, "question": question, "answer": answer})
        if alive < len(pairs):
            verdicts.append({"meta": False, "question": None, "answer": None})
        results.append((score, verdicts))
    await engine.close()
    return results


def our_reward(url: str, folder: str) -> StructureReward:
    return StructureReward("prompted", "model", alignment="sum", engine=f"{url}#{MODEL}", store=folder)


def by_us(reward: StructureReward, samples: Sequence[Sample]) -> list[Result]:
    scored = run(
        reward(
            prompts=[sample.question for sample in samples],
            completions=[sample.completion for sample in samples],
            rationales=[[sample.rationale] for sample in samples],
            question=[sample.question for sample in samples],
        )
    )
    if lost := [result for result in scored if not isinstance(result, Scored)]:
        raise RuntimeError(f"a completion was not scored: {lost[0]}")
    return [(result.value, result.detail["verdicts"]) for result in scored]


@dataclass(frozen=True)
class Arm:
    """What a scheme gave and what it took; `at_once` is the most requests that were open at a time."""

    results: list[Result]
    structure_calls: int
    judge_calls: int
    at_once: int
    seconds: float


def measured(url: str, work: Any) -> Arm:
    """Run a scheme; the requests are those that arrived at the server meanwhile."""
    get_json(f"{url}/counts")  # which sets them to 0
    results, seconds, _ = harness.timed(work)
    return Arm(results, **get_json(f"{url}/counts")[1], seconds=seconds)


# The server, in a process of its own, so that it does not compete for the interpreter with its clients.


@contextmanager
def server(table: dict[str, str], latency: float) -> Iterator[str]:
    """Serve on a free local port; yields the base URL."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(table, latency, there), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}/v1"
    finally:
        process.terminate()
        process.join()


def serve(table: dict[str, str], latency: float, port: Connection) -> None:
    slots = threading.Semaphore(CONCURRENCY)
    lock = threading.Lock()
    nothing = {"structure_calls": 0, "judge_calls": 0, "at_once": 0}
    counted, in_flight = dict(nothing), 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *arguments: Any) -> None:
            pass

        def reply(self, status: int, body: Any) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            if self.path.endswith("/counts"):
                with lock:
                    self.reply(200, counted)
                    counted.update(nothing)
            else:
                self.reply(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})

        def do_POST(self) -> None:
            nonlocal in_flight
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                counted["judge_calls" if body.get("logprobs") else "structure_calls"] += 1
                in_flight += 1
                counted["at_once"] = max(counted["at_once"], in_flight)
            with slots:
                time.sleep(latency)
            with lock:
                in_flight -= 1
            text = table.get(body["messages"][-1]["content"])
            if text is None:
                self.reply(400, {"error": {"message": "no reply is written down for this prompt"}})
            else:
                self.reply(200, chat_completion(text, with_logprobs=bool(body.get("logprobs"))))

    class ReplyServer(ThreadingHTTPServer):
        daemon_threads = True
        # Python's default of 5 drops a burst of connections, and each dropped one waits a second to try again.
        request_queue_size = 4 * CONCURRENCY

    http = ReplyServer(("127.0.0.1", 0), Handler)
    port.send(http.server_port)
    http.serve_forever()


def chat_completion(text: str, *, with_logprobs: bool) -> dict[str, Any]:
    """An answer in OpenAI's form; log-probabilities put nine tenths on the reply, the rest on its opposite."""
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    if with_logprobs:
        top = [{"token": text, "logprob": -0.105}, {"token": "No" if text == "Yes" else "Yes", "logprob": -2.303}]
        choice["logprobs"] = {"content": [{"token": text, "logprob": -0.105, "top_logprobs": top}]}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": MODEL, "choices": [choice]}


if __name__ == "__main__":
    sys.exit(main())
