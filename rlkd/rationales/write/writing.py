"""Candidates for questions: brought by the rows, or written by a teacher, freely or along the paths of a bank.

`docs/rationales.md` lists the writers; `bank` is D-RPC's (arXiv 2605.07139). A first-pass request never contains the
gold answer. With `hinted_retry`, a question for which no candidate has the right answer is sent once more with the
answer as a hint; these candidates have the source `hinted`.

The bank grows while it is used, so questions are processed in *waves*: during a wave the bank does not change; after
it the right answers are entered in the order of the questions. So the result does not depend on which answer came
first.

    >>> questions = [Question(f"q{i}", "?", columns={"topic": "ab"[i % 2]}) for i in range(40)]
    >>> len(seed_set(questions, 0.1, "topic"))
    4
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rlkd.answers import equal_pairs
from rlkd.data.rows import build_prompt
from rlkd.data.samples import few_shot_examples
from rlkd.engines import Contrast, Sampling, run
from rlkd.engines.base import Message
from rlkd.errors import UsageError
from rlkd.programs import last_program
from rlkd.rationales.records import Candidate, DroppedCandidate, Question, candidate, storable
from rlkd.rationales.select.correct import MAX_ANSWER
from rlkd.rationales.write.contrast import contrasted_prompts
from rlkd.rationales.write.prompts import (
    SCHEMA,
    StepReply,
    free_prompt,
    hinted_prompt,
    program_prompt,
    read_reply,
    step_prompt,
)
from rlkd.rationales.write.teacher import Answer, RationaleTeacher, Request, check_contrast
from rlkd.registry import suggestion

if TYPE_CHECKING:
    from rlkd.embedders import Embedder
    from rlkd.rationales.bank.bank import PathBank
    from rlkd.rationales.bank.entries import RouteEntry
    from rlkd.rationales.bank.routing import Coverage, Route, Router

logger = logging.getLogger(__name__)

CONTRASTIVE = ("contrast", "counterfactual")
WRITERS = ("ready", "free", "steps", "bank", "program", "student", *CONTRASTIVE)
# Writers without a request to the teacher.
_OTHERS = ("ready", "student")
# The stage of a writer's requests in the journal and in the counts.
_STAGES = {
    "free": "free",
    "steps": "steps",
    "bank": "guided",
    "program": "program",
    "student": "student",
    **{name: name for name in CONTRASTIVE},
}
# The source of a candidate by its stage; others are `generated`.
_SOURCES = {name: name for name in ("hinted", "program", "student", *CONTRASTIVE)}
# Routed questions after which a low share of offered paths is reported during the run.
EARLY = 50
SEEDS_AT_ONCE = 256


@dataclass(frozen=True)
class Writing:
    """Settings of the writing.

    `candidates` is a number per question and writer; `wave` is the number of questions between two updates of the
    bank. `seed_share` of the questions (proportional to the column `category`, if there is one) get a step-keyed
    rationale first, from which the bank is made; `paths_offered` of its paths are shown to the teacher. `faithful` is
    the released method where it differs from ours (`docs/rationales.md`); it overrides other settings. Keys that begin
    with `contrast` are of the contrastive writers. Raises `UsageError` for values out of range.
    """

    writers: tuple[str, ...] = ("bank",)
    candidates: int = 1
    temperature: float = 0.7
    top_p: float = 1.0
    max_new_tokens: int = 512
    contrast_weight: float = 0.5
    contrast_plausibility: float = 0.1
    contrast_answer: str = "wrong"
    hinted_retry: bool = False
    wave: int = 32
    faithful: bool = False
    seed_share: float = 0.05
    paths_offered: int = 3
    category: str | None = None
    seed: int = 42

    def __post_init__(self) -> None:
        unknown = [name for name in self.writers if name not in WRITERS]
        if unknown or not self.writers or len(set(self.writers)) < len(self.writers):
            raise UsageError(f"writers={list(self.writers)}: expected one or more of {', '.join(WRITERS)}, each once")
        if self.faithful:
            for name, value in {"candidates": 1, "temperature": 0.0, "wave": 1, "paths_offered": 1}.items():
                object.__setattr__(self, name, value)
        for name in ("candidates", "wave", "paths_offered"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.hinted_retry and "program" in self.writers:
            raise UsageError(
                "hinted_retry looks for a right answer among the written ones, and a program has none before the "
                "selector 'program' runs it: leave one of the two out"
            )
        if self.contrast_answer not in ("wrong", "empty"):
            raise UsageError(f"contrast_answer={self.contrast_answer!r}: expected wrong or empty")
        if not 0 < self.seed_share <= 1:
            raise UsageError(f"seed_share={self.seed_share}: expected a share above 0 and up to 1")
        if set(self.writers) - {"ready"} and self.candidates > 1 and self.temperature == 0:
            raise UsageError(
                f"candidates={self.candidates} with temperature 0 would be {self.candidates} times the same text: set "
                f"a temperature above 0, or candidates 1"
            )
        try:
            self.sampling(steps=True)
        except ValueError as error:
            raise UsageError(str(error)) from error
        try:
            self.contrast()
        except ValueError as error:
            raise UsageError(f"contrast_{error}") from error

    @property
    def needs_teacher(self) -> bool:
        """Whether any request goes to a teacher."""
        return self.hinted_retry or any(name not in _OTHERS for name in self.writers)

    def sampling(self, *, steps: bool) -> Sampling:
        """The teacher's sampling; `steps`: for a step-keyed reply."""
        return Sampling(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            json_schema=SCHEMA if steps else None,
        )

    def contrast(self) -> Contrast:
        """How the contrastive writers decode."""
        return Contrast(self.contrast_weight, self.contrast_plausibility)


