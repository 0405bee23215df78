"""Decomposers and judges by name, as configs and commands name them.

    >>> engines = Engines()
    >>> make_decomposer("rules", engines).fingerprint
    'rules/calculation/1'
    >>> make_judge("model", engines)
    Traceback (most recent call last):
    ...
    ValueError: judge 'model' needs an engine: set `engine` to http://host:port/v1#model or transformers:path

Nothing is loaded or contacted here: engines open at the first request.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from rlkd.engines import Engine, EngineError, ServerEngine, from_environment, open_engine, run, without_secrets
from rlkd.errors import UsageError
from rlkd.gsrm.decomposers import (
    Decomposer,
    GenerativeDecomposer,
    Level,
    NativeDecomposer,
    PromptedDecomposer,
    RulesDecomposer,
)
from rlkd.gsrm.judges import DeterministicJudge, Judge, ModelJudge

DecomposerName = Literal["rules", "native", "prompted", "generative"]
JudgeName = Literal["deterministic", "embedding", "model"]
DECOMPOSERS: tuple[DecomposerName, ...] = get_args(DecomposerName)
JUDGES: tuple[JudgeName, ...] = get_args(JudgeName)


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


def make_decomposer(
    name: DecomposerName,
    engines: Engines,
    engine: str | None = None,
    *,
    level: Level = "calculation",
    max_new_tokens: int | None = None,
    ground: bool = True,
) -> Decomposer:
    """The decomposer that `name` names.

    `engine`: spec of its model, where it has one. `level`: of `rules`. `max_new_tokens`: of `prompted` and
    `generative`, None for each one's own default. `ground`: of `generative`. Raises ValueError for an unknown name or
    a missing engine.
    """
    if name == "rules":
        return RulesDecomposer(level)
    if name == "native":
        return NativeDecomposer()
    room: dict[str, Any] = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    if name == "prompted":
        return PromptedDecomposer(engines.open(f"decomposer {name!r}", engine), deadline=engines.deadline, **room)
    if name == "generative":
        asked = engines.open(f"decomposer {name!r}", engine)
        return GenerativeDecomposer(asked, deadline=engines.deadline, ground=ground, **room)
    raise ValueError(f"decomposer {name!r}: expected {_choice(DECOMPOSERS)}")


def make_judge(
    name: JudgeName,
    engines: Engines,
    engine: str | None = None,
    *,
    threshold: float | None = None,
    embedding_model: str | None = None,
    store: Path | None = None,
) -> Judge:
    """The judge that `name` names.

    `engine`: spec of the model of `model`. `threshold`: of `deterministic` and `embedding`, None for each one's own
    default. `embedding_model`: of `embedding`. `store`: file that keeps the verdicts of `model`. Raises ValueError for
    an unknown name or a missing engine.
    """
    limit: dict[str, Any] = {} if threshold is None else {"threshold": threshold}
    if name == "deterministic":
        return DeterministicJudge(**limit)
    if name == "embedding":
        from rlkd.gsrm.judges import EmbeddingJudge

        return EmbeddingJudge(**limit) if embedding_model is None else EmbeddingJudge(embedding_model, **limit)
    if name == "model":
        return ModelJudge(engines.open(f"judge {name!r}", engine), deadline=engines.deadline, store=store)
    raise ValueError(f"judge {name!r}: expected {_choice(JUDGES)}")


def _choice(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names[:-1])) + f" or {names[-1]!r}"
