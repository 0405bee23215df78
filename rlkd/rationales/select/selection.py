"""A selection as a config describes it: selectors with their parameters, the student, and the limits at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlkd.cache import Cache
from rlkd.engines import check_ready, open_engine
from rlkd.errors import UsageError
from rlkd.rationales.further import check_shares
from rlkd.rationales.select import BUILT_IN, Selector, load_selector
from rlkd.rationales.select.limits import SelectionLimits
from rlkd.registry import registry, settable_parameters, split_alias, suggestion

# The scores of the built-in selectors.
SCORES = {
    **dict.fromkeys(BUILT_IN, ()),
    "difficulty": ("log_rd", "leaks"),
    "diverse": ("nearest",),
    "judge": ("judge",),
    "rank_surprisal": ("rank_surprisal",),
    "srd": ("srd", "stage"),
}


@dataclass(frozen=True)
class Selection:
    """Settings of a selection.

    Args:
        selectors: specs (`rlkd.registry`), applied in order.
        parameters: of the selectors, by alias or name.
        student: spec of the engine that selectors measure rationales with.
        limit_by, per_question, keep_ratio, token_budget: see `rlkd.rationales.select.limits.SelectionLimits`.
        further_examples: kind to its examples per selected rationale (`rlkd.rationales.further`).
        seed: of all random draws.

    Parameters of a built-in selector that is not used have no effect. Raises `UsageError` for those of any other, and
    for limits out of range or by an unknown score, and for further examples without the selector `correct`.
    """

    selectors: tuple[str, ...]
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    student: str = "transformers:embedded-warm"
    prompt_style: Mapping[str, Any] = field(default_factory=dict)
    limit_by: str | None = None
    per_question: int | None = None
    keep_ratio: float | None = None
    token_budget: int | None = None
    further_examples: Mapping[str, float] = field(default_factory=dict)
    seed: int = 42

    def __post_init__(self) -> None:
        # The parameters of a built-in selector may stay in a config whose selectors the command line replaces.
        if unknown := sorted(set(self.parameters) - set(map(_name_of, self.selectors)) - set(BUILT_IN)):
            raise UsageError(f"selector_kwargs: {unknown[0]!r} is not among the selectors {list(self.selectors)}")
        specs = {split_alias(spec)[1] for spec in self.selectors}
        check_shares(self.further_examples)
        if self.further_examples and not specs & {"correct", "program"}:
            raise UsageError(
                f"further_examples are made of wrong rationales, which the selector 'correct' finds ('program' for "
                f"programs); it is not among the selectors {list(self.selectors)}"
            )
        # The scores of a user's own selector are unknown before it runs.
        if self.limits() is not None and self.limit_by is not None and specs <= SCORES.keys():
            name = self.limit_by.removeprefix("-")
            known = {"flagged", *(score for spec in specs for score in SCORES[spec])}
            if name not in known:
                givers = [spec for spec, scores in SCORES.items() if name in scores]
                add = f"Add {' or '.join(map(repr, givers))} to the selectors, or remove" if givers else "Or remove"
                raise UsageError(
                    f"limit_by={self.limit_by}: no selector gives this score.{suggestion(name, known)} {add} "
                    f"{self._named_limits()} from the config"
                )

    def _named_limits(self) -> str:
        """The keys of the limits that are set."""
        names = ("limit_by", "keep_ratio", "per_question", "token_budget")
        return " and ".join(name for name in names if getattr(self, name) is not None)

    @property
    def has_second_look(self) -> bool:
        """Whether hinted rationales are verified, or may be by a selector of the user's own."""
        known = {split_alias(spec)[1]: self.parameters.get(_name_of(spec)) or {} for spec in self.selectors}
        return bool(known.get("correct", {}).get("second_look")) or not known.keys() <= set(BUILT_IN)

    def limits(self) -> SelectionLimits | None:
        """The limits; None if there are none."""
        cuts = {name: getattr(self, name) for name in ("keep_ratio", "per_question", "token_budget")}
        if all(value is None for value in cuts.values()):
            return None
        try:
            return SelectionLimits(by=self.limit_by, seed=self.seed, **cuts)
        except ValueError as error:
            raise UsageError(str(error)) from error

    def open(self, folder: Path) -> list[Selector]:
        """The selectors in order, checked; their measurements are cached in `selection.sqlite`.

        Raises `UsageError` for a selector, model or server that is missing: it is needed late in the run.
        """
        for spec in dict.fromkeys(self._engine_specs()):
            engine = open_engine(spec)
            if not engine.is_remote:
                check_ready(engine, "the selection")
        defaults = {
            "student": self.student,
            "prompt_style": self.prompt_style,
            "cache": Cache(folder / "selection.sqlite"),
            "seed": self.seed,
        }
        selectors = [
            load_selector(spec, self.parameters.get(_name_of(spec)), defaults=defaults) for spec in self.selectors
        ]
        for selector in selectors:
            if hasattr(selector, "check_ready"):
                selector.check_ready()
        return selectors

    def _engine_specs(self) -> list[str]:
        """The engines that selectors name in their parameters `engine` and `student`."""
        specs = [self.student] if self.token_budget is not None else []
        for spec in self.selectors:
            parameters = dict(self.parameters.get(_name_of(spec)) or {})
            target = registry("selector").find(spec).target
            if callable(target) and "student" in settable_parameters(target):
                parameters.setdefault("student", self.student)
            specs += [parameters[name] for name in ("engine", "student") if isinstance(parameters.get(name), str)]
        return specs

    def token_counter(self) -> Callable[[str], int] | None:
        """The counter of a token budget: by the student's tokenizer; None for a server, which may lack one here."""
        if self.token_budget is None:
            return None
        student = open_engine(self.student)
        return None if student.is_remote or student.tokenizer is None else model_tokens(student.tokenizer)


def model_tokens(model: str) -> Callable[[str], int]:
    """A counter of a model's tokens in a text, by the model's folder or name."""
    from transformers import AutoTokenizer

    from rlkd.models import resolve_model

    tokenizer = AutoTokenizer.from_pretrained(resolve_model(model))
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _name_of(spec: str) -> str:
    """The name of a selector's parameters: its alias, else the last part of its spec."""
    alias, rest = split_alias(spec)
    return alias or rest.rpartition(":" if ":" in rest else ".")[2]
