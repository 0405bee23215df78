"""RLKD: GRPO with a structure reward (arXiv 2505.16142).

The teacher's signal is a reward, so the trainer is TRL's GRPOTrainer, with these differences:

1. rewards are named in the config (`reward_funcs`, `reward_kwargs`, `reward_weights`), and so are gates;
2. a missing reward is neutral (`trainers.common.missing`), where TRL counts it as 0;
3. what cannot work fails before the model loads (`trainers.rlkd.preflight`), and a reward that fails too often ends
   the run after a checkpoint (`trainers.common.failures`);
4. every rollout goes to a file with each reward's score, outcome and cause (but for reward models, which have a score
   in the metrics only), and metrics go to another; both go on without gap or duplicate when a run resumes.

With rewards that are never missing and without gates, it trains exactly as GRPOTrainer does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils import gather, gather_object
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, TrainerCallback
from trl import GRPOTrainer

from rewards import Outcome, Reward, RewardError, build_rewards
from rewards.runner import name_of, wrap
from rlkd.data.rows import completion_text
from rlkd.models import resolve_model
from trainers.common.failures import (
    Failure,
    FailureWatch,
    TooManyFailures,
    correlations,
    describe_failures,
    zero_spread,
)
from trainers.common.missing import apply_gates, drop_failed, fill_missing
from trainers.common.run_files import RunFiles
from trainers.common.trl_compat import check_generate, check_trl, completions_of
from trainers.rlkd.config import RLKDConfig
from trainers.rlkd.prefetch import Prefetch
from trainers.rlkd.preflight import check_config, check_dataset, check_services, rollout_window
from trainers.vllm.checks import prepare_rollouts

RewardLike = str | Callable[..., Any] | PreTrainedModel


class RLKDTrainer(RunFiles, GRPOTrainer):
    """GRPO with rewards from the registry, neutral missing rewards, and a record of every rollout.

    Takes what `GRPOTrainer` takes. `model` may be `embedded`. `reward_funcs` may hold specs, TRL reward callables and
    reward models; where it is not given, `args.reward_funcs` names the rewards.

    Raises `UsageError` before the model loads (see `trainers.rlkd.preflight`), and `RewardError` during
    training when a reward breaks the contract, or fails under `on_failure="raise"`.
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
        if args is not None and args.reward_prefetch:
            check_generate()
        args = args or RLKDConfig("rlkd-output")
        built = _resolve_rewards(reward_funcs, args)
        names = [reward.__name__ if isinstance(reward, Reward) else "model" for reward in built]
        check_config(args, names)
        if train_dataset is not None:
            check_dataset(args, built, train_dataset)
        for part, dataset in (eval_dataset if isinstance(eval_dataset, dict) else {"": eval_dataset}).items():
            if dataset is not None:
                check_dataset(args, built, dataset, f"eval_dataset {part}".strip())
        check_services(built)
        self._prefetch = Prefetch(built) if args.reward_prefetch else None
        self._rows: list[dict[str, Any]] = []
        self._watch = FailureWatch(names, args.max_failure_rate, args.failure_window)
        self._failures: tuple[tuple[str, int, int], list[Failure]] | None = None
        self._gates = {names.index(gated): names.index(condition) for gated, condition in args.gates().items()}
        self._scored: tuple[list[str], list[list[Outcome | None]]] = ([], [])
        student = resolve_model(model) if isinstance(model, str) else model
        with prepare_rollouts(args, student, train_dataset, kwargs.get("processing_class")):
            super().__init__(
                model=student,
                reward_funcs=list(built),
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                **kwargs,
            )
        self.open_run_files()
        self.add_callback(_EndOnFailures(self))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, as `RunFiles.train` does; raise `TooManyFailures` where a reward failed too often."""
        self._failures = None
        result = super().train(*args, **kwargs)
        if self._failures is not None:
            (name, failed, total), recent = self._failures
            assert self.args.max_failure_rate is not None
            written = str(self.metrics_path.parent / f"checkpoint-{self.state.global_step}")
            raise TooManyFailures(
                describe_failures(
                    name, failed, total, self.args.max_failure_rate, self.args.failure_window, recent, written
                )
            )
        return result

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._rows = inputs
        output = super()._generate_and_score_completions(inputs)
        if self.args.save_rollouts and self._is_training():
            self._save_rollouts(inputs, output["advantages"])
        return output

    def _generate(self, prompts: list[Any], *args: Any, **kwargs: Any) -> Any:
        generated = super()._generate(prompts, *args, **kwargs)
        # With tools and environments, rows change and rewards may look at what is still at work.
        if self._prefetch is not None and not self.tools and self.environments is None:
            completion_ids, completions = completions_of(generated, len(prompts))
            self._prefetch.start(self._rows, completions, completion_ids, self.state)
        return generated

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> torch.Tensor:
        rewards_NF = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        outcomes_FB: list[list[Outcome | None]] = [
            list(reward.outcomes) if isinstance(reward, Reward) else [None] * len(prompts)
            for reward in self.reward_funcs
        ]
        self._scored = ([completion_text(completion) for completion in completions], outcomes_FB)
        failed_BF = torch.tensor(
            [[bool(o and o.status == "failed") for o in column] for column in outcomes_FB],
            dtype=torch.bool,
            device=rewards_NF.device,
        ).T.contiguous()
        failed_NF = gather(failed_BF)
        group_size = self.num_generations if self._is_training() else self.num_generations_eval
        assert group_size is not None
        self._log_spread(rewards_NF, group_size)
        if self._is_training() and self._failures is None and (worst := self._watch.add(failed_NF)) is not None:
            # All processes have seen the same and come here together.
            self._failures = worst, gather_object(_failures(inputs, self.reward_func_names, outcomes_FB))
        if self.args.on_failure == "raise" and failed_NF.any():
            if self.args.save_rollouts and self._is_training():
                self._save_rollouts(inputs, None)  # what they are about; no advantages were computed
            raise RewardError(_describe_failures(inputs, self.reward_func_names, outcomes_FB))
        if self.args.on_failure != "drop":
            failed_NF = torch.zeros_like(failed_NF)
        # A dropped completion neither enters the means of its group nor is filled from them.
        filled_NF = fill_missing(drop_failed(rewards_NF, failed_NF), group_size)
        return apply_gates(drop_failed(filled_NF, failed_NF), self._gates)

    def _log_spread(self, rewards_NF: torch.Tensor, group_size: int) -> None:
        """Log where a reward tells completions apart, and which rewards say the same; equal on all processes."""
        names = self.reward_func_names
        for name, share in zip(names, zero_spread(rewards_NF, group_size), strict=True):
            if math.isfinite(share):
                self._log_metric(f"rewards/{name}/zero_spread", share)
        for (first, second), value in correlations(rewards_NF).items():
            self._log_metric(f"rewards/correlation/{names[first]}~{names[second]}", value)

    def _is_training(self) -> bool:
        """Whether this is a training batch: TRL's own criterion."""
        return bool(self.model is not None and self.model.training)

    def _save_rollouts(self, inputs: list[dict[str, Any]], advantages: torch.Tensor | None) -> None:
        texts, outcomes_FB = self._scored
        records = []
        for i, (row, text) in enumerate(zip(inputs, texts, strict=True)):
            rewards = {}
            for name, outcomes in zip(self.reward_func_names, outcomes_FB, strict=True):
                if (outcome := outcomes[i]) is not None:
                    # When a server does not answer, it is of interest how long that took.
                    shown = {
                        "status": outcome.status,
                        "value": outcome.value,
                        "cause": outcome.cause,
                        "seconds": outcome.seconds,
                        "reused": outcome.reused,
                    }
                    detail = {"detail": dict(outcome.detail)} if outcome.detail else {}
                    rewards[name] = {key: value for key, value in shown.items() if value is not None} | detail
            records.append(
                {
                    "step": self.state.global_step + 1,
                    "id": row.get("id"),
                    "prompt": row["prompt"],
                    "completion": text,
                    "answer": row.get("answer"),
                    "rewards": rewards,
                    "advantage": None if advantages is None else advantages[i].item(),
                }
            )
        self.rollouts.append(records)


