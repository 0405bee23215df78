"""Engines: frozen models (teacher, decomposer, judge) behind one batched, asynchronous protocol.

One spec string names any of them, and nothing is loaded or contacted before the first request:

    >>> from rlkd.engines import Sampling, open_engine, run
    >>> engine = open_engine("transformers:embedded")
    >>> engine.name
    'transformers:embedded'
    >>> engine = open_engine("http://localhost:8000/v1#my-teacher", concurrency=64)
    >>> [completion] = run(engine.generate(["2 + 2 ="], Sampling(max_new_tokens=8)))  # doctest: +SKIP

The contract is in `base.py`. `server.py` asks one or more OpenAI-compatible servers, such as `vllm serve`; `vllm.py`
and `transformers.py` run a model in this process. What differs between them stands in `docs/engines.md`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

from rlkd.engines.base import (
    Completion,
    Engine,
    EngineError,
    Message,
    Prompt,
    Sampling,
    Scored,
    run,
)
from rlkd.engines.server import ServerEngine, without_secrets
from rlkd.engines.transformers import TransformersEngine
from rlkd.engines.vllm import VLLMEngine
from rlkd.registry import SpecError, check_arguments, suggestion

__all__ = [
    "Completion",
    "Engine",
    "EngineError",
    "Message",
    "Prompt",
    "Sampling",
    "Scored",
    "ServerEngine",
    "TransformersEngine",
    "VLLMEngine",
    "from_environment",
    "open_engine",
    "run",
]

_FORMS = """
    transformers:MODEL_OR_PATH        a model in this process, by hub id or folder
    transformers:embedded             the embedded default model
    transformers:NAME?dtype=bfloat16  the same with options: dtype, device, adapter; joined by &
    vllm:NAME?dtype=float32           a model in this process under vLLM; options: dtype, adapter, max_model_len,
                                      gpu_memory_utilization, tensor_parallel_size
    http://HOST:PORT/v1#MODEL         an OpenAI-compatible server; #MODEL may be left out where it serves one model
    https://HOST/v1#MODEL             the same
    http://A:1/v1,http://B:1/v1#MODEL several servers with the same model
    env:VARIABLE                      one of the above from the environment: env:RLKD_GSRM_SPEC below `rlkd serve`"""

# The options that a spec may carry, with what reads each.
_OPTIONS: dict[str, dict[str, Callable[[str], Any]]] = {
    "transformers": {"dtype": str, "device": str, "adapter": str},
    "vllm": {
        "dtype": str,
        "adapter": str,
        "max_model_len": int,
        "gpu_memory_utilization": float,
        "tensor_parallel_size": int,
    },
}


def open_engine(spec: str, **options: Any) -> Engine:
    """Return the engine that `spec` names; `options` are the keyword arguments of its class.

    Cheap: imports no model library, reads no weights and sends nothing. Raises `SpecError` (a `ValueError`) where the
    spec has none of the known forms or an option is not one of the engine's.
    """
    spec = from_environment(spec, "an engine's spec")
    scheme, _, rest = spec.partition(":")
    shown = spec if scheme in _OPTIONS else without_secrets(spec)
    build: Callable[..., Engine]
    if scheme in _OPTIONS and rest:
        model, _, query = rest.partition("?")
        options = _read_options(spec, query, _OPTIONS[scheme]) | options
        build = partial(TransformersEngine if scheme == "transformers" else VLLMEngine, model)
    elif scheme in ("http", "https") and rest.startswith("//"):
        url, _, model = spec.partition("#")
        build = partial(ServerEngine, url, model or None)
    else:
        raise SpecError(f"{shown!r} does not name an engine. The forms are:{_FORMS}")
    check_arguments(build, options, f"the engine {shown!r}")
    return build(**options)


def from_environment(text: str, what: str) -> str:
    """`text`, or for `env:VARIABLE` what the variable holds; raises `SpecError` where it is not set.

    What `rlkd serve` starts finds the addresses of its servers there. `what`: what the text is, for the error.
    """
    scheme, _, name = text.partition(":")
    if scheme != "env":
        return text
    if not os.environ.get(name):
        raise SpecError(
            f"{text!r}: expected {what} in the environment variable {name!r}, which is not set. `rlkd serve` sets "
            "RLKD_<ROLE>_SPEC and RLKD_<ROLE>_URL for the command behind its `--`."
        )
    return os.environ[name]


def _read_options(spec: str, query: str, known: dict[str, Callable[[str], Any]]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            raise SpecError(f"{spec!r}: no option {name!r}.{suggestion(name, known)} There are {', '.join(known)}.")
        try:
            options[name] = known[name](text)
        except ValueError:
            raise SpecError(f"{spec!r}: {name}={text!r}, expected a number") from None
    return options
