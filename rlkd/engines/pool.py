"""The engines of one reward, scorer or command: each spec is opened once, and all are checked before a run."""

from __future__ import annotations

from rlkd.engines.base import Engine, EngineError, run
from rlkd.engines.spec import from_environment, open_engine, without_secrets
from rlkd.errors import UsageError


class EnginePool:
    """Opens each spec once; nothing is loaded or contacted before the first request.

    `deadline`: seconds for one batch of requests, None for no limit.
    """

    def __init__(self, deadline: float | None = 300.0):
        self.deadline = deadline
        self._opened: dict[str, Engine] = {}

    def open(self, role: str, spec: str | None) -> Engine:
        """The engine that `spec` names; `role` says in an error who needs it.

        Raises ValueError without a spec, and for a server without the name of its model.
        """
        if spec is None:
            raise ValueError(f"{role} needs an engine: set `engine` to http://host:port/v1#model or transformers:path")
        spec = from_environment(spec, f"the engine of {role}")
        if spec not in self._opened:
            # One attempt may take half the time of a batch; a server's own minute is short for long traces.
            defaults = {} if self.deadline is None else {"timeout": self.deadline / 2}
            self._opened[spec] = require_identity(open_engine(spec, defaults=defaults), "engine", spec)
        return self._opened[spec]

    @property
    def loads_models(self) -> bool:
        """Whether an engine runs in this process."""
        return any(not engine.is_remote for engine in self._opened.values())

    @property
    def sends_requests(self) -> bool:
        """Whether an engine is a server."""
        return any(engine.is_remote for engine in self._opened.values())

    def check_ready(self) -> None:
        """Raise `UsageError` for an engine that cannot answer."""
        for engine in self._opened.values():
            check_ready(engine)


def check_ready(engine: Engine, role: str = "") -> None:
    """Raise `UsageError` for an engine that cannot answer; `role` says in the error who needs it."""
    try:
        run(engine.check_ready())
    except EngineError as error:
        raise UsageError(f"{role}: {error}" if role else str(error)) from error


def require_identity(engine: Engine, role: str, spec: str) -> Engine:
    """Return the engine, or raise `UsageError` where the name of its model is unknown: results are stored under it."""
    if engine.identity is None:
        shown = without_secrets(spec)
        raise UsageError(f"{role} {shown!r}: name the model, {shown}#MODEL, as results are cached under its name")
    return engine