def _resolve_rewards(
    reward_funcs: RewardLike | Sequence[RewardLike] | None, args: RLKDConfig
) -> list[Reward | PreTrainedModel]:
    parameters = args.reward_kwargs if isinstance(args.reward_kwargs, dict) else {}
    options = dict(args.reward_options) if isinstance(args.reward_options, dict) else {}
    if reward_funcs is None:
        if not args.reward_funcs:
            raise RewardError("no rewards: reward_funcs is empty. `rlkd rewards list` shows the names there are.")
        return list(build_rewards(args.reward_funcs, parameters, options, cache=args.cache()))
    given = list(reward_funcs) if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]
    specs = [reward for reward in given if isinstance(reward, str)]
    # Those of functions and objects; what is left must belong to the specs.
    of_objects = {
        id(reward): options.pop(name_of(reward), None)
        for reward in given
        if not isinstance(reward, (str, PreTrainedModel, Reward))
    }
    named = iter(build_rewards(specs, parameters, options, cache=args.cache()))
    built: list[Reward | PreTrainedModel] = []
    for reward in given:
        if isinstance(reward, str):
            built.append(next(named))
        elif isinstance(reward, PreTrainedModel):
            built.append(reward)
        else:
            built.append(wrap(reward, options=of_objects.get(id(reward)), cache=args.cache()))  # type: ignore[arg-type]
    names = [reward.__name__ for reward in built if isinstance(reward, Reward)]
    for name in names:
        if names.count(name) > 1:
            raise RewardError(f"two rewards are called {name!r}, so their metrics would be mixed; rename one")
    return built


class _EndOnFailures(TrainerCallback):
    """Ends the run after a checkpoint, once a reward has failed too often."""

    def __init__(self, trainer: RLKDTrainer):
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """A checkpoint in the middle of what one batch of rollouts serves could not be resumed exactly."""
        at_an_end = state.global_step % rollout_window(args) == 0 or state.global_step >= state.max_steps
        if self._trainer._failures is not None and at_an_end:
            control.should_save = True
            control.should_training_stop = True
        return control


def _failures(
    inputs: Sequence[dict[str, Any]], names: Sequence[str], outcomes_FB: Sequence[Sequence[Outcome | None]]
) -> list[Failure]:
    return [
        Failure(name, outcome.cause or "", str(inputs[i].get("id", i)))
        for name, outcomes in zip(names, outcomes_FB, strict=True)
        for i, outcome in enumerate(outcomes)
        if outcome is not None and outcome.status == "failed"
    ]


def _describe_failures(
    inputs: Sequence[dict[str, Any]], names: Sequence[str], outcomes_FB: Sequence[Sequence[Outcome | None]]
) -> str:
    for name, outcomes in zip(names, outcomes_FB, strict=True):
        failed = _failures(inputs, [name], [outcomes])
        if failed:
            return (
                f"reward {name!r} failed on {len(failed)} of {len(outcomes)} completions (on_failure is 'raise'): "
                f"{failed[0].cause}. Rows: {', '.join(failure.row for failure in failed[:5])}"
            )
    return "a reward failed on another process (on_failure is 'raise'); its own message says which"
