"""Does the student take the teacher's steps, in the teacher's order? The structure reward of RLKD."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rewards.contract import Failed, RewardError, Scored
from rlkd.data import completion_text, question_of
from rlkd.engines import Engine, EngineError, ServerEngine, open_engine, run
from rlkd.gsrm import (
    GSRM,
    Decomposer,
    DecompositionError,
    DeterministicJudge,
    Judge,
    Judgement,
    ModelJudge,
    NativeDecomposer,
    Norm,
    PromptedDecomposer,
    RulesDecomposer,
    Trace,
)
from rlkd.gsrm.alignment import NORMS
from rlkd.models import cache_folder
from rlkd.structure import Structure


class StructureReward:
    """RLKD's structure reward (arXiv 2505.16142): both traces become steps, aligned in order, and scored by a cascade.

    Columns: `rationales` (teacher traces of the row) and `structures` (their steps, where known). The student earns
    the best score over the teacher's branches. Not applicable where no teacher trace has steps; failed where the
    decomposer or the judge broke down.

    Args:
        decomposer: `rules`, `native` or `prompted` (`rlkd.gsrm.decomposers`).
        judge: `deterministic` or `model` (`rlkd.gsrm.judges`).
        norm: `teacher` (share of the teacher's steps, in [0, 1]), `sum` (the paper) or `f1`.
        engine: spec of the model that decomposes, and judges unless `judge_engine` names another
            (`http://host:port/v1#model`, `transformers:path`, see `rlkd.engines`).
        judge_engine: spec of the model that judges.
        teacher: where the teacher's steps come from. `rows`: the column `structures`, and for rows without it the
            decomposed rationale; `decompose`: the rationale where there is one, by the same decomposer as the
            student's, so that like is compared with like. Default: `decompose` for `rules`, else `rows`.
        threshold: of the deterministic judge.
        level: of the rules decomposer.
        max_new_tokens: of the prompted decomposer.
        store: file that keeps decomposed teacher traces across runs. Default for `prompted`: in the cache folder.
        deadline: seconds for one batch at an engine.
    """

    __name__ = "structure"
    needs_any = ("rationales", "structures")

    def __init__(
        self,
        decomposer: Literal["rules", "native", "prompted"] = "rules",
        judge: Literal["deterministic", "model"] = "deterministic",
        norm: Norm = "teacher",
        *,
        engine: str | None = None,
        judge_engine: str | None = None,
        teacher: Literal["rows", "decompose"] | None = None,
        threshold: float = 0.6,
        level: Literal["calculation", "sentence"] = "calculation",
        max_new_tokens: int = 1024,
        store: str | None = None,
        deadline: float = 300.0,
    ):
        if norm not in NORMS:
            raise ValueError(f"norm {norm!r}: expected one of {', '.join(NORMS)}")
        if teacher not in (None, "rows", "decompose"):
            raise ValueError(f"teacher {teacher!r}: expected 'rows' or 'decompose'")
        opened: dict[str, Engine] = {}

        def engine_for(role: str, spec: str | None) -> Engine:
            if spec is None:
                raise ValueError(
                    f"{role} needs an engine: set `engine` to http://host:port/v1#model or transformers:path"
                )
            if spec.startswith("http") and "#" not in spec:
                raise ValueError(f"engine {spec!r}: name the model, {spec}#MODEL, as results are kept under its name")
            if spec not in opened:
                # One attempt may take half of what a batch may take; the engine's own minute is short for long traces.
                opened[spec] = open_engine(spec, **({"timeout": deadline / 2} if spec.startswith("http") else {}))
            return opened[spec]

        made: Decomposer
        if decomposer == "rules":
            made = RulesDecomposer(level)
        elif decomposer == "native":
            made = NativeDecomposer()
        elif decomposer == "prompted":
            asked = engine_for("decomposer 'prompted'", engine)
            made = PromptedDecomposer(asked, max_new_tokens=max_new_tokens, deadline=deadline)
        else:
            raise ValueError(f"decomposer {decomposer!r}: expected 'rules', 'native' or 'prompted'")
        judging: Judge
        if judge == "deterministic":
            judging = DeterministicJudge(threshold)
        elif judge == "model":
            judging = ModelJudge(engine_for("judge 'model'", judge_engine or engine), deadline=deadline)
        else:
            raise ValueError(f"judge {judge!r}: expected 'deterministic' or 'model'")
        path = Path(store).expanduser() if store else cache_folder() / "structures.sqlite" if made.costly else None
        self.gsrm = GSRM(made, judging, norm=norm, store=path)
        self.teacher = teacher or ("decompose" if decomposer == "rules" else "rows")
        self._servers = [engine for engine in opened.values() if isinstance(engine, ServerEngine)]

    def check_ready(self) -> None:
        """Raise `RewardError` where a server that this reward needs does not answer, or does not have the model."""
        for server in self._servers:
            try:
                offered = run(server.models())
            except EngineError as error:
                raise RewardError(f"reward {self.__name__!r}: {error}") from error
            if server.model not in offered:
                raise RewardError(
                    f"reward {self.__name__!r}: {server.base_url} has no model {server.model!r}; it offers "
                    f"{', '.join(offered) or 'none'}"
                )

    async def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        rationales: Sequence[Sequence[str] | None] | None = None,
        structures: Sequence[Sequence[Any] | None] | None = None,
        question: Sequence[str | None] | None = None,
        **columns: Any,
    ) -> list[float | Scored | Failed | None]:
        """Score a batch: one decomposer call for all distinct traces, one judge call for all distinct pairs."""
        questions = [q or question_of(p) for q, p in zip(question or [None] * len(prompts), prompts, strict=True)]
        known = structures or [None] * len(prompts)
        rationales = rationales or [None] * len(prompts)
        traces: list[Trace] = [Trace(q, completion_text(c)) for q, c in zip(questions, completions, strict=True)]
        branches: list[list[Structure | Trace]] = []
        for asked, texts, stored in zip(questions, rationales, known, strict=True):
            own = self._branches(asked, texts or (), stored or ())
            branches.append(own)
            traces += [branch for branch in own if isinstance(branch, Trace)]
        found = dict(zip(traces, await self.gsrm.structure(traces), strict=True))

        results: list[float | Scored | Failed | None] = [None] * len(completions)
        judged: list[tuple[int, Structure, list[Structure]]] = []
        for i, trace in enumerate(traces[: len(completions)]):
            student = found[trace]
            teachers = [found[branch] if isinstance(branch, Trace) else branch for branch in branches[i]]
            usable = [t for t in teachers if isinstance(t, Structure) and len(t)]
            broken = next((t for t in teachers if isinstance(t, DecompositionError)), None)
            if not usable:
                # Without a teacher's steps there is nothing to follow; that is no fault of the student's.
                results[i] = Failed(f"teacher trace: {broken}") if broken else None
            elif isinstance(student, DecompositionError):
                results[i] = Failed(f"student trace: {student}")
            else:
                judged.append((i, student, usable))
        judgements = await self.gsrm.reward([s for _, s, _ in judged], [t for _, _, t in judged])
        for (i, _, _), judgement in zip(judged, judgements, strict=True):
            if isinstance(judgement, Judgement):
                results[i] = Scored(judgement.score.value, judgement.to_dict())
            else:
                results[i] = Failed(str(judgement))
        return results

    def _branches(self, question: str, texts: Sequence[str], stored: Sequence[Any]) -> list[Structure | Trace]:
        if stored and (self.teacher == "rows" or not texts):
            return [Structure.from_list(steps) for steps in stored]
        return [Trace(question, text, teacher=True) for text in texts]
