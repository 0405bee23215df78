"""RLKD: GRPO with a structure reward (arXiv 2505.16142).

The teacher's signal is a reward, so the trainer is TRL's GRPOTrainer, with these differences:

1. the config names rewards (`reward_funcs`, `reward_kwargs`, `reward_weights`) and gates;
2. a missing reward is neutral (`rewards.arithmetic.settle`), where TRL counts it as 0;
3. a run that cannot work fails before the model loads (`trainers.rlkd.preflight`), and a reward that fails too often
   ends the run after a checkpoint (`trainers.common.failures`);
4. every rollout goes to a file with each reward's score, outcome and cause (reward models have a score in the metrics
   only), and metrics go to another; both continue without gap or duplicate when a run resumes;
5. on a CPU, it leaves out work that changes nothing (`trainers.common.fast_path`);
6. with `step_credit`, the advantage of a completion is divided among its steps (`trainers.rlkd.step_credit`), and
   with `teacher_kl` a teacher's log-probabilities add to that of each token (`trainers.rlkd.teacher_kl`);
7. with `resample_zero_std`, groups whose rewards are all equal are replaced (`trainers.rlkd.resampling`).

With rewards that are never missing, without gates and with `fast_path: never`, it trains exactly as GRPOTrainer does.

One step: TRL generates (`_generate`), scores (`_calculate_rewards`) and computes advantages within
`_generate_and_score_completions`. TRL passes on a tensor of rewards only, so the outcomes behind it are collected in
`_batch`, one frozen `ScoredBatch` for the batch at hand.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import gather, gather_object
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel
from trl import GRPOTrainer

from rewards import Outcome, Reward, RewardError
from rewards.arithmetic import correlations, frac_zero_std, groups_with_spread, penalised_by_gate, settle
from rewards.batch import ScoredBatch
from rewards.composite import gate_warning
from rewards.runner import AsyncReward
from rewards.structure import StructureReward
from rlkd.data.rows import completion_text
from rlkd.engines import EngineError
from rlkd.registry import split_alias
from rlkd.validity import ValidityError
from trainers.common.adapters import name_base, open_student
from trainers.common.alarms import ALL_MASKED, ALL_TRUNCATED, Alarms, all_masked, all_truncated
from trainers.common.failures import FailureWatch
from trainers.common.fast_generation import FastRollouts
from trainers.common.generation import FittedPrompts
from trainers.common.row_order import RowOrder
from trainers.common.run_files import RunFiles
from trainers.common.trl_compat import check_trl, completions_of
from trainers.rlkd.config import RLKDConfig
from trainers.rlkd.failures import TooManyFailures, cause_and_rows
from trainers.rlkd.fast_loss import FastLoss
from trainers.rlkd.prefetch import prefetched_rewards
from trainers.rlkd.preparation import RewardLike, prepare
from trainers.rlkd.resampling import Resampling, RolloutCount, Round
from trainers.rlkd.shuffled_rewards import shuffled_in_groups
from trainers.rlkd.spread import SpreadWatch
from trainers.rlkd.step_credit import StepCredit
from trainers.rlkd.teacher_kl import TeacherKL
from trainers.teachers.weighted_batch import step_records
from trainers.vllm.checks import keep_server_current, prepare_rollouts

logger = logging.getLogger(__name__)


class RLKDTrainer(RowOrder, RunFiles, FittedPrompts, FastRollouts, FastLoss, GRPOTrainer):
    """GRPO with rewards from the registry, neutral missing rewards, and a record of every rollout.

    Takes what `GRPOTrainer` takes. `model` may be `embedded`. `reward_funcs` may hold specs, TRL reward callables and
    reward models; by default `args.reward_funcs` names the rewards. `rewards` has them as they were built.

    Raises `UsageError` before the model loads (see `trainers.rlkd.preflight`), and `RewardError` during training when
    a reward breaks the contract, or fails under `on_failure="raise"`, `EngineError` when a served teacher fails.
    """

    args: RLKDConfig

    _tag_names = ["trl", "grpo", "rlkd"]  # noqa: RUF012 (TRL's form)
    _name = "RLKD"
    _paper = {  # noqa: RUF012 (TRL's form)
        "title": "Distilling the Implicit Multi-Branch Structure in LLMs' Reasoning via Reinforcement Learning",
        "id": "2505.16142",
    }

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: RewardLike | Sequence[RewardLike] | None = None,
        args: RLKDConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        **kwargs: Any,
    ):
        check_trl()
        args = args or RLKDConfig("rlkd-output")
        has_environment = kwargs.get("environment_factory") is not None
        prepared = prepare(
            args,
            model,
            reward_funcs,
            train_dataset,
            eval_dataset,
            peft_config=kwargs.get("peft_config"),
            reader=kwargs.get("processing_class"),
            has_environment=has_environment,
        )
        self.rewards, names, facts = prepared.rewards, prepared.names, prepared.student
        train_dataset, eval_dataset = prepared.train_dataset, prepared.eval_dataset
        # With tools and environments, rows change and rewards may read what is still changing.
        may_prefetch = args.reward_prefetch and not kwargs.get("tools") and not has_environment
        self._prefetched = prefetched_rewards(self.rewards) if may_prefetch else {}
        self._failures = FailureWatch(names, args.max_failure_rate, args.failure_window)
        structural = {name for name, one in zip(names, self.rewards, strict=True) if _is_structural(one)}
        self._spread, self._warned_of_gate = SpreadWatch(frozenset(structural)), False
        self._gates = {names.index(gated): names.index(condition) for gated, condition in args.gates().items()}
        self._batch = ScoredBatch([])
        student, kwargs["peft_config"] = open_student(model, args, kwargs.get("peft_config"))
        if isinstance(model, str) and not isinstance(student, str):  # its base may have another tokenizer
            kwargs["processing_class"] = kwargs.get("processing_class") or facts.tokenizer
        with prepare_rollouts(args, student, train_dataset, kwargs.get("processing_class"), kwargs.get("peft_config")):
            super().__init__(
                model=student,
                reward_funcs=[self._recorded(reward) for reward in self.rewards],
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                **kwargs,
            )
        # TRL calls a reward model by the last part of its path; an environment's own reward stands behind these.
        self.reward_func_names[: len(names)] = names
        name_base(self.model, model)
        keep_server_current(self)
        self._rollout_count = RolloutCount(args.max_rollouts)
        self._resampling = None
        if args.resample_zero_std:
            pad: Any = self._tokenizer.pad_token_id
            indexed: Any = self.train_dataset  # no iterable one: checked before
            self._resampling = Resampling(args, indexed, pad, self._rollout_count)
        self._live: list[bool] = []
        self._step_credit = StepCredit.of(args, dict(zip(names, self.rewards, strict=True)), self.processing_class)
        self._teacher_kl = TeacherKL.of(self, prepared)
        self.open_run_files(student=model)
        alarms = Alarms({ALL_MASKED: all_masked, ALL_TRUNCATED: all_truncated})
        self.add_callback(self._failures)
        self.add_callback(alarms)
        self.add_callback(self._rollout_count)
        self.keep("rollouts", self._rollout_count)
        self.keep("failures", self._failures)
        self.keep("alarms", alarms)
        self.keep("spread", self._spread)
        if self._teacher_kl is not None and self._teacher_kl.weights is not None:
            self.add_callback(self._teacher_kl.failures)
            self.keep("weighting", self._teacher_kl.weights.weighting)
            self.keep("validity failures", self._teacher_kl.failures)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, as `RunFiles.train` does; raise `TooManyFailures` where a reward failed too often."""
        result = super().train(*args, **kwargs)
        if self._failures.error:
            checkpoint = self.metrics_path.parent / f"checkpoint-{self.state.global_step}"
            raise TooManyFailures(self._failures.explain(checkpoint))
        if self._teacher_kl is not None and self._teacher_kl.failures.error:
            checkpoint = self.metrics_path.parent / f"checkpoint-{self.state.global_step}"
            raise ValidityError(self._teacher_kl.failures.explain(checkpoint))
        return result

    def reward_names(self) -> list[str]:
        """The names of the rewards, in order."""
        return list(self.reward_func_names[: len(self.rewards)])

    def _recorded(self, reward: Reward | str | PreTrainedModel) -> Any:
        """A reward as TRL calls it: TRL gets the values, `_batch` the outcomes."""
        if not isinstance(reward, Reward):
            return split_alias(reward)[1] if isinstance(reward, str) else reward
        prefetched = self._prefetched.get(reward.__name__)

        def record(outcomes: list[Outcome], arguments: dict[str, Any]) -> list[float | None]:
            self._batch = replace(self._batch, outcomes={**self._batch.outcomes, reward.__name__: outcomes})
            return reward.report(outcomes, arguments.get("log_metric"))

        async def call_async(**arguments: Any) -> list[float | None]:
            return record(await reward.score_async(**arguments), arguments)

        def call(**arguments: Any) -> list[float | None]:
            return record((prefetched or reward).score(**arguments), arguments)

        chosen = call_async if isinstance(reward, AsyncReward) and prefetched is None else call
        chosen.__name__ = reward.__name__
        return chosen

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        rounds = [self._round(inputs)]
        output = rounds[0].output
        if not self._is_training():
            return output
        try:
            if self._resampling is not None:
                output, metrics = self._resampling(rounds, self._round, self._step)
                for name, value in metrics.items():
                    self._metrics["train"][name].append(value)
        finally:
            self._save_rollouts([record for each in rounds for record in each.records])
        if len(rounds) > 1:  # on all processes
            loss = output["completion_mask"] * output.get("tool_mask", 1)
            output["num_items_in_batch"] = self.accelerator.gather(loss.sum()).sum()
        return output

    def _round(self, rows: list[dict[str, Any]]) -> Round:
        """The scored rollouts of rows, one each."""
        if self._teacher_kl is not None and self._teacher_kl.column is not None and self._is_training():
            self._teacher_kl.column.numbers(rows)  # a row of a stream without a teacher ends the run before rollouts
        self._batch = ScoredBatch(rows)
        output = super()._generate_and_score_completions(rows)
        advantages: torch.Tensor = output["advantages"]
        further: list[dict[str, Any]] = [{} for _ in rows]
        if not self._is_training():
            return Round(output, [], self._live)
        self._rollout_count.total += len(rows) * self.accelerator.num_processes
        if self._step_credit is not None:
            credited = self._step_credit(self._batch, output)
            output["advantages"] = credited.advantages
            self._log_counts(self._step_credit, credited.counts)
            further = [{"credit": steps} for steps in credited.records]
        if self._teacher_kl is not None:
            try:
                logprobs = self._student_logprobs(output)
                signal = self._teacher_kl(rows, output, logprobs, self.state.global_step)
            except (EngineError, ValidityError):
                self._save_rollouts(self._records(advantages, further))
                raise
            output["advantages"] = signal.advantages
            self._log_counts(self._teacher_kl, signal.counts)
            further = [{**one, "teacher_kl": mean} for one, mean in zip(further, signal.means, strict=True)]
            if signal.weighted is not None:
                found = self._teacher_kl.weight_metrics(signal, rows, self._batch.texts, output)
                for name, value in found.items():
                    self._metrics["train"][name].append(value)
                steps = step_records(signal.weighted, len(rows))
                further = [{**one, "kd_steps": own} for one, own in zip(further, steps, strict=True)]
        return Round(output, self._records(advantages, further), self._live)

    def _log_counts(self, source: StepCredit | TeacherKL, counts: torch.Tensor) -> None:
        """Log the metrics of what all processes have counted."""
        for name, value in source.metrics(self.accelerator.gather(counts[None]).sum(dim=0)).items():
            self._metrics["train"][name].append(value)

    def _student_logprobs(self, output: dict[str, Any]) -> torch.Tensor:
        """The log-probabilities of the completions' tokens under the student that sampled them, (B, C)."""
        if "old_per_token_logps" in output:
            known: torch.Tensor = output["old_per_token_logps"]
            return known
        model: Any = self.model
        model.eval()
        try:
            with torch.no_grad():
                logprobs: torch.Tensor = self._get_per_token_logps_and_entropies(
                    model,
                    torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1),
                    torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1),
                    output["completion_ids"].shape[1],
                    batch_size=self.args.per_device_train_batch_size,
                )[0]
        finally:
            model.train()
        return logprobs

    def _generate(self, prompts: list[Any], *args: Any, **kwargs: Any) -> Any:
        generated = super()._generate(prompts, *args, **kwargs)
        if self._prefetched and self._batch.rows:
            completion_ids, completions = completions_of(generated, len(prompts))
            for reward in self._prefetched.values():
                reward.start(self._batch.rows, completions, completion_ids, self.state)
        return generated

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> torch.Tensor:
        rewards_NF = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        names = self.reward_func_names
        outcomes = {name: self._batch.outcomes[name] for name in names if name in self._batch.outcomes}
        self._batch = batch = ScoredBatch(
            inputs, [completion_text(completion) for completion in completions], outcomes
        )
        failed_NF = gather(torch.tensor(batch.failed(names), dtype=torch.bool, device=rewards_NF.device))
        group_size = self.num_generations if self._is_training() else self.num_generations_eval
        assert group_size is not None
        if self.args.shuffle_rewards and self._is_training():
            seeds: Any = self.args.shuffle_rewards  # the config has read it
            step = self.state.global_step
            rewards_NF, failed_NF = shuffled_in_groups(rewards_NF, failed_NF, names, seeds, group_size, step)
        self._log_reward_metrics(rewards_NF, group_size)
        if self._is_training():
            worst = self._failures.add(failed_NF.sum(dim=0).tolist(), len(failed_NF))
            if worst is not None:
                # All processes have seen the same and come here together.
                name, failed, total = worst
                cause = cause_and_rows(name, gather_object(batch.failures()))
                self._failures.end_run(f"reward {name!r}", failed, total, "completions", cause)
        try:
            settled_NF = settle(
                rewards_NF,
                failed_NF,
                group_size,
                on_failure=self.args.on_failure,
                gates=self._gates,
                fill=self.args.multi_objective_aggregation == "sum_then_normalize",
                describe=batch.failure_message,
            )
        except RewardError:
            self._save_rollouts(self._records(None, [{} for _ in inputs]))  # without advantages
            raise
        if self._resampling is not None:
            self._live = groups_with_spread(settled_NF, self.reward_weights, group_size)
        if self._step_credit is not None:
            self._step_credit.read_scales(rewards_NF, settled_NF, self.reward_weights, self._gates, group_size)
        if not self._warned_of_gate and (found := penalised_by_gate(settled_NF, self._gates)) is not None:
            self._warned_of_gate = True
            self._warn(gate_warning(names[found[0]], names[found[1]]))
        return settled_NF

    def _log_reward_metrics(self, rewards_NF: torch.Tensor, group_size: int) -> None:
        """Log where a reward tells completions apart, and how rewards correlate; equal on all processes."""
        names = self.reward_func_names
        shares = dict(zip(names, frac_zero_std(rewards_NF, group_size), strict=True))
        for name, share in shares.items():
            if math.isfinite(share):
                self._log_metric(f"rewards/{name}/frac_zero_std", share)
        for name in self._spread.add(shares) if self._is_training() else ():
            self._warn(self._spread.message(name))
        for (first, second), value in correlations(rewards_NF).items():
            self._log_metric(f"rewards/correlation/{names[first]}~{names[second]}", value)

    def _warn(self, message: str) -> None:
        if self.accelerator.is_main_process:
            logger.warning(message)

    def _is_training(self) -> bool:
        """Whether this is a training batch: TRL's own criterion."""
        return bool(self.model is not None and self.model.training)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with the number of rollouts so far where it differs from run to run or ends the run."""
        if self._resampling is not None or self._rollout_count.most is not None:
            logs = {**logs, "rollouts": self._rollout_count.total}
        super().log(logs, *args, **kwargs)

    def _records(self, advantages: torch.Tensor | None, further: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """A record per rollout of the round at hand, with `further` fields for each."""
        if not (self.args.save_rollouts and self._is_training()):
            return []
        values = [None] * len(self._batch.rows) if advantages is None else advantages.tolist()
        step = self.state.global_step + 1
        return [
            {"step": step, **record, "advantage": value, **more}
            for record, value, more in zip(self._batch.records(), values, further, strict=True)
        ]

    def _save_rollouts(self, records: list[dict[str, Any]]) -> None:
        if records:
            self.rollouts.append(records)


def _is_structural(reward: Reward | str | PreTrainedModel) -> bool:
    return isinstance(getattr(reward, "function", None), StructureReward)
