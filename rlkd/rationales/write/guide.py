"""The bank beside the writing: made from a seed round, offered to questions, fed with right rationales."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rlkd.errors import UsageError
from rlkd.rationales.records import Question
from rlkd.rationales.write.drafts import Draft, DraftSender, WrittenDraft, verdicts
from rlkd.rationales.write.prompts import step_prompt
from rlkd.rationales.write.seeds import seed_set
from rlkd.rationales.write.writing import Writing

if TYPE_CHECKING:
    from rlkd.embedders import Embedder
    from rlkd.rationales.bank.bank import PathBank
    from rlkd.rationales.bank.entries import RouteEntry
    from rlkd.rationales.bank.routing import Coverage, Route, Router

logger = logging.getLogger(__name__)

# Routed questions after which a low share of offered paths is reported during the run.
EARLY = 50
SEEDS_AT_ONCE = 256


class Guide:
    """A bank in use. Arguments as those of `Writer`; raises `UsageError` for a bank that cannot have these settings.

    `routes` are the bank's answers to the questions that were sent along a plan, offered or not.
    """

    def __init__(
        self,
        settings: Writing,
        sender: DraftSender,
        embedder: Embedder | None,
        bank: PathBank | None,
        bank_size: int | None,
        route_threshold: float | None,
    ):
        if "bank" in settings.writers:
            if embedder is None:
                raise UsageError("the writer 'bank' needs an embedder: --embedder hashed-ngrams")
            _check_bank(settings, embedder, bank, bank_size, route_threshold)
        self.settings, self.sender, self.embedder, self.bank = settings, sender, embedder, bank
        self.bank_size = None if settings.faithful else bank_size
        self.route_threshold = route_threshold
        self.routes: list[Route] = []
        self._router: Router | None = None
        self._seeds: dict[str, WrittenDraft] = {}

    def make_bank(self, questions: Sequence[Question]) -> None:
        """Write rationales for the seed set, and make the bank from the right ones. They remain candidates."""
        from rlkd.rationales.bank.bank import PathBank
        from rlkd.rationales.bank.thresholds import thresholds_for

        assert self.embedder is not None
        chosen = seed_set(questions, self.settings.seed_share, self.settings.category, self.settings.seed)
        seeds = [question for question in questions if question.id in chosen]
        entries = []
        for start in range(0, len(seeds), SEEDS_AT_ONCE):
            part = seeds[start : start + SEEDS_AT_ONCE]
            drafts = [Draft(index, 0, step_prompt(question.question), True) for index, question in enumerate(part)]
            written = self.sender.send("seed", part, drafts)
            for question, own, right in zip(part, written, verdicts(part, written), strict=True):
                for each, is_right in zip(own, right, strict=True):
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
        self.bank = PathBank.from_seed(entries, self.embedder, thresholds=thresholds, **rules)

    def plans(self, questions: Sequence[Question]) -> list[Route | None]:
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
            if self.settings.candidates > 1 or self.is_open(question)
        ]
        if before < EARLY <= len(self.routes) and (coverage := self.coverage()) and (message := coverage.message()):
            logger.warning("%s", message)
        return [route if route.offered else None for route in routes]

    def is_open(self, question: Question) -> bool:
        """Whether the first of the N rationales still has to be written: there is no seed rationale, or it came late,
        after another one had replaced it, which may have fed the bank."""
        seed = self._seeds.get(question.id)
        return seed is None or seed.late

    def take_seed(self, question: Question) -> list[WrittenDraft]:
        """The seed rationale of a question, once."""
        return [self._seeds.pop(question.id)] if question.id in self._seeds else []

    def feed(self, question: Question, written: Sequence[WrittenDraft], right: Sequence[bool]) -> None:
        """Enter the paths of a question that led to the right answer; each path once."""
        if self.bank is None:
            return
        entered = set()
        for each, is_right in zip(written, right, strict=True):
            if is_right and each.feeds and each.candidate.path not in entered:
                entered.add(each.candidate.path)
                if (entry := self._entry(question, each)) is not None:
                    self.bank.record(entry)

    def flush(self) -> None:
        """Enter into the bank what waits in it: the end of a wave."""
        if self.bank is not None and self.embedder is not None:
            self.bank.flush(self.embedder)

    def coverage(self) -> Coverage | None:
        """The share of questions with an offered path, and the variety of the written ones; None without a bank."""
        from rlkd.rationales.bank.routing import coverage

        return coverage(self.routes, self.sender.paths_used) if self.routes else None

    def _entry(self, question: Question, written: WrittenDraft) -> RouteEntry | None:
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
        self.sender.counts.barred.update(re.sub(r"'.*?'|\d+|(?<=names ).*", "...", reason) for reason in broken[:1])
        return None if broken else entry


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
