"""Checks of an asynchronous run and its rollout server before the student loads."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from rlkd.errors import UsageError
from rlkd.http import get_json, post_json
from rlkd.installation import installed_vllm
from rlkd.serve.vllm_command import shell_line, vllm_arguments, vllm_environment
from trainers.vllm.adapter_checks import server_problems
from trainers.vllm.checks import longest_prompt, request_server
from trainers.vllm.command import rounded_length
from trainers.vllm.sampling import changed_sampling

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig

    from trainers.async_grpo.config import RLKDAsyncConfig

logger = logging.getLogger(__name__)

# TRL calls the adapters that it loads into the server trl-policy-v1, trl-policy-v2 and so on, in every run.
_ADAPTER = re.compile(r"trl-policy-v\d+")


def check_async(
    args: RLKDAsyncConfig,
    model: str,
    peft_config: LoraConfig,
    dataset: Dataset,
    tokenizer: Any = None,
    *,
    frees: bool = True,
) -> None:
    """Check what TRL would find out late or never, and free the server of an earlier run in the same output folder.

    Raises `UsageError`, for a server with the command that starts one that fits. `model`: name or folder of the
    student, as the server has it. `frees`: false leaves the server as it is.
    """
    if installed_vllm() is None:
        raise UsageError(
            'the asynchronous trainer needs vllm in this environment as well. Run  pip install "rlkd[vllm]"  (without '
            "a GPU: docs/vllm.md)"
        )
    _check_packages()
    if args.max_staleness < 0:
        raise UsageError(f"max_staleness {args.max_staleness}: expected 0 or more policy updates")
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            f"the tokenizer of {model} has no chat template, and the asynchronous trainer sends messages. Use an "
            f"instruct model"
        )
    template: Any = args.chat_template_kwargs
    prompt_tokens = longest_prompt(dataset, tokenizer, template)
    needed = prompt_tokens + args.max_completion_length
    if args.token_budget is not None and 0 < args.token_budget < needed:
        raise UsageError(
            f"token_budget {args.token_budget} is less than the longest prompt ({prompt_tokens} tokens) and "
            f"max_completion_length ({args.max_completion_length}) together, and TRL would drop longer rows. "
            f"Set token_budget: {rounded_length(needed)}, or lower max_completion_length"
        )
    if args.process_index == 0:
        _check_server(args, model, peft_config, needed, frees)


def serve_command(args: RLKDAsyncConfig, model: str, rank: int, tokens: int) -> str:
    """The command, with its environment, that starts a rollout server for this run.

    `rank`: rank of the adapter; `tokens`: tokens of the longest prompt with its completion.
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
    """The rollout server's address, without a trailing slash."""
    return str(args.vllm_server_base_url).rstrip("/").removesuffix("/v1")


def _check_packages() -> None:
    import torch

    # `kernels` fetches the attention kernel from the hub.
    for package in ["aiohttp", *(["kernels"] if torch.cuda.is_available() else [])]:
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"the asynchronous trainer needs the package {package}. Run  pip install {package}")


def _check_server(args: RLKDAsyncConfig, model: str, peft_config: LoraConfig, needed: int, frees: bool) -> None:
    url = server_url(args)
    rank = max([peft_config.r, *(peft_config.rank_pattern or {}).values()])
    advice = "Start it with:\n  " + serve_command(args, model, rank, needed)
    try:
        get_json(f"{url}/health")
    except OSError:
        print(f"No rollout server answers at {url} yet. {advice}", flush=True)
    listed, config = request_server(url, args, model, needed, advice)
    for problem in (*server_problems(url, config, rank), *_problems(config, args)):
        raise UsageError(f"{url} {problem}. {advice}")
    if frees:
        _clear_earlier_run(url, listed, Path(args.output_dir or "."))


def _problems(config: Mapping[str, Any], args: RLKDAsyncConfig) -> Iterator[str]:
    if (lora := config.get("lora_config")) and lora["max_loras"] < _slots(args):
        yield (
            f"holds {lora['max_loras']} adapters at once (--max-loras), and max_staleness {args.max_staleness} needs "
            f"{_slots(args)}: one for each usable policy, and the next one"
        )
    mode = (config.get("model_config") or {}).get("logprobs_mode", "processed_logprobs")
    if mode == "processed_logprobs" and (changed := changed_sampling(args)):
        yield (
            f"gives {mode}, in which {changed} counts, and not in the trainer's: their ratio would be far below 1 "
            f"and most of the update lost. Leave it out of the config"
        )
    if args.temperature != 1 and mode != "processed_logprobs":
        yield (
            f"gives {mode}, and the trainer compares with log-probabilities at temperature {args.temperature:g} "
            f"(processed_logprobs)"
        )


def _clear_earlier_run(url: str, listed: Mapping[str, Any], output: Path) -> None:
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
            f"{url} holds adapters of a run in {folder}, whose names this run would use as well. If that run still "
            f"trains, start another server for this one (--vllm_server_base_url). If it has ended, unload them:\n"
            + "\n".join(unload)
        )
    _clear(url, [name for name, _ in ours])


def clear_server(args: RLKDAsyncConfig) -> None:
    """Unload the adapters of this run, for its end."""
    url = server_url(args)
    try:
        _, listed = get_json(f"{url}/v1/models")
    except OSError:  # the server has ended
        listed = {}
    output = Path(args.output_dir or ".")
    _clear(url, [name for name, path in _adapters(listed) if _within(path, output)])


def _clear(url: str, adapters: list[str]) -> None:
    """Unload adapters, and resume the server if it is paused.

    A run that was killed while it sent an adapter leaves the server paused: it takes requests and never answers.
    """
    try:
        if get_json(f"{url}/is_paused")[1].get("is_paused"):
            _post(f"{url}/resume")
    except OSError as error:
        logger.warning("%s did not resume: %s", url, error)
    for name in adapters:
        try:
            _post(f"{url}/v1/unload_lora_adapter", {"lora_name": name})
            logger.info("unloaded %s from %s", name, url)
        except OSError as error:
            logger.warning("the adapter %s could not be unloaded from %s: %s", name, url, error)


def _adapters(listed: Mapping[str, Any]) -> list[tuple[str, str]]:
    cards = listed.get("data") or []
    return [(card["id"], str(card.get("root") or "")) for card in cards if _ADAPTER.fullmatch(str(card.get("id")))]


def _within(path: str, folder: Path) -> bool:
    return Path(path).resolve().is_relative_to(folder.expanduser().resolve())


def _slots(args: RLKDAsyncConfig) -> int:
    """Adapters on the server at once: one for each usable policy, and the next one, as TRL requires."""
    return args.max_staleness + 2


def _post(url: str, content: Mapping[str, Any] | None = None) -> None:
    """Raises `OSError` without a response, or if it is an error."""
    status, _ = post_json(url, content)
    if status >= 400:
        raise OSError(f"{url} returned HTTP status {status}")
