"""The selector `difficulty`: the rationales that are easiest for this student to use (MoRSD, arXiv 2509.23574)."""

from __future__ import annotations

from collections.abc import Sequence

from rlkd.cache import Cache
from rlkd.engines.base import Engine, EngineError
from rlkd.rationales.records import Question
from rlkd.rationales.select.asking import Student
from rlkd.rationales.select.contract import Judgement, check_keep, keep_first, report_failures
from rlkd.rationales.select.correct import NO_GOLD
from rlkd.rationales.select.rationale_difficulty import CUE, TEMPLATE, DifficultyMeter
from rlkd.rationales.select.rationale_difficulty import Difficulty as Measured

HARDER = "harder for the student than the kept ones"
EASIER = "easier for the student than the kept ones"


class Difficulty:
    """Keeps the `keep` candidates of a question with the lowest rationale difficulty
    (`rlkd.rationales.select.rationale_difficulty`).

    Six are the paper's best number, as a summary of it says; the order of the stages is the paper's: after `correct`
    and `diverse`. Scores `log_rd`, and `leaks`: 1 where the answer still stood in what was measured.

    Args:
        student: spec of the student before training.
        keep: how many of a question.
        worst: keep the highest difficulty instead: the control.
        template, cue: see `rlkd.rationales.select.rationale_difficulty.DifficultyMeter`.
        cache: where what was measured is kept.
        deadline: seconds for one call of the engine, of about a thousand requests.
    """

    __name__ = "difficulty"

    def __init__(
        self,
        student: str | Engine,
        *,
        keep: int = 6,
        worst: bool = False,
        template: str = TEMPLATE,
        cue: str = CUE,
        cache: Cache | None = None,
        deadline: float | None = None,
    ) -> None:
        check_keep(keep)
        self.student = Student("selector 'difficulty'", student, template, cache, deadline)
        self.meter = DifficultyMeter(self.student.engine, template=template, cue=cue, cache=cache, deadline=deadline)
        self.keep = keep
        self.worst = worst

    def check_ready(self) -> None:
        """Raise `UsageError` where the student is a server that does not answer or lacks the model."""
        self.student.check_ready()

    async def __call__(self, questions: Sequence[Question]) -> list[list[Judgement]]:
        """See `rlkd.rationales.select.contract`."""
        measured = await self.meter.measure(questions)
        found = [item for row in measured for item in row]
        report_failures(self.__name__, [str(item) for item in found if isinstance(item, EngineError)], len(found))
        return [self._judged(question, row) for question, row in zip(questions, measured, strict=True)]

    def _judged(self, question: Question, measured: Sequence[Measured | EngineError | None]) -> list[Judgement]:
        keys = [
            (-item.log_rd if self.worst else item.log_rd) if isinstance(item, Measured) else None for item in measured
        ]
        reasons = keep_first(question.candidates, keys, self.keep, EASIER if self.worst else HARDER)
        return [
            Judgement(NO_GOLD)
            if item is None
            else Judgement(reason)
            if isinstance(item, EngineError)
            else Judgement(reason, {"log_rd": item.log_rd, "leaks": float(item.leaks)})
            for item, reason in zip(measured, reasons, strict=True)
        ]
