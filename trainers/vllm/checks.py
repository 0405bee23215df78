"""Checks a rollout server against the run before any model loads.

The server reports its own configuration. Each error ends with the command that starts a server which fits the run.
"""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from rlkd.engines import open_engine
from rlkd.errors import UsageError
from rlkd.http import get_json
from rlkd.installation import SUPPORTED_VLLM, installed_vllm, supports_vllm
from rlkd.process import is_first_process
from rlkd.rendering import prompt_ids
from trainers.vllm.adapter_checks import adapter_config, check_adapter, server_problems
from trainers.vllm.command import advice_for, rounded_length, server_addresses, server_backend

if TYPE_CHECKING:
    from trainers.rlkd.config import RLKDConfig

logger = logging.getLogger(__name__)

# Tokens are counted for this many prompts, the longest in characters.
COUNTED_PROMPTS = 16


def prepare_rollouts(
    args: RLKDConfig, model: Any, dataset: Any, tokenizer: Any = None, peft_config: Any = None
) -> AbstractContextManager[None]:
    """Check the rollouts of a run; returns the context in which TRL's trainer must be built.

    `peft_config`: the adapter that is trained, as TRL takes it; None where `model` has one.
    """
    if not args.use_vllm:
        return nullcontext()
    name = model if isinstance(model, str) else str(model.name_or_path)
    if tokenizer is None and hasattr(dataset, "__len__"):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=getattr(args, "trust_remote_code", False))
    options = args.reward_kwargs if isinstance(args.reward_kwargs, dict) else {}
    template: Any = args.chat_template_kwargs
    engines = [str(parameters["engine"]) for parameters in options.values() if parameters.get("engine")]
    longest = longest_prompt(dataset, tokenizer, template) if tokenizer else 0
    check_rollouts(args, name, longest, engines, adapter_config(model, peft_config))
    from trainers.vllm.rollout_engine import rollout_engine

    return rollout_engine(args)


def keep_server_current(trainer: Any) -> None:
    """Let the rollout servers of a trainer, if it has some, have its adapter, or the weights again after a restart."""
    if trainer.use_vllm and trainer.args.vllm_adapter_sync:
        from trainers.vllm.adapter_sync import sync_adapters

        sync_adapters(trainer.vllm_generation, trainer.args.output_dir)
    elif trainer.use_vllm:
        from trainers.vllm.restarts import give_weights_again

        give_weights_again(trainer)


def check_rollouts(
    args: RLKDConfig, model: str, prompt_tokens: int, engines: Sequence[str] = (), adapter: Any = None
) -> None:
    """Check that vLLM can do the rollouts of this run; raises `UsageError`.

    `prompt_tokens`: tokens of the longest prompt; `engines`: specs of the engines that rewards use; `adapter`: the
    configuration of the adapter that is trained.
    """
    if not args.use_vllm:
        return
    on_cpu = args.device.type == "cpu"
    needed = prompt_tokens + (args.max_completion_length or 0)
    urls = server_addresses(args)
    rank = None
    if args.vllm_adapter_sync:
        if args.vllm_mode != "server":
            raise UsageError(
                f"vllm_adapter_sync is for vllm_mode: server; this run has vllm_mode: {args.vllm_mode}. Remove it"
            )
        check_adapter(adapter)
        rank = adapter.r
    if args.vllm_mode == "server":
        if len(urls) > 1 and rank is None:
            raise UsageError(
                f"vllm_server_base_url names {len(urls)} servers, and all weights go to one. With LoRA set "
                f"vllm_adapter_sync: true, which loads the adapter into each, or name one server"
            )
        if on_cpu and args.vllm_weight_transfer == "nccl":
            raise UsageError(
                "vllm_weight_transfer: nccl sends the weights between GPUs, and this run is on a CPU. Set "
                "vllm_weight_transfer: gloo (or disk), and start the server with:\n"
                + advice_for(args, model, needed, rank)
            )
        for index, url in enumerate(urls if args.process_index == 0 else ()):
            _check_port(args, args.vllm_group_port + index)
            _check_server(args, url, model, needed, rank)
        return
    if args.vllm_weight_transfer != "nccl":
        raise UsageError(
            f"vllm_weight_transfer: {args.vllm_weight_transfer} is for vllm_mode: server; in vllm_mode: colocate the "
            f"engine is in this process, and nothing is transferred. Remove it, or start a server:\n"
            + advice_for(args, model, needed)
        )
    if args.vllm_max_model_length is not None and args.vllm_max_model_length < needed:
        raise UsageError(
            f"vllm_max_model_length {args.vllm_max_model_length} is less than the longest prompt ({prompt_tokens} "
            f"tokens) and max_completion_length ({args.max_completion_length}): set it to {rounded_length(needed)}"
        )
    if on_cpu and args.vllm_enable_sleep_mode and args.process_index == 0:
        logger.warning("vllm_enable_sleep_mode has no effect on a CPU")
    _check_memory(args, engines, on_cpu)


