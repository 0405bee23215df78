"""Candidates for questions: brought along, or written by a teacher, freely or along the paths of a bank.

What *writers* there are, in any combination; a question's candidates stand in the order in which they are named:

    ready    the rationales that the rows bring along
    free     N worked solutions in free form
    steps    N step-keyed solutions
    bank     N step-keyed solutions along the paths of a bank, by the same request (D-RPC, arXiv 2605.07139)

A first-pass request never holds the gold answer. With `hinted_retry`, a question to which no candidate has the right
answer is asked once more with the answer as a hint; what comes of it has the source `hinted`.

The bank grows while it is used, so questions are worked on in *waves*: within one the bank stands still, after it the
right answers are entered in the order of the questions. So the result does not depend on which answer came first, and
a run that starts again from its journal takes the same way.

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rlkd.answers import equal_pairs
from rlkd.engines import Sampling, run
from rlkd.engines.base import Message
from rlkd.errors import UsageError
from rlkd.rationales.records import Candidate, Question, candidate
from rlkd.rationales.write.journal import Answer, Request, Teacher
from rlkd.rationales.write.prompts import SCHEMA, Plan, StepReply, free_prompt, hinted_prompt, read_reply, step_prompt
from rlkd.registry import suggestion

if TYPE_CHECKING:
    from rlkd.embedders import Embedder
    from rlkd.rationales.bank.bank import PathBank
    from rlkd.rationales.bank.entries import RouteEntry
    from rlkd.rationales.bank.routing import Coverage, Route, Router

logger = logging.getLogger(__name__)

WRITERS = ("ready", "free", "steps", "bank")
# What a writer's requests are called in the journal and in the counts.
_STAGES = {"free": "free", "steps": "steps", "bank": "guided"}
# Questions that are routed before few paths offered are worth a word while the run goes on.
EARLY = 50
SEEDS_AT_ONCE = 256
# No answer is as long, and comparing what is takes a worker all its time. Characters.
_LONGEST_ANSWER = 500


@dataclass(frozen=True)
class Writing:
    """How candidates come about.

    `writers` and `hinted_retry` as above; `candidates` is N. `temperature` 0 makes the N candidates of a writer equal,
    so more than one need a positive one. `wave` questions are written between two looks at the bank.

    Of the bank: `seed_share` of the questions (proportional to the column `category`, where there is one) get a
    step-keyed solution first, from which the bank is made; `paths_offered` of its paths are shown to the teacher.
    `faithful` is the released method where it differs from ours: one candidate at temperature 0, the best path only,
    however far it is from the question, a bank without a bound, questions one by one; it overrides what is said here.
    """

    writers: tuple[str, ...] = ("bank",)
    candidates: int = 1
    temperature: float = 0.7
    top_p: float = 1.0
    max_new_tokens: int = 512
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

    @property
    def asks(self) -> bool:
        """Whether a teacher is asked at all."""
        return self.hinted_retry or any(name != "ready" for name in self.writers)

    def sampling(self, *, steps: bool) -> Sampling:
        """How the teacher writes; `steps`: a step-keyed reply."""
        return Sampling(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            json_schema=SCHEMA if steps else None,
        )


@dataclass(frozen=True)
class Discarded:
    """A candidate that was not taken in, and why."""

    question_id: str
    candidate: Candidate
    reason: str


@dataclass
class Counts:
    """What came of the writing, so far. The same for a run in one go and one that was interrupted."""

    questions: int = 0
    requests: Counter[str] = field(default_factory=Counter)  # by stage
    tokens: Counter[str] = field(default_factory=Counter)  # written, by stage
    prompt_characters: Counter[str] = field(default_factory=Counter)  # by stage
    failed: Counter[str] = field(default_factory=Counter)  # by stage
    cut: int = 0  # stopped at max_new_tokens
    unusable: int = 0  # no step-keyed reply; kept as text
    candidates: Counter[str] = field(default_factory=Counter)  # by source
    discarded: Counter[str] = field(default_factory=Counter)  # by reason
    right: int = 0  # candidates of questions with a gold answer
    wrong: int = 0
    barred: Counter[str] = field(default_factory=Counter)  # right answers kept from the bank, by reason

    def to_json(self) -> dict[str, Any]:
        """The counts as JSON, keys sorted."""
        return {
            name: dict(sorted(value.items())) if isinstance(value, Counter) else value
            for name, value in vars(self).items()
        }


@dataclass(frozen=True)
class _Asked:
    """A request to the teacher: of which question of the wave, for what kind of reply, along which plan."""

    place: int
    number: int
    prompt: list[Message]
    steps: bool
    plan: Plan | None = None


@dataclass(frozen=True)
class _Written:
    """A candidate on its way, with what the bank wants to know of it."""

    candidate: Candidate
    reply: StepReply | None = None
    plan: Plan | None = None
    feeds: bool = False
    late: bool = False


class Writer:
    """Writes candidates for questions; `write` gives them one after another.

    `teacher` may be None where nobody is asked, `embedder` where no bank is used. `bank_size` bounds the paths of the
    bank, and `route_threshold` is put in place of the embedder's. A `bank` that is given is used in place of a seed
    round; it brings its own bound and threshold, so what is said here must be the same. `advance` is told how many
    requests are done. Raises `UsageError` for what does not go together.
    """

    def __init__(
        self,
        settings: Writing,
        teacher: Teacher | None = None,
        *,
        embedder: Embedder | None = None,
        bank: PathBank | None = None,
        bank_size: int | None = 75,
        route_threshold: float | None = None,
        advance: Callable[[int], object] = lambda count: None,
    ):
        if settings.asks and teacher is None:
            raise UsageError(f"writers {', '.join(settings.writers)} need a teacher: --teacher SPEC names one")
        if "bank" in settings.writers and embedder is None:
            raise UsageError("the writer 'bank' needs an embedder: --embedder hashed-ngrams")
        if "bank" in settings.writers and embedder is not None:
            _check_bank(settings, embedder, bank, bank_size, route_threshold)
        self.settings = settings
        self.teacher = teacher
        self.embedder = embedder
        self.bank = bank
        self.bank_size = bank_size
        self.route_threshold = route_threshold
        self.advance = advance
        self.counts = Counts()
        self.routes: list[Route] = []
        self.paths_used: list[tuple[str, ...]] = []
        self._router: tuple[int, Router] | None = None
        self._seeds: dict[str, _Written] = {}

    def requests_expected(self, questions: int) -> int:
        """About how many requests there will be for so many questions, hinted ones aside."""
        return questions * self.settings.candidates * sum(name != "ready" for name in self.settings.writers)

    def write(self, questions: Sequence[Question]) -> Iterator[tuple[Question, list[Discarded]]]:
        """Each question with its candidates, in order, and what was discarded.

        The candidates that questions come with are those of the writer `ready`. Raises `UsageError` where the teacher
        fails too often.
        """
        if "bank" in self.settings.writers and self.bank is None:
            self.bank = self._seed_bank(questions)
        for start in range(0, len(questions), self.settings.wave):
            yield from self._wave(questions[start : start + self.settings.wave])
        if self.teacher is not None:
            self.teacher.check()

    def coverage(self) -> Coverage | None:
        """How many questions were offered a path, and how varied the written ones are; None without a bank."""
        from rlkd.rationales.bank.routing import coverage

        return coverage(self.routes, self.paths_used) if self.routes else None

    def _seed_bank(self, questions: Sequence[Question]) -> PathBank:
        """Solutions of the seed set, and the bank that is made of the right ones. They stay as candidates."""
        from rlkd.rationales.bank.bank import PathBank
        from rlkd.rationales.bank.thresholds import thresholds_for

        assert self.embedder is not None
        chosen = seed_set(questions, self.settings.seed_share, self.settings.category, self.settings.seed)
        seeds = [question for question in questions if question.id in chosen]
        entries = []
        for start in range(0, len(seeds), SEEDS_AT_ONCE):
            part = seeds[start : start + SEEDS_AT_ONCE]
            asked = [_Asked(place, 0, step_prompt(question.question), True) for place, question in enumerate(part)]
            found = self._ask("seed", part, asked)
            for question, written, verdicts in zip(part, found, _verdicts(part, found), strict=True):
                for each, is_right in zip(written, verdicts, strict=True):
                    if is_right and each.feeds and (entry := self._entry(question, each)) is not None:
                        entries.append(entry)
                    # Once is enough, and a late one never was.
                    self._seeds[question.id] = replace(each, feeds=False)
        if not entries:
            logger.warning(
                "none of the %d seed solutions is both right and usable: the bank begins empty, and no question is "
                "offered a path until some are right. Raise seed_share, or take a stronger teacher.",
                len(seeds),
            )
        thresholds = thresholds_for(self.embedder, entries)
        if self.route_threshold is not None:
            thresholds = replace(thresholds, route=self.route_threshold)
        faithful = self.settings.faithful
        cap = None if faithful else self.bank_size
        return PathBank.from_seed(entries, self.embedder, thresholds=thresholds, faithful=faithful, cap=cap)

    def _wave(self, questions: Sequence[Question]) -> Iterator[tuple[Question, list[Discarded]]]:
        found: list[list[_Written]] = [[] for _ in questions]
        plans: list[Plan | None] = [None] * len(questions)
        for writer in self.settings.writers:
            if writer == "ready":
                for written, question in zip(found, questions, strict=True):
                    written += map(_Written, question.candidates)
                continue
            if writer == "bank":
                plans = self._plans(questions)
            asked = []
            for place, question in enumerate(questions):
                first = 0
                if writer == "bank":
                    first = 0 if self._is_open(question) else 1
                    found[place] += [self._seeds.pop(question.id)] if question.id in self._seeds else []
                plan = plans[place] if writer == "bank" else None
                for number in range(first, self.settings.candidates):
                    asked.append(_Asked(place, number, _prompt(writer, question, plan), writer != "free", plan))
            for written, new in zip(found, self._ask(_STAGES[writer], questions, asked), strict=True):
                written += new
        verdicts = _verdicts(questions, found)
        if self.settings.hinted_retry:
            self._retry(questions, plans, found, verdicts)
        for question, written, right in zip(questions, found, verdicts, strict=True):
            self._feed(question, written, right)
            yield self._finished(question, written, right)
        if self.bank is not None and self.embedder is not None:
            self.bank.flush(self.embedder)

    def _plans(self, questions: Sequence[Question]) -> list[Plan | None]:
        """What the bank offers for each question, None where nothing is near enough."""
        from rlkd.rationales.bank.routing import Router

        assert self.bank is not None
        assert self.embedder is not None
        if self._router is None or self._router[0] != self.bank.generation:
            self._router = self.bank.generation, Router(self.bank, self.embedder)
        routes = self._router[1].route([question.question for question in questions], self.settings.paths_offered)
        before = len(self.routes)
        # Of those that nothing is asked along a plan, the seed solution being all they need, the bank has no merit.
        asked = [self.settings.candidates > 1 or self._is_open(question) for question in questions]
        self.routes += [route for route, is_asked in zip(routes, asked, strict=True) if is_asked]
        if before < EARLY <= len(self.routes) and (coverage := self.coverage()) and (message := coverage.message()):
            logger.warning("%s", message)
        return [
            Plan(route.category or "", route.intent or "", route.difficulty or 2, route.budget or 3, route.paths)
            if route.offered
            else None
            for route in routes
        ]

    def _is_open(self, question: Question) -> bool:
        """Whether the first of its N solutions is still to be asked for: its seed solution is not there, or came late,
        when another one had taken its place, which may have fed the bank."""
        seed = self._seeds.get(question.id)
        return seed is None or seed.late

    def _retry(
        self,
        questions: Sequence[Question],
        plans: Sequence[Plan | None],
        found: list[list[_Written]],
        verdicts: list[list[bool]],
    ) -> None:
        """Ask once more, with the answer as a hint, where nothing is right; adds to `found` and `verdicts`."""
        manner = next((name for name in reversed(self.settings.writers) if name != "ready"), "free")
        asked = []
        for place, question in enumerate(questions):
            if question.answer is not None and not any(verdicts[place]):
                first = _prompt(manner, question, plans[place])
                prompt = hinted_prompt(first, question.answer)
                asked.append(_Asked(place, 0, prompt, manner != "free", plans[place]))
        retried = self._ask("hinted", questions, asked)
        for place, right in enumerate(_verdicts(questions, retried)):
            found[place] += retried[place]
            verdicts[place] += right

    def _ask(self, stage: str, questions: Sequence[Question], asked: Sequence[_Asked]) -> list[list[_Written]]:
        """What the teacher writes, by question; a request that failed is left out and counted."""
        results: list[list[_Written]] = [[] for _ in questions]
        if not asked:
            return results
        assert self.teacher is not None
        requests = []
        for each in asked:
            sampling = self.settings.sampling(steps=each.steps)
            requests.append(Request(questions[each.place].id, stage, each.number, list(each.prompt), sampling))
        answers = run(self.teacher.ask(requests, self.advance))
        for each, answer in zip(asked, answers, strict=True):
            self.counts.requests[stage] += 1
            self.counts.prompt_characters[stage] += sum(len(message["content"]) for message in each.prompt)
            if answer.completion is None:
                self.counts.failed[stage] += 1
                continue
            results[each.place].append(self._written(stage, questions[each.place], each, answer))
        return results

    def _written(self, stage: str, question: Question, asked: _Asked, answer: Answer) -> _Written:
        assert answer.completion is not None
        # Half a surrogate pair, which a model can write, has no place in a file.
        text = answer.completion.text.encode("utf-8", "replace").decode()
        completion = answer.completion
        self.counts.tokens[stage] += completion.n_tokens
        self.counts.cut += completion.finish_reason == "length"
        reply = read_reply(text) if asked.steps else None
        source = "hinted" if stage == "hinted" else "generated"
        if reply is None:
            self.counts.unusable += asked.steps
            made = candidate(question.id, text.strip(), source, tokens=completion.n_tokens)
            return _Written(made, plan=asked.plan, late=answer.late)
        if source != "hinted" and asked.plan is not None and reply.path in asked.plan.paths:
            source = "bank"
        self.paths_used.append(reply.path)
        made = candidate(
            question.id,
            reply.text(),
            source,
            path=reply.path,
            structure=reply.structure(),
            tokens=completion.n_tokens,
        )
        feeds = source != "hinted" and not answer.late
        return _Written(made, reply, asked.plan, feeds=feeds, late=answer.late)

    def _feed(self, question: Question, written: Sequence[_Written], right: Sequence[bool]) -> None:
        """Enter the paths of a question that led to the right answer; each path once, and wrong ones never."""
        if self.bank is None:
            return
        entered = set()
        for each, is_right in zip(written, right, strict=True):
            if is_right and each.feeds and each.candidate.path not in entered:
                entered.add(each.candidate.path)
                if (entry := self._entry(question, each)) is not None:
                    self.bank.record(entry)

    def _entry(self, question: Question, written: _Written) -> RouteEntry | None:
        """What a right solution tells the bank; None where it breaks the contract, which is counted."""
        from rlkd.rationales.bank.entries import RouteEntry, violations

        reply, plan = written.reply, written.plan
        if reply is None:
            return None
        entry = RouteEntry(
            question_id=question.id,
            question=question.question,
            # A plan's category, intent and budget stand, whatever the teacher makes of them.
            category=plan.category if plan else reply.category or "",
            intents=(plan.intent,) if plan else reply.intents,
            difficulty=plan.difficulty if plan else reply.difficulty or 0,
            budget=plan.budget if plan else reply.budget or 0,
            path=reply.path,
            correct=True,
        )
        broken = violations(entry, offered_budget=plan.budget if plan else None)
        if self.settings.faithful and entry.category and entry.intents:
            broken = []  # the released code looks at the answer only
        # Without the values, so that equal causes are counted together.
        self.counts.barred.update(re.sub(r"'.*?'|\d+|(?<=names ).*", "...", reason) for reason in broken[:1])
        return None if broken else entry

    def _finished(
        self, question: Question, written: Sequence[_Written], right: Sequence[bool]
    ) -> tuple[Question, list[Discarded]]:
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
                self.counts.wrong += question.answer is not None and not is_right
            else:
                discarded.append(Discarded(question.id, each.candidate, reason))
                self.counts.discarded[reason] += 1
        return replace(question, candidates=tuple(kept.values())), discarded


def seed_set(
    questions: Sequence[Question], share: float, category: str | None = None, seed: int = 42
) -> frozenset[str]:
    """Ids of the questions from which a bank is made: `share` of them, at least one, each category its part.

    Parts are rounded by largest remainder. Which questions of a category are drawn is decided by a hash of seed and
    id, so neither the order nor other categories matter (our choice; the released code draws with a generator).
    Raises `UsageError` where no question has a column of that name.
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


