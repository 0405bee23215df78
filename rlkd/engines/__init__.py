"""Engines: frozen models (teacher, decomposer, judge) behind one batched, asynchronous protocol.

One spec string names any of them, and nothing is loaded or contacted before the first request:

    >>> from rlkd.engines import Sampling, open_engine, run
    >>> engine = open_engine("transformers:embedded")
    >>> engine.name
    'transformers:embedded'
    >>> engine = open_engine("http://localhost:8000/v1#my-teacher", concurrency=64)
    >>> [completion] = run(engine.generate(["2 + 2 ="], Sampling(max_new_tokens=8)))  # doctest: +SKIP

    base.py           the contract: requests, results, `Engine` and the optional capabilities
    spec.py           from a spec to an engine
    pool.py           each spec opened once, and checked before a run
    server.py         one or more OpenAI-compatible servers, such as `vllm serve`
    transformers.py   a model in this process
    vllm.py           the same under vLLM

A backend of your own is one file: docs/engines.md.
"""

from rlkd.engines.base import (
    Completion,
    Engine,
    EngineError,
    Message,
    Prompt,
    RankedScores,
    Sampling,
    TokenRanksEngine,
    TokenScores,
    TopLogprobsEngine,
    TopTokens,
    run,
)
from rlkd.engines.pool import EnginePool, check_ready, require_identity
from rlkd.engines.spec import from_environment, is_engine_spec, open_engine, without_secrets

BUILT_IN = {
    "http": "rlkd.engines.server.ServerEngine",
    "https": "rlkd.engines.server.ServerEngine",
    "transformers": "rlkd.engines.transformers.TransformersEngine",
    "vllm": "rlkd.engines.vllm.VLLMEngine",
}

__all__ = [
    "BUILT_IN",
    "Completion",
    "Engine",
    "EngineError",
    "EnginePool",
    "Message",
    "Prompt",
    "RankedScores",
    "Sampling",
    "TokenRanksEngine",
    "TokenScores",
    "TopLogprobsEngine",
    "TopTokens",
    "check_ready",
    "from_environment",
    "is_engine_spec",
    "open_engine",
    "require_identity",
    "run",
    "without_secrets",
]
