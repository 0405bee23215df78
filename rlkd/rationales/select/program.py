"""The selector `program`: rationales that are programs, kept where a sandboxed run prints the right answer (PaD).

PaD (Program-aided Distillation, arXiv 2305.13888) checks synthetic programs with an interpreter. Here the last block
of Python code of a candidate (`rlkd.programs`) runs in `rlkd.sandbox`, and nowhere else; the last line that it prints
is compared with the gold answer as `correct` compares an announced one.
"""

from __future__ import annotations

import asyncio
import builtins
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from rlkd.answers import extract_answer
from rlkd.engines.base import EngineError
from rlkd.programs import last_program
from rlkd.rationales.records import Question
from rlkd.rationales.select.contract import NOT_MEASURED, SelectorError, SelectorVerdict, by_question, report_failures
from rlkd.rationales.select.correct import Correct
from rlkd.sandbox import ProgramResult, SandboxError, SandboxLimits, SandboxUnavailable, check, run_program

NO_PROGRAM = "no program"
PRINTS_NOTHING = "the program prints nothing"
_ENDED = {
    "error": "the program ends with an error",
    "timeout": "the program runs out of time",
    "memory": "the program runs out of memory",
    "output": "the program prints too much",
    "killed": "the program is killed",
}
_EXCEPTION = re.compile(r"^(\w+)(?=:|$)")


class ProgramSelector:
    """Keeps candidates whose program prints the right answer, and drops the others by cause.

    Args:
        wall: seconds for a program.
        memory: MiB for a program.
        workers: concurrent programs; default: the number of processors.
    """

    __name__ = "program"

    def __init__(self, *, wall: float = 10.0, memory: int = 512, workers: int | None = None) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers={workers}: expected at least 1, or None for the number of processors")
        self.limits = SandboxLimits(wall=wall, cpu=wall, memory=memory << 20)
        self.workers = workers or os.cpu_count() or 1
        self.correct = Correct()

    def check_ready(self) -> None:
        """Raise `SelectorError` if the sandbox does not work on this machine."""
        try:
            check()
        except (SandboxUnavailable, SandboxError) as error:
            raise SelectorError(f"selector {self.__name__!r} runs programs in the sandbox: {error}") from error

    async def __call__(self, questions: Sequence[Question]) -> list[list[SelectorVerdict]]:
        """See `rlkd.rationales.select.contract`."""
        owners = [question for question in questions for _ in question.candidates]
        texts = [each.text for question in questions for each in question.candidates]
        results = await asyncio.to_thread(self._run, texts)
        report_failures(self.__name__, results)
        printed = [_last_line(each.stdout) if isinstance(each, ProgramResult) else "" for each in results]
        compared = await self.correct.compare(owners, [extract_answer(line) or line for line in printed])
        reasons = [
            _fault(result, line) or reason for result, line, reason in zip(results, printed, compared, strict=True)
        ]
        return by_question(map(SelectorVerdict, reasons), questions)

    def _run(self, texts: Sequence[str]) -> list[ProgramResult | EngineError | None]:
        with ThreadPoolExecutor(self.workers, "program") as threads:
            return list(threads.map(self._run_one, texts))

    def _run_one(self, text: str) -> ProgramResult | EngineError | None:
        program = last_program(text)
        if program is None:
            return None
        try:
            return run_program(program, limits=self.limits)
        except (SandboxError, SandboxUnavailable) as error:
            return EngineError("the sandbox", str(error))


def _fault(result: ProgramResult | EngineError | None, printed: str) -> str | None:
    """Why a program has no answer to compare; None if it has."""
    if result is None:
        return NO_PROGRAM
    if isinstance(result, EngineError):
        return NOT_MEASURED
    if result.status == "error" and (name := _exception(result.stderr)):
        return f"the program raises {name}"
    if result.status != "ok":
        return _ENDED[result.status]
    return None if printed else PRINTS_NOTHING


def _exception(stderr: str) -> str | None:
    """The built-in exception that ended a program; None for another, so that reasons stay few."""
    found = _EXCEPTION.match(_last_line(stderr))
    kind = getattr(builtins, found[1], None) if found else None
    return kind.__name__ if isinstance(kind, type) and issubclass(kind, BaseException) else None


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2].strip()
