"""TRL's AsyncGRPOTrainer with rewards from the registry: rollouts go on while the student trains.

A process beside the trainer asks a vLLM server for completions and scores them; the trainer takes what is ready, and
sends its LoRA adapter to the server after a step. What this adds to TRL's trainer:

1. rewards are named in the config, with weights and gates, and become one (`rewards.CompositeReward`), since TRL adds
   rewards up as they are and takes a missing one for 0;
2. the server is asked what it is before the model loads, and what an earlier run left on it is cleared away: its
   adapters, whose names would come again, and the pause of a server whose run was killed;
3. rewards read the whole text of a completion (`trainers.async_grpo.rollouts`);
4. it trains without a GPU, too (`trainers.async_grpo.rollouts`);
5. every rollout goes to `rollouts/async.jsonl` with each reward's outcome, and the metrics to `metrics.jsonl`.

Only adapters are trained: full weights would go to the server by NCCL, in ways that TRL's own trainer knows.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

# The import would say that it is experimental; docs/async.md says it.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from trl.experimental.async_grpo import AsyncGRPOTrainer

from rewards import RewardError
from rlkd.errors import UsageError
from rlkd.files import read_records
from rlkd.http import get_json, post_json
from rlkd.models import resolve_model
from rlkd.serve.vllm_command import shell_line, vllm_arguments, vllm_environment
from trainers.async_grpo.config import RLKDAsyncConfig
from trainers.async_grpo.rollouts import packed_attention, whole_text
from trainers.common.preflight import check_columns
from trainers.common.run_files import RunFiles
from trainers.common.trl_compat import async_with, check_async_trl
from trainers.vllm.checks import ask_server, installed_vllm, longest_prompt, rounded_length

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig

logger = logging.getLogger(__name__)

# TRL calls the adapters that it loads into the server trl-policy-v1, trl-policy-v2 and so on, in every run.
_ADAPTER = re.compile(r"trl-policy-v\d+")


class RLKDAsyncTrainer(RunFiles, AsyncGRPOTrainer):
    """Asynchronous GRPO on a LoRA adapter, with rewards from the registry.

    `model`: a name or a folder, also `embedded`. `tokenizer`: by default the model's. Raises `UsageError` before the
    model loads where something does not fit (see `check_async`), and `RewardError` during training when a reward
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
        from transformers import AutoTokenizer

        check_async_trl()
        log = Path(args.output_dir or ".").resolve() / "rollouts" / "async.jsonl"
        composite = args.composite(log if args.save_rollouts else None)
        composite.check_columns(check_columns(train_dataset, "train_dataset") or ())
        composite.check_ready()
        student = resolve_model(model)
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(student, revision=_revision(args))
        check_async(args, student, peft_config, train_dataset, tokenizer)
        # The rollout process gets a copy that reads completions as rewards want them; what is saved stays as it was.
        reading = copy.deepcopy(tokenizer)
        reading.response_template = whole_text([tokenizer.eos_token])
        with async_with(packed_attention):
            super().__init__(
                model=student,
                reward_funcs=[composite],  # type: ignore[list-item]  # TRL awaits what is asynchronous
                args=args,
                train_dataset=train_dataset,
                processing_class=reading,
                peft_config=peft_config,
                **kwargs,
            )
        # All that ends a turn is known now; the process starts later.
        ends = tokenizer.convert_ids_to_tokens(self.eos_token_ids)
        reading.response_template = whole_text([tokenizer.eos_token, *ends])
        if tokenizer.pad_token is None:
            tokenizer.pad_token = reading.pad_token
        self.processing_class = tokenizer
        self.open_run_files(log.name)

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
                _clear(server_url(self.args), self._own_adapters())

    def reward_figures(self) -> dict[str, str]:
        """For each reward, a line on what it said of all rollouts in the log, trained on or not."""
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

    def _own_adapters(self) -> list[str]:
        """The adapters of this run that the server still holds."""
        try:
            _, listed = get_json(f"{server_url(self.args)}/v1/models")
        except OSError:  # the server is gone, and they with it
            return []
        return [name for name, path in _adapters(listed) if _within(path, self.metrics_path.parent)]


