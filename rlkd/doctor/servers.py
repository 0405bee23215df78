"""Servers: those that the command line names, and the hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlparse

from rlkd.doctor.findings import Finding, listed
from rlkd.engines.spec import without_secrets
from rlkd.http import get_json
from rlkd.installation import SUPPORTED_VLLM, supports_vllm

HUB = "https://huggingface.co"
SECONDS = 5.0
_TRUE = ("1", "true", "yes", "on")


def check_server(url: str) -> Iterator[Finding]:
    """Whether a server answers, the models that it serves, and what rlkd can use it for."""
    base = url.partition("#")[0].rstrip("/").removesuffix("/v1")
    shown = without_secrets(base)
    if urlparse(base).scheme not in ("http", "https"):
        yield Finding("servers", "problem", f"{shown}: no address", "Expected http://HOST:PORT")
        return
    try:
        status, listed_models = get_json(f"{base}/v1/models", timeout=SECONDS)
    except OSError as error:
        yield Finding("servers", "problem", f"{shown}: {error}", "Start it (rlkd serve, vllm serve).")
        return
    if status in (401, 403):
        yield Finding("servers", "warning", f"{shown} wants an API key (HTTP {status})", "See docs/engines.md.")
        return
    cards: list[dict[str, Any]] = listed_models.get("data") or []
    if status != 200 or not cards:
        yield Finding(
            "servers",
            "problem",
            f"{shown}: /v1/models answers HTTP {status} and names no model",
            "Expected a server with OpenAI's API, such as vLLM.",
        )
        return
    names = [str(card.get("id")) for card in cards]
    length = cards[0].get("max_model_len")
    tokens = f", up to {length} tokens" if length else ""
    wanted = url.partition("#")[2]
    text = f"{shown} serves {listed(names)}{tokens}"
    if wanted and wanted not in names:
        yield Finding("servers", "problem", text, f"It does not serve {wanted!r}. Name a model that it serves.")
    else:
        yield Finding("servers", "ok", text)
    yield from _vllm(base, shown)


def check_hub() -> Finding:
    """Whether models and datasets of the hub can be fetched."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(name, "").lower() in _TRUE:
            return Finding("hub", "ok", f"offline by {name}: included models, local folders, and what the cache has")
    hub = os.environ.get("HF_ENDPOINT") or HUB
    try:
        status, _ = get_json(f"{hub}/api/models?limit=1", timeout=SECONDS)
    except OSError as error:
        status, reason = 0, str(error)
    else:
        reason = f"HTTP {status}"
    if 200 <= status < 500:
        return Finding("hub", "ok", f"{hub} can be reached")
    return Finding(
        "hub",
        "warning",
        f"{hub} cannot be reached ({reason})",
        "Included models, folders and the cache work. HF_ENDPOINT names a mirror; HF_HUB_OFFLINE=1 saves waiting.",
    )


def _vllm(base: str, shown: str) -> Iterator[Finding]:
    """What a vLLM server can be used for, by its own configuration."""
    try:
        status, answer = get_json(f"{base}/version", timeout=SECONDS)
        version = str(answer.get("version") or "")
        if status != 200 or not version:
            yield Finding("servers", "ok", f"{shown} is not vLLM: completions; no rollouts, no scores of given tokens")
            return
        text = f"{shown} is vLLM {version}"
        if not supports_vllm(version):
            low, high = SUPPORTED_VLLM
            yield Finding("servers", "warning", text, f"For rollouts, TRL supports {low} to {high}.")
        status, information = get_json(f"{base}/server_info?config_format=json", timeout=SECONDS)
        config = information.get("vllm_config") or {}
        if status != 200 or not config:
            yield Finding(
                "servers",
                "ok",
                f"{text}: engine of rewards, judges and teachers. For rollouts of a training it lacks "
                f"VLLM_SERVER_DEV_MODE=1",
            )
            return
        transfer = (config.get("weight_transfer_config") or {}).get("backend")
        adapters = get_json(f"{base}/v1/load_lora_adapter", timeout=SECONDS)[0] != 404  # 405 where it exists
    except OSError as error:
        yield Finding("servers", "warning", f"{shown} stopped answering: {error}", "See the server's log.")
        return
    uses = ["engine"]
    uses += [f"rollouts with vllm_weight_transfer: {transfer}"] * (transfer not in (None, "nccl_adapter"))
    uses += ["rollouts by adapters (vllm_adapter_sync)"] * bool(config.get("lora_config") and adapters)
    mode = (config.get("model_config") or {}).get("logprobs_mode", "processed_logprobs")
    yield Finding("servers", "ok", f"{text}: {listed(uses)}; logprobs_mode {mode}")
