"""The engine of a selector: named in its parameters, or handed in by a run that shares one between several."""

from __future__ import annotations

from rlkd.cache import Cache
from rlkd.engines.base import Engine
from rlkd.gsrm.factory import Engines
from rlkd.rationales.records import Question
from rlkd.rationales.select.rationale_difficulty import check_template


class Asked:
    """One engine.

    Args:
        role: who needs it, for errors: "selector 'difficulty'".
        engine: a spec (`rlkd.engines.open_engine`; a server with the name of its model), or an opened engine.
        deadline: seconds for one call, None for no limit.

    Raises ValueError where a spec names no engine.
    """

    def __init__(self, role: str, engine: str | Engine | None, deadline: float | None = None) -> None:
        self._engines = Engines(deadline)
        given = engine is None or isinstance(engine, str)
        self.engine: Engine = self._engines.open(role, engine) if given else engine  # type: ignore[assignment, arg-type]

    def check_ready(self) -> None:
        """Raise `UsageError` where a server that this has opened does not answer or lacks the model."""
        self._engines.check_ready()


class Student(Asked):
    """The engine of the student, and the text that it goes on from.

    Args:
        role, student, deadline: as of `Asked`.
        template: the text before a rationale, with `{question}` in it.
        cache: where what it was asked is kept.
    """

    def __init__(
        self, role: str, student: str | Engine | None, template: str, cache: Cache | None, deadline: float | None
    ) -> None:
        check_template(template)
        super().__init__(role, student, deadline)
        self.template = template
        self.cache = cache
        self.deadline = deadline

    def prompt(self, question: Question) -> str:
        """What stands before a rationale. Without the space at its end, which belongs to the text that follows."""
        return self.template.replace("{question}", question.question).rstrip()
