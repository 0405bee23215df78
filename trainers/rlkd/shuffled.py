"""Structure rewards under shuffled teachers: the teachers' steps must not depend on the question beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlkd.errors import UsageError
from rlkd.registry import split_alias

if TYPE_CHECKING:
    from trainers.rlkd.config import RLKDConfig

# They read a trace alone; a model reads it together with the question.
_WITHOUT_QUESTION = ("rules", "native")


def take_steps_from_rows(args: RLKDConfig, rows: Sequence[Mapping[str, Any]]) -> None:
    """Set `teacher: rows` for structure rewards whose decomposer reads the question, which is another row's here.

    Raises `UsageError` where the config says otherwise, and where a row has a rationale without its steps.
    """
    mappings: Any = args.reward_kwargs or {}
    for spec in args.reward_funcs:
        alias, path = split_alias(spec)
        name = alias or path
        parameters = dict(mappings.get(name) or {})
        decomposer = parameters.get("decomposer", "rules")
        if path != "structure" or decomposer in _WITHOUT_QUESTION:
            continue
        problem = f"--shuffle_teachers: reward {name!r} with the decomposer {decomposer!r} would read"
        way_out = "or decomposer: rules, which reads the trace alone"
        if parameters.get("teacher") == "decompose":
            raise UsageError(
                f"{problem} each teacher's trace beside another row's question (teacher: decompose). Set teacher: "
                f"rows, {way_out}."
            )
        lacking = sum(bool(row.get("rationales")) and not row.get("structures") for row in rows)
        if lacking:
            raise UsageError(
                f"{problem} the traces of {lacking} of {len(rows)} rows beside another row's question, as these rows "
                f"have no structures. Use rows with structures, {way_out}."
            )
        mappings = {**mappings, name: parameters | {"teacher": "rows"}}
    args.reward_kwargs = mappings or None