@dataclass
class WritingCounts:
    """Counts of the writing so far: the same for an interrupted run and one without interruption."""

    questions: int = 0
    requests: Counter[str] = field(default_factory=Counter)  # by stage
    tokens: Counter[str] = field(default_factory=Counter)  # written, by stage
    prompt_characters: Counter[str] = field(default_factory=Counter)  # by stage
    failed: Counter[str] = field(default_factory=Counter)  # by stage
    truncated: int = 0  # at max_new_tokens
    unusable: int = 0  # not a step-keyed reply; kept as text
    candidates: Counter[str] = field(default_factory=Counter)  # by source
    discarded: Counter[str] = field(default_factory=Counter)  # by reason
    right: int = 0  # candidates of questions with a gold answer
    wrong: int = 0
    barred: Counter[str] = field(default_factory=Counter)  # right answers kept out of the bank, by reason

    def to_json(self) -> dict[str, Any]:
        """The counts as JSON, keys sorted."""
        return {
            name: dict(sorted(value.items())) if isinstance(value, Counter) else value
            for name, value in vars(self).items()
        }


@dataclass(frozen=True)
class _Draft:
    """A request for a candidate: index of its question in the wave, kind of reply, plan."""

    index: int
    number: int
    prompt: list[Message]
    steps: bool
    plan: Route | None = None
    away: tuple[list[Message], Contrast] | None = None


@dataclass(frozen=True)
class _Written:
    """A candidate with its reply and plan. `feeds`: whether its path may enter the bank; `late`: see `Answer`."""

    candidate: Candidate
    reply: StepReply | None = None
    plan: Route | None = None
    feeds: bool = False
    late: bool = False


