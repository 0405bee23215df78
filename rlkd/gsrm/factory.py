"""Builds the decomposer, the judge and the alignment rule that a config or command names.

    >>> make("decomposer", "rules").fingerprint
    'rules/calculation/1'
    >>> make("judge", "model", engines=EnginePool())
    Traceback (most recent call last):
    ...
    ValueError: judge 'model' needs an engine: set `engine` to http://host:port/v1#model or transformers:path

Nothing is loaded or contacted here: engines open at the first request.
"""

from __future__ import annotations

from typing import Any, Literal

from rlkd.engines import EnginePool
from rlkd.registry import SpecError, build, is_factory, registry, settable_parameters

Part = Literal["alignment", "decomposer", "judge"]

_MEMBERS: dict[Part, tuple[str, ...]] = {
    "alignment": ("name", "every_pair", "pairs", "score", "comparable", "explain"),
    "decomposer": ("fingerprint", "costly", "decompose"),
    "judge": ("judge",),
}


def default_alignment(judge: Any) -> str:
    """The rule where none is named: `ordered`, or `teacher` for a judge each of whose verdicts costs a model's call.

    Our choice: `ordered` tells right from wrong solutions better and gives more groups a spread (docs/gsrm.md), but
    needs a verdict on every pair of steps. No rule is shown to train better (docs/results.md).
    """
    return "teacher" if getattr(judge, "costly", False) else "ordered"


def make(
    kind: Part, spec: str, *, engines: EnginePool | None = None, engine: str | None = None, **options: Any
) -> Any:
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