def async_line(step: int, max_steps: int, logs: Mapping[str, Any]) -> str | None:
    """The line of a step.

    It shows the mean of the combined reward over the completions trained on, the mean ratio of the trainer's and the
    server's probabilities (1 where both have the same policy), their divergence, the share of truncated completions,
    and the seconds that the trainer waited for rollouts.
    """
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


def check_async(
    args: RLKDAsyncConfig, model: str, peft_config: LoraConfig, dataset: Dataset, tokenizer: Any = None
) -> None:
    """Check what TRL would find out late or never, and clear the server of an earlier run in the same output folder.

    Raises `UsageError`; where it is about the server, with the command that starts one that fits.
    `model`: name or folder of the student, as the server has it.
    """
    if installed_vllm() is None:
        raise UsageError(
            'the asynchronous trainer needs vllm in this environment, too. Run  pip install "rlkd[vllm]"  (without a '
            "GPU: docs/vllm.md)"
        )
    _check_packages()
    if args.max_staleness < 0:
        raise UsageError(f"max_staleness {args.max_staleness}: expected 0 or more policy updates")
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            f"the tokenizer of {model} has no chat template, and the asynchronous trainer asks in messages. Take an "
            f"instruct model"
        )
    prompt_tokens = longest_prompt(dataset, tokenizer)
    needed = prompt_tokens + args.max_completion_length
    if args.token_budget is not None and 0 < args.token_budget < needed:
        raise UsageError(
            f"token_budget {args.token_budget} is less than the longest prompt ({prompt_tokens} tokens) and "
            f"max_completion_length ({args.max_completion_length}) together, and TRL would drop what does not fit. "
            f"Set token_budget: {rounded_length(needed)}, or lower max_completion_length"
        )
    if args.process_index == 0:
        _check_server(args, model, peft_config, needed)


def reward_error(error: RuntimeError) -> RewardError | None:
    """The mistake of a reward that ended the rollout process, if that is what an error of TRL's trainer tells.

    TRL passes it on as the text of a cause: the type, the message, a traceback.
    """
    kind, _, told = str(error.__cause__ or "").partition(": ")
    return RewardError(told.split("\nTraceback (most recent call last)")[0]) if kind == "RewardError" else None


def serve_command(args: RLKDAsyncConfig, model: str, rank: int, tokens: int) -> str:
    """The command, with its environment, that starts a rollout server for this run.

    `rank`: of the adapter; `tokens`: of the longest prompt with its completion.
    """
    url = urlparse(server_url(args))
    on_cpu = args.device.type == "cpu"
    arguments = vllm_arguments(
        host=url.hostname or "0.0.0.0",
        port=url.port or 8000,
        on_cpu=on_cpu,
        dtype="bfloat16" if args.bf16 else "float16" if args.fp16 else "float32",
        max_model_len=rounded_length(tokens),
        max_lora_rank=rank,
        max_loras=_slots(args),
        weight_transfer="lora",
    )
    environment = vllm_environment(on_cpu=on_cpu, weight_transfer="lora")
    return shell_line(environment, ["vllm", "serve", model, *arguments])


def server_url(args: RLKDAsyncConfig) -> str:
    """The rollout server's address, without a closing slash."""
    return str(args.vllm_server_base_url).rstrip("/").removesuffix("/v1")


def _check_packages() -> None:
    import torch

    # The second one fetches the attention kernel from the hub.
    for package in ["aiohttp", *(["kernels"] if torch.cuda.is_available() else [])]:
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"the asynchronous trainer needs the package {package}. Run  pip install {package}")


def _check_server(args: RLKDAsyncConfig, model: str, peft_config: LoraConfig, needed: int) -> None:
    url = server_url(args)
    rank = max([peft_config.r, *(peft_config.rank_pattern or {}).values()])
    advice = "Start it so:\n  " + serve_command(args, model, rank, needed)
    try:
        get_json(f"{url}/health")
    except OSError:
        print(f"No rollout server answers at {url} yet. {advice}", flush=True)
    listed, config = ask_server(url, args, model, needed, advice)
    for complaint in _complaints(config, args, rank):
        raise UsageError(f"{url} {complaint}. {advice}")
    # Where there is such an address, GET is the wrong method: 405.
    if get_json(f"{url}/v1/load_lora_adapter")[0] == 404:
        raise UsageError(
            f"{url} was started without VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, and takes no adapter. {advice}"
        )
    _clear_earlier_run(url, listed, Path(args.output_dir or "."))