class Writer:
    """Writes candidates for questions; `write` yields them one by one.

    `teacher` may be None if no writer needs one, `embedder` if no bank is used. `student` is the teacher's counterpart
    for the writer `student`; `prompt_style` (`system_prompt` and `examples`) is that of its training. `bank_size` is
    the cap of the bank, `route_threshold` replaces the embedder's. A given `bank` replaces the seed round; its own cap
    and threshold must be these. Calls `advance` with the number of requests that are done. Raises `UsageError` for
    settings that contradict each other.
    """

    def __init__(
        self,
        settings: Writing,
        teacher: RationaleTeacher | None = None,
        *,
        student: RationaleTeacher | None = None,
        prompt_style: Mapping[str, Any] | None = None,
        embedder: Embedder | None = None,
        bank: PathBank | None = None,
        bank_size: int | None = 75,
        route_threshold: float | None = None,
        advance: Callable[[int], object] = lambda count: None,
    ):
        if settings.needs_teacher and teacher is None:
            raise UsageError(f"writers {', '.join(settings.writers)} need a teacher: --teacher SPEC names one")
        if "student" in settings.writers and student is None:
            raise UsageError("the writer 'student' needs the student: --student SPEC names it")
        if teacher is not None and set(CONTRASTIVE) & set(settings.writers):
            check_contrast(teacher.engine)
        if "bank" in settings.writers:
            if embedder is None:
                raise UsageError("the writer 'bank' needs an embedder: --embedder hashed-ngrams")
            _check_bank(settings, embedder, bank, bank_size, route_threshold)
        self.settings, self.teacher, self.advance = settings, teacher, advance
        self.student, self.prompt_style = student, dict(prompt_style or {})
        self.embedder, self.bank = embedder, bank
        self.bank_size = None if settings.faithful else bank_size
        self.route_threshold = route_threshold
        self.counts = WritingCounts()
        self.routes: list[Route] = []
        self.paths_used: list[tuple[str, ...]] = []
        self._router: Router | None = None
        self._seeds: dict[str, _Written] = {}

    def requests_expected(self, questions: int) -> int:
        """The approximate number of requests for a number of questions, without hinted ones."""
        return questions * self.settings.candidates * sum(name != "ready" for name in self.settings.writers)

    def write(self, questions: Sequence[Question]) -> Iterator[tuple[Question, list[DroppedCandidate]]]:
        """Each question with its candidates, in order, and the discarded ones.

        Raises `UsageError` if too many requests fail.
        """
        if "bank" in self.settings.writers and self.bank is None:
            self.bank = self._seed_bank(questions)
        for start in range(0, len(questions), self.settings.wave):
            yield from self._wave(questions[start : start + self.settings.wave])
        for each in (self.teacher, self.student):
            if each is not None:
                each.check()

    def coverage(self) -> Coverage | None:
        """The share of questions with an offered path, and the variety of the written ones; None without a bank."""
        from rlkd.rationales.bank.routing import coverage

        return coverage(self.routes, self.paths_used) if self.routes else None

    def _seed_bank(self, questions: Sequence[Question]) -> PathBank:
        """Write rationales for the seed set, and make the bank from the right ones. They remain candidates."""
        from rlkd.rationales.bank.bank import PathBank
        from rlkd.rationales.bank.thresholds import thresholds_for

        assert self.embedder is not None
        chosen = seed_set(questions, self.settings.seed_share, self.settings.category, self.settings.seed)
        seeds = [question for question in questions if question.id in chosen]
        entries = []
        for start in range(0, len(seeds), SEEDS_AT_ONCE):
            part = seeds[start : start + SEEDS_AT_ONCE]
            drafts = [_Draft(index, 0, step_prompt(question.question), True) for index, question in enumerate(part)]
            written = self._ask("seed", part, drafts)
            for question, own, verdicts in zip(part, written, _verdicts(part, written), strict=True):
                for each, is_right in zip(own, verdicts, strict=True):
                    if is_right and each.feeds and (entry := self._entry(question, each)) is not None:
                        entries.append(entry)
                    # It enters the bank once, and never if it came late.
                    self._seeds[question.id] = replace(each, feeds=False)
        if not entries:
            logger.warning(
                "none of the %d seed rationales is both right and usable: the bank begins empty, and no question is "
                "offered a path until some are right. Raise seed_share, or use a stronger teacher.",
                len(seeds),
            )
        thresholds = thresholds_for(self.embedder, entries)
        if self.route_threshold is not None:
            thresholds = replace(thresholds, route=self.route_threshold)
        rules: dict[str, Any] = {"faithful": self.settings.faithful, "cap": self.bank_size}
        return PathBank.from_seed(entries, self.embedder, thresholds=thresholds, **rules)

    def _wave(self, questions: Sequence[Question]) -> Iterator[tuple[Question, list[DroppedCandidate]]]:
        written: list[list[_Written]] = [[] for _ in questions]
        plans: list[Route | None] = [None] * len(questions)
        for writer in self.settings.writers:
            if writer == "ready":
                for own, question in zip(written, questions, strict=True):
                    own += map(_Written, question.candidates)
                continue
            if writer == "bank":
                plans = self._plans(questions)
            drafts: list[_Draft] = []
            for index, question in enumerate(questions):
                if writer in CONTRASTIVE:
                    drafts += self._contrasted(writer, index, question)
                    continue
                first, plan = 0, None
                if writer == "bank":
                    first, plan = 0 if self._is_open(question) else 1, plans[index]
                    written[index] += [self._seeds.pop(question.id)] if question.id in self._seeds else []
                for number in range(first, self.settings.candidates):
                    drafts.append(
                        _Draft(index, number, self._prompt(writer, question, plan), writer in ("steps", "bank"), plan)
                    )
            for own, new in zip(written, self._ask(_STAGES[writer], questions, drafts), strict=True):
                own += new
        verdicts = _verdicts(questions, written)
        if self.settings.hinted_retry:
            self._retry(questions, plans, written, verdicts)
        for question, own, right in zip(questions, written, verdicts, strict=True):
            self._feed(question, own, right)
            yield self._finished(question, own, right)
        if self.bank is not None and self.embedder is not None:
            self.bank.flush(self.embedder)

    def _contrasted(self, writer: str, index: int, question: Question) -> Iterator[_Draft]:
        """The drafts of a contrastive writer; none for a question without the answers that it needs."""
        settings = self.settings
        prompts = contrasted_prompts(
            question,
            settings.seed,
            counterfactual=writer == "counterfactual",
            empty=settings.contrast_answer == "empty",
        )
        if prompts is not None:
            for number in range(settings.candidates):
                yield _Draft(index, number, prompts[0], False, away=(prompts[1], settings.contrast()))

    def _prompt(self, writer: str, question: Question, plan: Route | None) -> list[Message]:
        if writer == "student":
            examples = few_shot_examples(self.prompt_style.get("examples", 0))
            return build_prompt(question.question, self.prompt_style.get("system_prompt"), examples)
        if writer == "program":
            return program_prompt(question.question)
        return free_prompt(question.question) if writer == "free" else step_prompt(question.question, plan)

    def _plans(self, questions: Sequence[Question]) -> list[Route | None]:
        """The bank's offer for each question, None if no path is near enough."""
        from rlkd.rationales.bank.routing import Router

        assert self.bank is not None
        assert self.embedder is not None
        if self._router is None or self._router.generation != self.bank.generation:
            self._router = Router(self.bank, self.embedder)
        routes = self._router.route([question.question for question in questions], self.settings.paths_offered)
        before = len(self.routes)
        # A question whose seed rationale is its only candidate sends no request along a plan: it does not count.
        self.routes += [
            route
            for route, question in zip(routes, questions, strict=True)
            if self.settings.candidates > 1 or self._is_open(question)
        ]
        if before < EARLY <= len(self.routes) and (coverage := self.coverage()) and (message := coverage.message()):
            logger.warning("%s", message)
        return [route if route.offered else None for route in routes]

    def _is_open(self, question: Question) -> bool:
        """Whether the first of the N rationales still has to be written: there is no seed rationale, or it came late,
        after another one had replaced it, which may have fed the bank."""
        seed = self._seeds.get(question.id)
        return seed is None or seed.late

    def _retry(
        self,
        questions: Sequence[Question],
        plans: Sequence[Route | None],
        written: list[list[_Written]],
        verdicts: list[list[bool]],
    ) -> None:
        """Retry with the answer as a hint where no candidate is right; adds to `written` and `verdicts`."""
        writer = next((name for name in reversed(self.settings.writers) if name in ("free", "steps", "bank")), "free")
        drafts = []
        for index, question in enumerate(questions):
            if question.answer is not None and not any(verdicts[index]):
                prompt = hinted_prompt(self._prompt(writer, question, plans[index]), question.answer)
                drafts.append(_Draft(index, 0, prompt, writer != "free", plans[index]))
        retried = self._ask("hinted", questions, drafts)
        for index, right in enumerate(_verdicts(questions, retried)):
            written[index] += retried[index]
            verdicts[index] += right

    def _ask(self, stage: str, questions: Sequence[Question], drafts: Sequence[_Draft]) -> list[list[_Written]]:
        """The teacher's candidates by question; failed requests are left out and counted."""
        results: list[list[_Written]] = [[] for _ in questions]
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

    def _written(self, stage: str, question: Question, draft: _Draft, answer: Answer) -> _Written:
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
            return _Written(plain, plan=draft.plan, late=answer.late)
        if source != "hinted" and draft.plan is not None and reply.path in draft.plan.paths:
            source = "bank"
        self.paths_used.append(reply.path)
        known = {"path": reply.path, "structure": reply.structure(), "tokens": completion.n_tokens}
        feeds = source != "hinted" and not answer.late
        keyed = candidate(question.id, reply.text(), source, **known)
        return _Written(keyed, reply, draft.plan, feeds=feeds, late=answer.late)

    def _feed(self, question: Question, written: Sequence[_Written], right: Sequence[bool]) -> None:
        """Enter the paths of a question that led to the right answer; each path once."""
        if self.bank is None:
            return
        entered = set()
        for each, is_right in zip(written, right, strict=True):
            if is_right and each.feeds and each.candidate.path not in entered:
                entered.add(each.candidate.path)
                if (entry := self._entry(question, each)) is not None:
                    self.bank.record(entry)

    def _entry(self, question: Question, written: _Written) -> RouteEntry | None:
        """The bank entry of a right rationale; None if it breaks the contract, which is counted."""
        from rlkd.rationales.bank.entries import RouteEntry, violations

        reply, plan = written.reply, written.plan
        if reply is None:
            return None
        route = reply if plan is None else plan  # the values of a plan hold, whatever the reply says
        intents = reply.intents if plan is None else (plan.intent or "",)
        named = (question.id, question.question, route.category or "", intents)
        entry = RouteEntry(*named, route.difficulty or 0, route.budget or 0, reply.path, correct=True)
        broken = violations(entry, offered_budget=entry.budget if plan else None)
        if self.settings.faithful and entry.category and entry.intents:
            broken = []  # the released code checks the answer only
        # Without the values, so that equal causes are counted together.
        self.counts.barred.update(re.sub(r"'.*?'|\d+|(?<=names ).*", "...", reason) for reason in broken[:1])
        return None if broken else entry

    def _finished(
        self, question: Question, written: Sequence[_Written], right: Sequence[bool]
    ) -> tuple[Question, list[DroppedCandidate]]:
        """The question with its distinct candidates; the first of several with one text stays."""
        self.counts.questions += 1
        kept: dict[str, Candidate] = {}
        discarded = []
        for each, is_right in zip(written, right, strict=True):
            text = each.candidate.text.strip()
            reason = "empty" if not text else "exact duplicate" if text in kept else None
            if reason is None:
                kept[text] = each.candidate
                self.counts.candidates[each.candidate.source] += 1
                self.counts.right += is_right
                # A counterfactual one shall be wrong, and what a program prints is not known yet.
                judged = each.candidate.source not in ("counterfactual", "program")
                self.counts.wrong += judged and question.answer is not None and not is_right
            else:
                discarded.append(DroppedCandidate(question.id, "write", reason, each.candidate))
                self.counts.discarded[reason] += 1
        return replace(question, candidates=tuple(kept.values())), discarded