def longest_prompt(dataset: Any, tokenizer: Any, template: Mapping[str, Any] | None = None) -> int:
    """Tokens of the longest of the 16 prompts with the most characters, or 0 if the length is unknown.

    It is for a stream, and where an environment writes the prompts.
    """
    if dataset is None or not hasattr(dataset, "__len__") or "prompt" not in dataset.column_names:
        return 0

    def text(prompt: Any) -> str:
        return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)

    longest = sorted(dataset["prompt"], key=lambda prompt: len(text(prompt)))[-COUNTED_PROMPTS:]

    return max((len(prompt_ids(tokenizer, prompt, template)) for prompt in longest), default=0)


def check_installed() -> None:
    """Raise `UsageError` without vLLM in this environment; warn about a version that TRL does not support."""
    found = installed_vllm()
    if found is None:
        raise UsageError(
            'use_vllm=True, but vllm is not installed. Run  pip install "rlkd[vllm]"  or set use_vllm: false. (TRL '
            "needs it here in server mode as well. Without a GPU: docs/vllm.md)"
        )
    if not supports_vllm(found) and is_first_process():
        logger.warning(
            "vLLM %s is installed; TRL supports %s to %s. Expect errors, or install one of those",
            found,
            *SUPPORTED_VLLM,
        )


def _check_port(args: RLKDConfig, port: int) -> None:
    if args.vllm_weight_transfer == "disk":
        return
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UsageError(
                f"vllm_group_port {port}, from which the server fetches the weights, is taken on this "
                f"machine ({error.strerror}). Set another one, for instance --vllm_group_port {_free_port()}"
            ) from error


def _check_server(args: RLKDConfig, url: str, model: str, needed: int, rank: int | None) -> None:
    advice = "Start it with:\n" + advice_for(args, model, needed, rank, url)
    _, config = request_server(url, args, model, needed, advice)
    transfer = (config.get("weight_transfer_config") or {}).get("backend")
    if (wanted := server_backend(args)) not in (None, transfer):
        raise UsageError(
            f"{url} was started {f'for weights by {transfer}' if transfer else 'without --weight-transfer-config'}, "
            f"and this run sends them by {wanted} (vllm_weight_transfer). {advice}"
        )
    for problem in () if rank is None else server_problems(url, config, rank):
        raise UsageError(f"{url} {problem} (vllm_adapter_sync). {advice}")
    described = config.get("model_config") or {}
    mode = described.get("logprobs_mode", "processed_logprobs")
    if args.vllm_importance_sampling_correction and mode != "processed_logprobs":
        raise UsageError(
            f"{url} gives {mode}; the importance sampling correction needs processed_logprobs. {advice}\n"
            f"Or set vllm_importance_sampling_correction: false"
        )
    dtype = str(described.get("dtype", "")).removeprefix("torch.")
    if args.device.type == "cpu" and dtype not in ("", "float32"):
        logger.warning(
            "%s computes in %s: its log-probabilities then differ from a CPU trainer's by up to 0.65. %s",
            url,
            dtype,
            advice,
        )
    status, answer = get_json(f"{url}/version")
    version = answer.get("version") if status == 200 else None
    if version and not supports_vllm(version):
        logger.warning("%s is vLLM %s; TRL supports %s to %s", url, version, *SUPPORTED_VLLM)