def _complaints(config: Mapping[str, Any], args: RLKDAsyncConfig, rank: int) -> Iterator[str]:
    """What in a server's configuration does not fit the run."""
    lora = config.get("lora_config")
    if not lora:
        yield "was started without --enable-lora, and takes no adapter"
        return
    if lora["max_lora_rank"] < rank:
        yield f"takes adapters up to rank {lora['max_lora_rank']}, and this one has {rank} (lora_r)"
    if lora["max_loras"] < _slots(args):
        yield (
            f"holds {lora['max_loras']} adapters at once (--max-loras), and max_staleness {args.max_staleness} needs "
            f"{_slots(args)}: one for each policy that still counts, and the next one"
        )
    if (config.get("parallel_config") or {}).get("data_parallel_size", 1) > 1:
        yield "runs several replicas (--data-parallel-size), and an adapter would reach one of them only"
    mode = (config.get("model_config") or {}).get("logprobs_mode", "processed_logprobs")
    if args.temperature != 1 and mode != "processed_logprobs":
        yield (
            f"gives {mode}, and the trainer compares with log-probabilities at temperature {args.temperature:g} "
            f"(processed_logprobs)"
        )


def _clear_earlier_run(url: str, listed: Mapping[str, Any], output: Path) -> None:
    """Unload the adapters of an earlier run in the same folder; raise `UsageError` for those of another one."""
    ours: list[tuple[str, str]] = []
    others: list[tuple[str, str]] = []
    for name, path in _adapters(listed):
        (ours if _within(path, output) else others).append((name, path))
    if others:
        folder = Path(others[0][1]).parent.parent
        unload = [
            f"  curl -X POST {url}/v1/unload_lora_adapter -H 'content-type: application/json' "
            f"-d '{json.dumps({'lora_name': name})}'"
            for name, _ in others
        ]
        raise UsageError(
            f"{url} holds adapters of a run in {folder}, whose names this run would use, too. While that one still "
            f"trains, give this one a server of its own (--vllm_server_base_url). If it is over, unload them:\n"
            + "\n".join(unload)
        )
    _clear(url, [name for name, _ in ours])


def _clear(url: str, adapters: list[str]) -> None:
    """Unload adapters, and let the server go on if it was paused.

    A run that was killed while it sent an adapter leaves the server paused: it takes requests and never answers.
    """
    try:
        if get_json(f"{url}/is_paused")[1].get("is_paused"):
            _post(f"{url}/resume")
    except OSError as error:
        logger.warning("%s could not be asked to go on: %s", url, error)
    for name in adapters:
        try:
            _post(f"{url}/v1/unload_lora_adapter", {"lora_name": name})
            logger.info("unloaded %s from %s", name, url)
        except OSError as error:
            logger.warning("%s could not be cleared of the adapter %s: %s", url, name, error)


def _adapters(listed: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and folder of each adapter of an asynchronous run, from what /v1/models lists."""
    cards = listed.get("data") or []
    return [(card["id"], str(card.get("root") or "")) for card in cards if _ADAPTER.fullmatch(str(card.get("id")))]


def _within(path: str, folder: Path) -> bool:
    return Path(path).resolve().is_relative_to(folder.expanduser().resolve())


def _slots(args: RLKDAsyncConfig) -> int:
    """Adapters that the server holds at once: of every policy that still counts, and the next one, as TRL asks for."""
    return args.max_staleness + 2


def _post(url: str, content: Mapping[str, Any] | None = None) -> None:
    """Raises `OSError` without a response, or if it is an error."""
    status, _ = post_json(url, content)
    if status >= 400:
        raise OSError(f"{url} returned HTTP status {status}")


def _revision(args: RLKDAsyncConfig) -> str:
    kwargs = args.model_init_kwargs if isinstance(args.model_init_kwargs, dict) else {}
    return str(kwargs.get("revision") or "main")
