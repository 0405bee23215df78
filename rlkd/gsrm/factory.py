"""Builds the decomposer, the judge and the alignment rule that a config or command names.

    >>> make("decomposer", "rules").fingerprint
    'rules/calculation/1'
    >>> make("judge", "model", engines=Engines())
    Traceback (most recent call last):
    ...
    ValueError: judge 'model' needs an engine: set `engine` to http://host:port/v1#model or transformers:path

Nothing is loaded or contacted here: engines open at the first request.
"""

from __future__ import annotations

from typing import Any, Literal

from rlkd.engines import Engine, EngineError, ServerEngine, from_environment, open_engine, run, without_secrets
from rlkd.errors import UsageError
from rlkd.registry import SpecError, build, is_factory, registry, settable_parameters

Part = Literal["alignment", "decomposer", "judge"]

_MEMBERS: dict[Part, tuple[str, ...]] = {
    "alignment": ("name", "every_pair", "pairs", "score", "comparable", "explain"),
    "decomposer": ("fingerprint", "costly", "decompose"),
    "judge": ("judge",),
}


class Engines:
    """The engines of one reward or command, each spec opened once.

    `deadline`: seconds for one batch at an engine, None for no limit.
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
        if spec.startswith("http") and "#" not in spec:
            shown = without_secrets(spec)
            raise ValueError(f"engine {shown!r}: name the model, {shown}#MODEL, as results are kept under its name")
        if spec not in self._opened:
            # One attempt may take half of what a batch may take; the engine's own minute is short for long traces.
            limited = spec.startswith("http") and self.deadline is not None
            self._opened[spec] = open_engine(spec, **({"timeout": self.deadline / 2} if limited else {}))  # type: ignore[operator]
        return self._opened[spec]

    @property
    def servers(self) -> list[ServerEngine]:
        """The opened engines that are servers."""
        return [engine for engine in self._opened.values() if isinstance(engine, ServerEngine)]

    def check_ready(self) -> None:
        """Raise `UsageError` where a server does not answer, or does not have the model."""
        for server in self.servers:
            try:
                offered = run(server.models())
            except EngineError as error:
                raise UsageError(str(error)) from error
            if server.model not in offered:
                raise UsageError(
                    f"{server.base_url} has no model {server.model!r}; it offers {', '.join(offered) or 'none'}"
                )


def make(kind: Part, spec: str, *, engines: Engines | None = None, engine: str | None = None, **options: Any) -> Any:
    """The object that a spec names (`rlkd.registry`).

    `engine`: spec of its model, opened in `engines` if the object takes an engine. `options`: values for parameters
    that it may have; None for its own default. Raises `SpecError` for a spec that does not fit, ValueError for a
    missing engine.
    """
    defaults = {name: value for name, value in options.items() if value is not None}
    if engines is not None:
        defaults["deadline"] = engines.deadline
        found = registry(kind).find(spec)
        if is_factory(kind, found.target) and "engine" in settable_parameters(found.target):
            defaults["engine"] = engines.open(f"{kind} {found.name!r}", engine)
    made = build(kind, spec, defaults=defaults).target
    missing = [member for member in _MEMBERS[kind] if not hasattr(made, member)]
    if missing:
        raise SpecError(f"{kind} {spec!r} lacks {', '.join(missing)}; see docs/structure.md for an example")
    return made