def _check_memory(args: RLKDConfig, engines: Sequence[str], on_cpu: bool) -> None:
    """Warn if rewards load models onto the GPU that the rollout engine shares with the trainer."""
    local = [] if on_cpu else sorted({spec for spec in engines if not open_engine(spec).is_remote})
    if local and args.process_index == 0:
        logger.warning(
            "vLLM takes %.0f %% of the GPU's memory (vllm_gpu_memory_utilization) in addition to the trainer, and "
            "rewards load %s in this process as well. Together they must fit (the shares of all vLLM engines: well "
            "under 1). Otherwise serve the reward model on another GPU: engine: http://HOST:PORT/v1#MODEL",
            100 * args.vllm_gpu_memory_utilization,
            ", ".join(local),
        )


def request_server(url: str, args: Any, model: str, needed: int, advice: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Wait for a rollout server; returns its list of models and its vLLM configuration.

    `needed`: tokens of a prompt and its completion. Raises `UsageError`, which ends with `advice`, if it does not
    answer, is not vLLM in development mode, serves another model than the student, or takes fewer tokens.
    """
    wait_for_server(url, args.vllm_server_timeout, advice)
    status, listed = get_json(f"{url}/v1/models")
    # Loaded adapters have a parent.
    served = next((card for card in listed.get("data") or [] if not card.get("parent")), None)
    if status != 200 or served is None:
        raise UsageError(f"{url} is not a vLLM server: /v1/models answers HTTP {status}. {advice}")
    known_as = [str(served[key]) for key in ("id", "root") if served.get(key)]
    if not any(same_model(name, model) for name in known_as):
        raise UsageError(f"{url} serves {(known_as or ['no model'])[-1]}, and the student is {model}. {advice}")
    length = served.get("max_model_len")
    if length is not None and length < needed:
        raise UsageError(
            f"{url} takes {length} tokens, and the longest prompt and max_completion_length "
            f"({args.max_completion_length}) are {needed} together. Lower max_completion_length. Or: {advice}"
        )
    status, information = get_json(f"{url}/server_info?config_format=json")
    if status == 404:
        raise UsageError(
            f"{url} was started without VLLM_SERVER_DEV_MODE=1: it takes no weights and cannot be paused. {advice}"
        )
    config = information.get("vllm_config")
    if status != 200 or not isinstance(config, dict):
        raise UsageError(f"{url} does not return its configuration: /server_info answers HTTP {status}. {advice}")
    return listed, config


@contextmanager
def asked_once(args: Any) -> Iterator[None]:
    """A rollout server that does not answer is not waited for, as in a dry run."""
    patience, args.vllm_server_timeout = args.vllm_server_timeout, 0.0
    try:
        yield
    finally:
        args.vllm_server_timeout = patience


def wait_for_server(url: str, seconds: float, advice: str) -> None:
    """Wait until a server is healthy; raises `UsageError`, which ends with `advice`, after `seconds`."""
    if urlparse(url).scheme not in ("http", "https"):
        raise UsageError(f"vllm_server_base_url {url!r}: expected http://HOST:PORT. {advice}")
    deadline = time.monotonic() + seconds
    has_warned = False
    while True:
        try:
            status, _ = get_json(f"{url}/health")
            if status == 200:
                return
            reason = f"/health answers HTTP {status}"
        except OSError as error:
            reason = str(getattr(error, "reason", error))
        if time.monotonic() >= deadline:
            raise UsageError(
                f"no rollout server at {url} after {seconds:g} seconds (vllm_server_timeout): {reason}. {advice}"
            )
        if not has_warned:
            logger.warning("waiting up to %g s for the rollout server at %s (%s)", seconds, url, reason)
            has_warned = True
        time.sleep(min(2.0, max(0.05, deadline - time.monotonic())))


def same_model(one: str, other: str) -> bool:
    """Whether two names or folders are one model, judged without reading weights."""
    if one == other or Path(one).expanduser().resolve() == Path(other).expanduser().resolve():
        return True
    # On another machine the folder may have another path.
    return Path(one).is_absolute() and not Path(one).exists() and Path(one).name == Path(other).name


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
