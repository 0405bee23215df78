"""Candidates for questions: brought by the rows, or written by a teacher, freely or along the paths of a bank.

`docs/rationales.md` lists the writers; `bank` is D-RPC's (arXiv 2605.07139). A first-pass request never contains the
gold answer. With `hinted_retry`, a question for which no candidate has the right answer is sent once more with the
answer as a hint; these candidates have the source `hinted`.

The bank grows while it is used, so questions are processed in *waves*: during a wave the bank does not change; after
it the right answers are entered in the order of the questions. So the result does not depend on which answer came
first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rlkd.data.rows import build_prompt
from rlkd.data.samples import few_shot_examples
from rlkd.engines.base import Message
from rlkd.errors import UsageError
from rlkd.rationales.records import Candidate, DroppedCandidate, Question
from rlkd.rationales.write.contrast import contrasted_prompts
from rlkd.rationales.write.counts import WritingCounts
from rlkd.rationales.write.drafts import Draft, DraftSender, WrittenDraft, verdicts
from rlkd.rationales.write.guide import Guide
from rlkd.rationales.write.prompts import free_prompt, hinted_prompt, program_prompt, step_prompt
from rlkd.rationales.write.teacher import RationaleTeacher, check_contrast
from rlkd.rationales.write.writing import CONTRASTIVE, Writing

if TYPE_CHECKING:
    from rlkd.embedders import Embedder
    from rlkd.rationales.bank.bank import PathBank
    from rlkd.rationales.bank.routing import Coverage, Route

# The stage of a writer's requests in the journal and in the counts.
_STAGES = {
    "free": "free",
    "steps": "steps",
    "bank": "guided",
    "program": "program",
    "student": "student",
    **{name: name for name in CONTRASTIVE},
}


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
        self.settings, self.teacher, self.student = settings, teacher, student
        self.prompt_style = dict(prompt_style or {})
        self.counts = WritingCounts()
        self._sender = DraftSender(settings, self.counts, teacher, student, advance)
        self._guide = Guide(settings, self._sender, embedder, bank, bank_size, route_threshold)

    @property
    def bank(self) -> PathBank | None:
        """The bank, once there is one."""
        return self._guide.bank

    @property
    def paths_used(self) -> list[tuple[str, ...]]:
        """The path of each step-keyed reply so far."""
        return self._sender.paths_used

    def requests_expected(self, questions: int) -> int:
        """The approximate number of requests for a number of questions, without hinted ones."""
        return questions * self.settings.candidates * sum(name != "ready" for name in self.settings.writers)

    def write(self, questions: Sequence[Question]) -> Iterator[tuple[Question, list[DroppedCandidate]]]:
        """Each question with its candidates, in order, and the discarded ones.

        Raises `UsageError` if too many requests fail.
        """
        if "bank" in self.settings.writers and self.bank is None:
            self._guide.make_bank(questions)
        for start in range(0, len(questions), self.settings.wave):
            yield from self._wave(questions[start : start + self.settings.wave])
        for each in (self.teacher, self.student):
            if each is not None:
                each.check()

    def coverage(self) -> Coverage | None:
        """The share of questions with an offered path, and the variety of the written ones; None without a bank."""
        return self._guide.coverage()

    def _wave(self, questions: Sequence[Question]) -> Iterator[tuple[Question, list[DroppedCandidate]]]:
        written: list[list[WrittenDraft]] = [[] for _ in questions]
        plans: list[Route | None] = [None] * len(questions)
        for writer in self.settings.writers:
            if writer == "ready":
                for own, question in zip(written, questions, strict=True):
                    own += map(WrittenDraft, question.candidates)
                continue
            if writer == "bank":
                plans = self._guide.plans(questions)
            drafts: list[Draft] = []
            for index, question in enumerate(questions):
                if writer in CONTRASTIVE:
                    drafts += self._contrasted(writer, index, question)
                    continue
                first, plan = 0, None
                if writer == "bank":
                    first, plan = 0 if self._guide.is_open(question) else 1, plans[index]
                    written[index] += self._guide.take_seed(question)
                for number in range(first, self.settings.candidates):
                    drafts.append(
                        Draft(index, number, self._prompt(writer, question, plan), writer in ("steps", "bank"), plan)
                    )
            for own, new in zip(written, self._sender.send(_STAGES[writer], questions, drafts), strict=True):
                own += new
        right = verdicts(questions, written)
        if self.settings.hinted_retry:
            self._retry(questions, plans, written, right)
        for question, own, own_right in zip(questions, written, right, strict=True):
            self._guide.feed(question, own, own_right)
            yield self._finished(question, own, own_right)
        self._guide.flush()

    def _contrasted(self, writer: str, index: int, question: Question) -> Iterator[Draft]:
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
                yield Draft(index, number, prompts[0], False, away=(prompts[1], settings.contrast()))

    def _prompt(self, writer: str, question: Question, plan: Route | None) -> list[Message]:
        if writer == "student":
            examples = few_shot_examples(self.prompt_style.get("examples", 0))
            return build_prompt(question.question, self.prompt_style.get("system_prompt"), examples)
        if writer == "program":
            return program_prompt(question.question)
        return free_prompt(question.question) if writer == "free" else step_prompt(question.question, plan)

    def _retry(
        self,
        questions: Sequence[Question],
        plans: Sequence[Route | None],
        written: list[list[WrittenDraft]],
        right: list[list[bool]],
    ) -> None:
        """Retry with the answer as a hint where no candidate is right; adds to `written` and `right`."""
        writer = next((name for name in reversed(self.settings.writers) if name in ("free", "steps", "bank")), "free")
        drafts = []
        for index, question in enumerate(questions):
            if question.answer is not None and not any(right[index]):
                prompt = hinted_prompt(self._prompt(writer, question, plans[index]), question.answer)
                drafts.append(Draft(index, 0, prompt, writer != "free", plans[index]))
        retried = self._sender.send("hinted", questions, drafts)
        for index, retried_right in enumerate(verdicts(questions, retried)):
            written[index] += retried[index]
            right[index] += retried_right

    def _finished(
        self, question: Question, written: Sequence[WrittenDraft], right: Sequence[bool]
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
