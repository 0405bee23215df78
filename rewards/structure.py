"""The structure reward of RLKD: scores whether the student takes the teacher's steps, in the teacher's order."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rewards.contract import Failed, Outcome, RewardError, RewardOptions, Scored, StepScore
from rlkd.data.rows import completion_text, question_of
from rlkd.engines import EnginePool
from rlkd.engines.local import ModelUse, models_used
from rlkd.errors import UsageError
from rlkd.gsrm import GSRM, DecompositionError, JudgeError, ReasoningTrace, UnreadableReply
from rlkd.gsrm.alignment import Alignment, BranchScore, best_branch
from rlkd.gsrm.decomposers import Level
from rlkd.gsrm.factory import default_alignment, make
from rlkd.gsrm.places import step_places
from rlkd.gsrm.teacher_steps import path_steps
from rlkd.models import cache_folder
from rlkd.registry import SpecError
from rlkd.structure import Structure

logger = logging.getLogger(__name__)


class StructureReward:
    """RLKD's structure reward (arXiv 2505.16142): both traces become steps, which are aligned and scored.

    Columns: `rationales` (teacher traces of the row) and `structures` (their steps, where known). The student earns
    the best score over the teacher's branches, and 0 where the decomposer's model makes no structure of its text. Not
    applicable where no teacher trace has steps; failed where the engine of the decomposer or the judge failed.

    Args:
        decomposer: `rules`, `native`, `prompted`, `generative` (`rlkd.gsrm.decomposers`) or `path/to/file.py:name`.
        judge: `deterministic`, `embedding`, `model` (`rlkd.gsrm.judges`) or `path/to/file.py:name`.
        alignment: `ordered`, `answers`, `teacher` (the paper's cascade as a share of the teacher's steps), `sum` (the
            paper), `f1` (`rlkd.gsrm.alignment`) or `path/to/file.py:name`. Default: `ordered`; `teacher` where each
            verdict costs a call of a model, of which `ordered` needs one for every pair of steps.
        engine: spec of the model that decomposes, and judges unless `judge_engine` names another
            (`http://host:port/v1#model`, `transformers:path`, see `rlkd.engines`). Default for `generative`: the
            shipped structure model, `transformers:embedded-gsrm`.
        judge_engine: spec of the model that judges.
        embedding_model: sentence encoder of the embedding judge, a folder or a name of the hub.
        teacher: source of the teacher's steps. `rows`: the column `structures`, and for rows without it the
            decomposed rationale; `decompose`: the rationale where there is one, by the same decomposer as the
            student's trace. Default: `decompose` for `rules` and `generative`, whose steps look different from those
            of the data, else `rows`.
        teacher_steps: which of the teacher's steps count. `all`; `path`: those that the last calculation of the
            row's `answer` rests on (`rlkd.gsrm.teacher_steps`), for long traces with checks, restatements and
            abandoned attempts.
        threshold: threshold of the judge; default: the judge's own.
        level: level of the rules decomposer.
        max_new_tokens: maximum tokens per structure; default: 1,024 for `prompted`, 256 for `generative`.
        store: folder that stores, across runs, the teachers' structures (`structures.sqlite`) and the judge model's
            replies (`verdicts.sqlite`). Default: the cache folder. Keys hold the model's weights, but for a server its
            address and the model's name: serve a retrained model under a new name, or use another folder.
        deadline: seconds for one batch at an engine.
    """

    __name__ = "structure"
    needs_any = ("rationales", "structures")
    reward_options = RewardOptions(timeout=None)  # each batch at an engine has its `deadline`

    def __init__(
        self,
        decomposer: str = "rules",
        judge: str = "deterministic",
        alignment: str | None = None,
        *,
        engine: str | None = None,
        judge_engine: str | None = None,
        embedding_model: str | None = None,
        teacher: Literal["rows", "decompose"] | None = None,
        teacher_steps: Literal["all", "path"] = "all",
        threshold: float | None = None,
        level: Level | None = None,
        max_new_tokens: int | None = None,
        store: str | None = None,
        deadline: float = 300.0,
    ):
        if teacher not in (None, "rows", "decompose"):
            raise ValueError(f"teacher {teacher!r}: expected 'rows' or 'decompose'")
        if teacher_steps not in ("all", "path"):
            raise ValueError(f"teacher_steps {teacher_steps!r}: expected 'all' or 'path'")
        folder = Path(store).expanduser() if store else cache_folder()
        self._engines = EnginePool(deadline)
        if decomposer == "generative":
            engine = engine or "transformers:embedded-gsrm"
            if judge == "model" and judge_engine is None:
                raise ValueError("judge 'model' needs a judge_engine: a model trained to list steps is no judge")
        try:
            structures = make(
                "decomposer",
                decomposer,
                engines=self._engines,
                engine=engine,
                level=level,
                max_new_tokens=max_new_tokens,
            )
            verdicts = make(
                "judge",
                judge,
                engines=self._engines,
                engine=judge_engine or engine,
                threshold=threshold,
                embedding_model=embedding_model,
                store=folder / "verdicts.sqlite",
            )
            rule = make("alignment", alignment or default_alignment(verdicts))
        except SpecError as error:
            raise ValueError(str(error)) from error  # to which the builder of rewards adds this reward's name
        stored = folder / "structures.sqlite" if structures.costly else None
        self.gsrm = GSRM(structures, verdicts, alignment=rule, store=stored)
        self._parts = f"decomposer {decomposer}, judge {judge}"
        decompose = getattr(structures, "decomposes_teachers", False)
        self.teacher = teacher or ("decompose" if decompose else "rows")
        self.teacher_steps = teacher_steps
        self.card_settings = {
            "teacher": "the traces of the rows",
            "structure model": f"{decomposer} ({engine})" if structures.costly and engine else decomposer,
            "judge": f"{judge} ({judge_engine or engine or embedding_model})" if judge != "deterministic" else judge,
            "alignment": alignment,
        }
        """What the model card of a run lists."""
        if teacher_steps == "path":
            self.card_settings["teacher's steps"] = "those that the final result rests on"
        self._warned: set[ReasoningTrace] = set()
        # A dry run tries no reward that would load a model or send requests to a server.
        self.sends_requests = self._engines.sends_requests
        self.loads_models = self._engines.loads_models or judge == "embedding" or embedding_model is not None

    @property
    def models_in_process(self) -> list[ModelUse]:
        """The models of the decomposer and the judge that are in this process."""
        parts = [part for part in (self.gsrm.decomposer, self.gsrm.judge) if hasattr(part, "engine")]
        return models_used("structure model", [(part.engine, getattr(part, "max_new_tokens", 1)) for part in parts])

    def describe(self) -> str:
        """What computes this reward, in a line."""
        rule = self.gsrm.alignment
        steps = ", the teacher's steps on the path to the final result" if self.teacher_steps == "path" else ""
        return f"{self._parts}, alignment {rule.name} ({getattr(rule, 'source', Alignment.source)}){steps}"

    def check_ready(self) -> None:
        """Raise `RewardError` where an engine that this reward needs cannot answer."""
        try:
            self._engines.check_ready()
            if (check := getattr(self.gsrm.judge, "check_ready", None)) is not None:
                check()
        except UsageError as error:
            raise RewardError(f"reward {self.__name__!r}: {error}") from error

    async def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        rationales: Sequence[Sequence[str] | None] | None = None,
        structures: Sequence[Sequence[Any] | None] | None = None,
        question: Sequence[str | None] | None = None,
        answer: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[float | Scored | Failed | None]:
        """Score a batch: one decomposer call for all distinct traces, one judge call for all distinct pairs."""
        questions = [q or question_of(p) for q, p in zip(question or [None] * len(prompts), prompts, strict=True)]
        known = structures or [None] * len(prompts)
        rationales = rationales or [None] * len(prompts)
        traces = [ReasoningTrace(q, completion_text(c)) for q, c in zip(questions, completions, strict=True)]
        branches: list[list[Structure | ReasoningTrace]] = []
        for own_question, texts, stored in zip(questions, rationales, known, strict=True):
            if stored and (self.teacher == "rows" or not texts):
                branches.append([Structure.from_list(steps) for steps in stored])
            else:
                decomposed = [ReasoningTrace(own_question, text, teacher=True) for text in texts or ()]
                branches.append([*decomposed])
                traces += decomposed
        found = dict(zip(traces, await self.gsrm.structure(traces), strict=True))

        results: list[float | Scored | Failed | None] = [None] * len(completions)
        compared: list[tuple[int, Structure, list[Structure]]] = []
        for i, trace in enumerate(traces[: len(completions)]):
            student = found[trace]
            teachers = [found[branch] if isinstance(branch, ReasoningTrace) else branch for branch in branches[i]]
            whole = [t for t in teachers if isinstance(t, Structure)]
            if self.teacher_steps == "path":
                gold = None if answer is None or answer[i] is None else str(answer[i])
                whole = [path_steps(each, gold) for each in whole]
            usable = [t for t in whole if self.gsrm.alignment.comparable(t)]
            broken = [t for t in teachers if isinstance(t, DecompositionError)]
            if not usable:
                # Without a teacher's steps there is nothing to follow, which is not the student's fault. A failed
                # engine is a failure; an unreadable reply on the teacher's trace makes the reward not applicable.
                down = next((error for error in broken if not isinstance(error, UnreadableReply)), None)
                results[i] = Failed(f"teacher trace: {down}") if down else None
                self._warn(branches[i], broken)
            elif isinstance(student, UnreadableReply):
                # The decomposer has asked twice. As a failure it would earn the group's mean, so that writing what no
                # model can read would pay.
                results[i] = Scored(0.0, {"unreadable": str(student)})
            elif isinstance(student, DecompositionError):
                results[i] = Failed(f"student trace: {student}")
            else:
                compared.append((i, student, usable))
        found_scores = await self.gsrm.compare([s for _, s, _ in compared], [t for _, _, t in compared])
        for (i, _, _), scores in zip(compared, found_scores, strict=True):
            if isinstance(scores, JudgeError):
                results[i] = Failed(str(scores))
            else:
                best, values = best_branch(scores), [score.value for score in scores]
                detail = {"branches": values} if len(values) > 1 else {}
                results[i] = Scored(best.value, best.to_dict() | detail)
        return results

    def batch_metrics(self, outcomes: Sequence[Outcome]) -> dict[str, float]:
        """What several branches are worth, over the completions that were compared with two branches or more.

        `other_branch`: share of them that follow another branch better than the first. `branch_gain`: mean difference
        of the score, which is that of the best branch, and the score against the first. A branch is a teacher trace
        with steps.
        """
        compared = [values for each in outcomes if (values := (each.detail or {}).get("branches"))]
        if not compared:
            return {}
        gains = [max(values) - values[0] for values in compared]
        return {"other_branch": sum(gain > 0 for gain in gains) / len(gains), "branch_gain": sum(gains) / len(gains)}

    def step_scores(self, completion: str, detail: Mapping[str, Any]) -> list[StepScore]:
        """The share of each of the student's steps in the score, with the step's place in the completion."""
        if "student" not in detail:  # unreadable: no steps
            return []
        score = BranchScore.from_dict(detail)
        places = step_places(score.student, completion)
        return [StepScore(value, place) for value, place in zip(score.student_scores(), places, strict=True)]

    def _warn(self, branches: Sequence[Structure | ReasoningTrace], errors: Sequence[DecompositionError]) -> None:
        trace = next((branch for branch in branches if isinstance(branch, ReasoningTrace)), None)
        if errors and isinstance(errors[0], UnreadableReply) and trace and trace not in self._warned:
            self._warned.add(trace)
            message = "No structure reward for the question %r: its teacher trace has no readable structure (%s)"
            logger.warning(message, trace.question[:80], errors[0])
