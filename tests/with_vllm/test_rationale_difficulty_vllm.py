"""Rationale difficulty from a real vLLM server, against the same model in this process."""

import pytest

from rlkd.engines import run
from rlkd.engines.server import ServerEngine
from rlkd.engines.transformers import TransformersEngine
from rlkd.rationales.records import Question, candidate
from rlkd.rationales.select.engine import TEMPLATE
from rlkd.rationales.select.rationale_difficulty import DifficultySelector
from tests.helpers.vllm_server import VLLMServer

QUESTION = "Natalia sold clips to 48 friends in April, and half as many in May. How many did she sell in all?"
TEXTS = [
    "In May she sold 48/2 = 24 clips.\nIn all she sold 48 + 24 = 72 clips.\n#### 72",
    "Half of 48 is 24, and both make 72.\n#### 72",
    "48 * 2 = 96.\n#### 96",
    "#### 72",
]


@pytest.mark.timeout(600)
def test_the_server_and_the_engine_in_this_process_agree(plain_server: VLLMServer, smollm: str) -> None:
    made = Question("q", QUESTION, "72", tuple(candidate("q", text, "ready") for text in TEXTS))
    remote = ServerEngine(f"{plain_server.url}/v1", plain_server.model, timeout=300.0)
    here = TransformersEngine(smollm, device="cpu", dtype="float32")
    [mine], [theirs] = (
        run(DifficultySelector(engine, template=TEMPLATE).measure([made])) for engine in (here, remote)
    )
    assert [item.log_rd for item in theirs] == pytest.approx([item.log_rd for item in mine], abs=1e-3)
    assert [item.leaks for item in theirs] == [False, True, False, False]
    assert max(item.log_rd for item in mine) - min(item.log_rd for item in mine) > 0.1
