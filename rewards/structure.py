"""Does the student take the teacher's steps, in the teacher's order? The structure reward of RLKD."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rewards.contract import Failed, RewardError, RewardOptions, Scored
from rlkd.data.rows import completion_text, question_of
from rlkd.engines import EngineError, run
from rlkd.gsrm import GSRM, DecompositionError, Judgement, Norm, Trace, UnreadableReply
from rlkd.gsrm.decomposers import Level
from rlkd.gsrm.factory import DecomposerName, Engines, JudgeName, make_decomposer, make_judge
from rlkd.gsrm.model import comparable
from rlkd.models import cache_folder
from rlkd.structure import Structure

logger = logging.getLogger(__name__)

GENERATIVE_ENGINE = "transformers:embedded-gsrm"


class StructureReward:
    """RLKD's structure reward (arXiv 2505.16142): both traces become steps, aligned in order, and scored by a cascade.

    Columns: `rationales` (teacher traces of the row) and `structures` (their steps, where known). The student earns
    the best score over the teacher's branches. Not applicable where no teacher trace has steps; failed where the
    decomposer or the judge broke down.

    Args:
        decomposer: `rules`, `native`, `prompted` or `generative` (`rlkd.gsrm.decomposers`).
        judge: `deterministic`, `embedding` or `model` (`rlkd.gsrm.judges`).
        norm: `teacher` (share of the teacher's steps, in [0, 1]), `sum` (the paper), `f1`, `ordered` or `answers`
            (`rlkd.gsrm.alignment`).
        engine: spec of the model that decomposes, and judges unless `judge_engine` names another
            (`http://host:port/v1#model`, `transformers:path`, see `rlkd.engines`). `generative` takes the shipped
            structure model, `transformers:embedded-gsrm`, where none is named.
        judge_engine: spec of the model that judges.
        embedding_model: of the embedding judge, a folder or a name of the hub.
        teacher: where the teacher's steps come from. `rows`: the column `structures`, and for rows without it the
            decomposed rationale; `decompose`: the rationale where there is one, by the same decomposer as the
            student's, so that like is compared with like. Default: `decompose` for `rules` and `generative`, else
            `rows`.
        threshold: of the deterministic and the embedding judge, each one's own by default.
        level: of the rules decomposer.
        max_new_tokens: of the prompted (default 1,024) and the generative decomposer (256).
        store: folder that keeps, across runs, the teachers' structures (`structures.sqlite`) and the judge model's
            verdicts (`verdicts.sqlite`). Default: the cache folder. They are kept under the model's weights, but for
            a server under its address and the model's name: serve a model that was trained again under a new name,
            or name another folder.
        deadline: seconds for one batch at an engine.
    """

    __name__ = "structure"
    needs_any = ("rationales", "structures")
    reward_options = RewardOptions(timeout=None)  # each batch at an engine has its `deadline`

    def __init__(
        self,
        decomposer: DecomposerName = "rules",
        judge: JudgeName = "deterministic",
        norm: Norm = "teacher",
        *,
        engine: str | None = None,
        judge_engine: str | None = None,
        embedding_model: str | None = None,
        teacher: Literal["rows", "decompose"] | None = None,
        threshold: float | None = None,
        level: Level = "calculation",
        max_new_tokens: int | None = None,
        store: str | None = None,
        deadline: float = 300.0,
    ):
        if teacher not in (None, "rows", "decompose"):
            raise ValueError(f"teacher {teacher!r}: expected 'rows' or 'decompose'")
        kept = Path(store).expanduser() if store else cache_folder()
        self._engines = Engines(deadline)
        if decomposer == "generative" and engine is None:
            engine = GENERATIVE_ENGINE
        if decomposer == "generative" and judge == "model" and judge_engine is None:
            raise ValueError("judge 'model' needs a judge_engine: a model that was trained to list steps is no judge")
        made = make_decomposer(decomposer, self._engines, engine, level=level, max_new_tokens=max_new_tokens)
        judging = make_judge(
            judge,
            self._engines,
            judge_engine or engine,
            threshold=threshold,
            embedding_model=embedding_model,
            store=kept / "verdicts.sqlite",
        )
        self.gsrm = GSRM(made, judging, norm=norm, store=kept / "structures.sqlite" if made.costly else None)
        self.teacher = teacher or ("decompose" if decomposer in ("rules", "generative") else "rows")
        self._warned: set[Trace] = set()

    def check_ready(self) -> None:
        """Raise `RewardError` where a server that this reward needs does not answer, or does not have the model."""
        for server in self._engines.servers:
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
            usable = [t for t in teachers if isinstance(t, Structure) and comparable(t, self.gsrm.norm)]
            broken = [t for t in teachers if isinstance(t, DecompositionError)]
            if not usable:
                # Without a teacher's steps there is nothing to follow; that is no fault of the student's. An engine
                # that did not answer has failed; one that found no steps in the teacher's trace has settled the case.
                down = next((error for error in broken if not isinstance(error, UnreadableReply)), None)
                results[i] = Failed(f"teacher trace: {down}") if down else None
                self._warn(branches[i], broken)
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

    def _warn(self, branches: Sequence[Structure | Trace], errors: Sequence[DecompositionError]) -> None:
        """Say once why a row with a teacher's trace has no structure reward."""
        traces = [branch for branch in branches if isinstance(branch, Trace)]
        if errors and isinstance(errors[0], UnreadableReply) and traces and traces[0] not in self._warned:
            self._warned.add(traces[0])
            logger.warning(
                "No structure reward for the question %r: its teacher trace has no readable structure (%s)",
                traces[0].question[:80],
                errors[0],
            )