def seed_set(
    questions: Sequence[Question], share: float, category: str | None = None, seed: int = 42
) -> frozenset[str]:
    """Ids of the questions from which a bank is made: `share` of them, at least one, each category in proportion.

    Parts are rounded by largest remainder. A hash of seed and id draws the questions of a category, so neither the
    order nor other categories matter (our choice; the released code draws with a generator). Raises `UsageError` if no
    question has a column `category`.
    """
    if category and questions and not any(category in question.columns for question in questions):
        names = sorted({name for question in questions for name in question.columns})
        raise UsageError(f"category={category!r}: no question has a column of that name.{suggestion(category, names)}")
    groups: dict[str, list[str]] = {}
    for question in questions:
        groups.setdefault(str(question.columns.get(category)) if category else "", []).append(question.id)
    total = max(1, round(share * len(questions))) if questions else 0
    exact = {name: total * len(ids) / len(questions) for name, ids in groups.items()}
    quota = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(groups, key=lambda name: (quota[name] - exact[name], name))
    for name in by_remainder[: total - sum(quota.values())]:
        quota[name] += 1

    def drawn(question_id: str) -> str:
        return hashlib.sha256(json.dumps([seed, "seed set", question_id]).encode()).hexdigest()

    return frozenset(each for name, ids in groups.items() for each in sorted(ids, key=drawn)[: quota[name]])


