"""Drafts of requests for candidates: sent to the teacher, and read into candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlkd.answers import equal_pairs
from rlkd.engines import Contrast, run
from rlkd.engines.base import Message
from rlkd.programs import last_program
from rlkd.rationales.records import Candidate, Question, candidate, storable
from rlkd.rationales.select.correct import MAX_ANSWER
from rlkd.rationales.write.counts import WritingCounts
from rlkd.rationales.write.prompts import StepReply, read_reply
from rlkd.rationales.write.teacher import Answer, RationaleTeacher, Request
from rlkd.rationales.write.writing import CONTRASTIVE, Writing

if TYPE_CHECKING:
    from rlkd.rationales.bank.routing import Route

# The source of a candidate by its stage; others are `generated`.
_SOURCES = {name: name for name in ("hinted", "program", "student", *CONTRASTIVE)}


@dataclass(frozen=True)
class Draft:
    """A request for a candidate: index of its question in the wave, kind of reply, plan."""

    index: int
    number: int
    prompt: list[Message]
    steps: bool
    plan: Route | None = None
    away: tuple[list[Message], Contrast] | None = None


@dataclass(frozen=True)
class WrittenDraft:
    """A candidate with its reply and plan. `feeds`: whether its path may enter the bank; `late`: see `Answer`."""

    candidate: Candidate
    reply: StepReply | None = None
    plan: Route | None = None
    feeds: bool = False
    late: bool = False


class DraftSender:
    """Sends drafts to the teacher, those of the stage `student` to the student, and counts what comes back.

    Calls `advance` with the number of requests that are done. `paths_used`: the path of each step-keyed reply.
    """

    def __init__(
        self,
        settings: Writing,
        counts: WritingCounts,
        teacher: RationaleTeacher | None,
        student: RationaleTeacher | None,
        advance: Callable[[int], object],
    ):
        self.settings, self.counts = settings, counts
        self.teacher, self.student, self.advance = teacher, student, advance
        self.paths_used: list[tuple[str, ...]] = []

    def send(self, stage: str, questions: Sequence[Question], drafts: Sequence[Draft]) -> list[list[WrittenDraft]]:
        """The teacher's candidates by question; failed requests are left out and counted."""
        results: list[list[WrittenDraft]] = [[] for _ in questions]
        if not drafts:
            return results
        teacher = self.student if stage == "student" else self.teacher
        assert teacher is not None
        sampling = {steps: self.settings.sampling(steps=steps) for steps in (False, True)}
        requests = [
            Request(questions[each.index].id, stage, each.number, list(each.prompt), sampling[each.steps], each.away)
            for each in drafts
        ]
        answers = run(teacher.ask(requests, self.advance))
        for each, answer in zip(drafts, answers, strict=True):
            self.counts.requests[stage] += 1
            self.counts.prompt_characters[stage] += sum(len(message["content"]) for message in each.prompt)
            if answer.completion is None:
                self.counts.failed[stage] += 1
            else:
                results[each.index].append(self._written(stage, questions[each.index], each, answer))
        return results

    def _written(self, stage: str, question: Question, draft: Draft, answer: Answer) -> WrittenDraft:
        assert answer.completion is not None
        completion = answer.completion
        text = storable(completion.text)
        self.counts.tokens[stage] += completion.n_tokens
        self.counts.truncated += completion.finish_reason == "length"
        program = last_program(text) if stage == "program" else None
        if program is not None:  # without the words around it
            text = f"```python\n{program.rstrip()}\n```"
        reply = read_reply(text) if draft.steps else None
        source = _SOURCES.get(stage, "generated")
        if reply is None:
            self.counts.unusable += draft.steps
            plain = candidate(question.id, text.strip(), source, tokens=completion.n_tokens)
            return WrittenDraft(plain, plan=draft.plan, late=answer.late)
        if source != "hinted" and draft.plan is not None and reply.path in draft.plan.paths:
            source = "bank"
        self.paths_used.append(reply.path)
        known = {"path": reply.path, "structure": reply.structure(), "tokens": completion.n_tokens}
        feeds = source != "hinted" and not answer.late
        keyed = candidate(question.id, reply.text(), source, **known)
        return WrittenDraft(keyed, reply, draft.plan, feeds=feeds, late=answer.late)


def verdicts(questions: Sequence[Question], written: Sequence[Sequence[WrittenDraft]]) -> list[list[bool]]:
    """Whether each candidate's answer is right; False if that is unknown."""
    answers = [[each.candidate.answer or "" for each in own] for own in written]
    pairs = [
        (answer if len(answer) <= MAX_ANSWER else "", question.answer or "")
        for question, own in zip(questions, answers, strict=True)
        for answer in own
    ]
    right = iter(equal_pairs(pairs))
    return [[next(right) is True for _ in own] for own in written]
