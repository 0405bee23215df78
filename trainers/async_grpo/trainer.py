"""TRL's AsyncGRPOTrainer with rewards from the registry: rollouts continue while the student trains.

It trains adapters only: full weights would go to the server by NCCL, which TRL's own trainer does. `docs/async.md`
describes the differences from TRL's trainer.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Silences the warning that the trainer is experimental; docs/async.md says so.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from trl.experimental.async_grpo import AsyncGRPOTrainer

from rewards import RewardError
from rlkd.files import read_records
from rlkd.models import resolve_model
from trainers.async_grpo.config import RLKDAsyncConfig
from trainers.async_grpo.preflight import check_async, clear_server
from trainers.async_grpo.preparation import prepare
from trainers.async_grpo.rollouts import packed_attention, whole_text
from trainers.common.adapters import name_base
from trainers.common.alarms import ALL_TRUNCATED, Alarms, all_truncated
from trainers.common.prompts import fitted_dataset
from trainers.common.run_files import RunFiles
from trainers.common.student import reading_options
from trainers.common.trl_compat import async_with, check_async_trl

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig


class RLKDAsyncTrainer(RunFiles, AsyncGRPOTrainer):
    """Asynchronous GRPO on a LoRA adapter, with rewards from the registry.

    `model`: a name or a folder, also `embedded`. `tokenizer`: by default the model's. Raises `UsageError` before the
    model loads if the run cannot work (see `check_async`), and `RewardError` during training when a reward
    breaks the contract, or fails under `on_failure="raise"`.
    """

    args: RLKDAsyncConfig

    _tag_names = ["trl", "async-grpo", "rlkd"]  # noqa: RUF012 (TRL's form)

    def __init__(
        self,
        model: str,
        args: RLKDAsyncConfig,
        train_dataset: Dataset,
        peft_config: LoraConfig,
        tokenizer: Any = None,
        **kwargs: Any,
    ):
        check_async_trl()
        log = Path(args.output_dir or ".").resolve() / "rollouts" / "async.jsonl"
        prepared = prepare(
            args,
            model,
            train_dataset,
            kwargs.get("eval_dataset"),
            peft_config,
            tokenizer=tokenizer,
            log=log if args.save_rollouts else None,
        )
        composite, tokenizer, train_dataset = prepared.composite, prepared.tokenizer, prepared.train_dataset
        assert composite is not None  # or `prepare` has raised
        student = resolve_model(model, trust_remote_code=reading_options(args)["trust_remote_code"])
        check_async(args, student, peft_config, train_dataset, tokenizer)
        # TRL renders the prompts in another process.
        train_dataset = fitted_dataset(train_dataset, tokenizer)
        # The rollout process gets a copy whose template keeps the whole text; the saved tokenizer stays as it was.
        reading = copy.deepcopy(tokenizer)
        reading.response_template = whole_text([tokenizer.eos_token])
        with async_with(packed_attention):
            super().__init__(
                model=student,
                reward_funcs=[composite],  # type: ignore[list-item]  # TRL awaits asynchronous ones
                args=args,
                train_dataset=train_dataset,
                processing_class=reading,
                peft_config=peft_config,
                **kwargs,
            )
        # The trainer knows all tokens that end a turn; the process starts later.
        ends = tokenizer.convert_ids_to_tokens(self.eos_token_ids)
        reading.response_template = whole_text([tokenizer.eos_token, *ends])
        if tokenizer.pad_token is None:
            tokenizer.pad_token = reading.pad_token
        self.processing_class = tokenizer
        self.rewards = composite.rewards
        name_base(self.model, model, on_top=True)
        self.open_run_files(log.name, student=model)
        alarms = Alarms({ALL_TRUNCATED: all_truncated})
        self.add_callback(alarms)
        self.keep("alarms", alarms)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, as `RunFiles.train` does. A resume leaves rollouts as they are, since they run ahead of the steps."""
        try:
            return super().train(*args, **kwargs)
        except RuntimeError as error:
            if (cause := reward_error(error)) is not None:
                raise cause from error
            raise
        finally:
            if self.accelerator.is_main_process:
                clear_server(self.args)

    def reward_names(self) -> list[str]:
        """The names of the rewards, in order."""
        return [reward.__name__ for reward in self.rewards]

    def reward_figures(self) -> dict[str, str]:
        """For each reward, a line of figures over all rollouts in the log, trained on or not."""
        outcomes: dict[str, list[Mapping[str, Any]]] = {}
        for record in read_records(self.rollouts_path) if self.rollouts_path.exists() else ():
            for name, outcome in record["rewards"].items():
                outcomes.setdefault(name, []).append(outcome)
        lines = {}
        for name, found in outcomes.items():
            scores = [outcome["value"] for outcome in found if outcome["status"] == "score"]
            parts = [f"mean {sum(scores) / len(scores):.3f} of {len(scores)} scores" if scores else "no score"]
            for status in ("failed", "not_applicable"):
                if count := sum(outcome["status"] == status for outcome in found):
                    parts.append(f"{count} {status.replace('_', ' ')}")
            lines[name] = ", ".join(parts)
        return lines


def async_line(step: int, max_steps: int, logs: Mapping[str, Any]) -> str | None:
    """The line of a step; `ratio`: of the trainer's and the server's probabilities, 1 where both have one policy."""
    if "ratio" not in logs:
        return None
    parts = [f"step {step}/{max_steps}"]
    for label, key, form in (
        ("reward", "reward", ".3f"),
        ("ratio", "ratio", ".4f"),
        ("kl", "kl", ".1e"),
        ("truncated", "completions/clipped_ratio", ".0%"),
        ("waited", "perf/rollout_wait_s", ".0f"),
    ):
        if logs.get(key) is not None:
            parts.append(f"{label} {logs[key]:{form}}{' s' if label == 'waited' else ''}")
    return " | ".join(parts)


def reward_error(error: RuntimeError) -> RewardError | None:
    """The error of a reward that ended the rollout process, if an error of TRL's trainer was caused by one.

    TRL passes it on as the text of a cause: the type, the message, a traceback.
    """
    kind, _, message = str(error.__cause__ or "").partition(": ")
    return RewardError(message.split("\nTraceback (most recent call last)")[0]) if kind == "RewardError" else None