def _check_bank(
    settings: Writing, embedder: Embedder, bank: PathBank | None, size: int | None, threshold: float | None
) -> None:
    """Raise `UsageError` if a bank cannot have these settings, or if the given bank has others."""
    from rlkd.rationales.bank.bank import BankRules
    from rlkd.rationales.bank.thresholds import Thresholds

    wanted = {} if threshold is None else {"route": threshold}
    cap = None if settings.faithful else size
    try:
        BankRules(embedder.name, Thresholds(**wanted), cap=cap)
        if bank is not None:
            bank.check_rules(faithful=settings.faithful, cap=cap, **wanted)
    except ValueError as error:
        given = f"bank_size={size}, route_threshold={threshold}, faithful={settings.faithful}"
        raise UsageError(f"{given}: {error}") from error


def _verdicts(questions: Sequence[Question], written: Sequence[Sequence[_Written]]) -> list[list[bool]]:
    """Whether each candidate's answer is right; False if that is unknown."""
    answers = [[each.candidate.answer or "" for each in own] for own in written]
    pairs = [
        (answer if len(answer) <= MAX_ANSWER else "", question.answer or "")
        for question, own in zip(questions, answers, strict=True)
        for answer in own
    ]
    verdicts = iter(equal_pairs(pairs))
    return [[next(verdicts) is True for _ in own] for own in written]