def _prompt(writer: str, question: Question, plan: Plan | None) -> list[Message]:
    return free_prompt(question.question) if writer == "free" else step_prompt(question.question, plan)


def _check_bank(
    settings: Writing, embedder: Embedder, bank: PathBank | None, size: int | None, threshold: float | None
) -> None:
    """Raise `UsageError` for a bank that cannot be made with these settings, or that has others."""
    from rlkd.rationales.bank.bank import BankRules
    from rlkd.rationales.bank.thresholds import Thresholds

    asked = {} if threshold is None else {"route": threshold}
    try:
        thresholds = replace(Thresholds(), **asked)
        if settings.faithful:
            rules = BankRules(embedder.name, thresholds, faithful=True, cap=None, support=1)
        else:
            rules = BankRules(embedder.name, thresholds, cap=size)
        if bank is not None:
            bank.check_rules(faithful=settings.faithful, cap=rules.cap, **asked)
    except ValueError as error:
        told = f"bank_size={size}, route_threshold={threshold}, faithful={settings.faithful}"
        raise UsageError(f"{told}: {error}") from error


def _verdicts(questions: Sequence[Question], found: Sequence[Sequence[_Written]]) -> list[list[bool]]:
    """Whether each candidate's answer is right; false where that cannot be said."""
    answers = [[each.candidate.answer or "" for each in written] for written in found]
    pairs = [
        (answer if len(answer) <= _LONGEST_ANSWER else "", question.answer or "")
        for question, of_question in zip(questions, answers, strict=True)
        for answer in of_question
    ]
    verdicts = iter(equal_pairs(pairs))
    return [[next(verdicts) is True for _ in written] for written in found]
