"""Engines: frozen models (teacher, decomposer, judge) behind one batched, asynchronous protocol.

>>> from rlkd.engines import Sampling, open_engine, run
>>> engine = open_engine("transformers:embedded")
>>> engine.name
'transformers:embedded'
>>> [completion] = run(engine.generate(["2 + 2 ="], Sampling(max_new_tokens=8)))  # doctest: +SKIP
"""

from rlkd.engines.base import (
    Completion,
    Contrast,
    ContrastiveEngine,
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
    "Contrast",
    "ContrastiveEngine",
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
