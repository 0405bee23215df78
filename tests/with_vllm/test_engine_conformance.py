"""One model, SmolLM2 in float32, behind each engine: what an engine promises holds for all of them alike.

What a real server cannot be made to do (to fall silent, to answer nonsense, to refuse for a while) stands in
`tests/rlkd/engines`, on loopback servers.
"""

import asyncio
import json
import pickle
import random
import signal
import threading
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
import torch

from rlkd.engines import Completion, Engine, EngineError, Sampling, TokenScores, open_engine, run
from rlkd.engines.server import ServerEngine
from rlkd.engines.transformers import TransformersEngine
from rlkd.engines.vllm import VLLMEngine
from tests.helpers.vllm_server import VLLMServer, start_server, stop_server

CHAT = [{"role": "user", "content": "What is the capital of France?"}]
PROMPTS = ["2 + 2 =", CHAT, "Höhe: 3 µm, 漢字 🙂 means", "e", "One, two, three,", "The sky is " * 12]
GREEDY = Sampling(max_new_tokens=12)
SCORED = [
    ("The capital of France is", " Paris."),
    (CHAT, "The capital of France is Paris."),
    ("Höhe: 3 µm", ", 漢字 🙂 \u00e9"),
    ("The answer is sup", "ported"),  # the boundary cuts a word that would be one token
    ("One, two, three," * 20, " four"),
]
CONTEXT = 512
# Without this vLLM on a CPU prepares the output layer for adapters, and scoring ends the server.
ADAPTED = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WARM = str(files("rlkd.assets") / "adapters" / "embedded-warm")
GUARD = 240.0

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def engine_server(smollm: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    """A server of its own: other tests change the weights of the session's."""
    log = tmp_path_factory.mktemp("vllm-engines") / "server.log"
    arguments = ["--enable-lora", "--max-lora-rank", "16", "--lora-target-modules", *ADAPTED]
    started = start_server(smollm, log, "--max-model-len", str(CONTEXT), *arguments, backend=None)
    yield started
    stop_server(started)


@pytest.fixture(scope="module")
def reference(smollm: str) -> TransformersEngine:
    return TransformersEngine(smollm, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def in_process(smollm: str) -> Iterator[VLLMEngine]:
    engine = open_engine(f"vllm:{smollm}?dtype=float32&max_model_len={CONTEXT}")
    assert isinstance(engine, VLLMEngine)
    yield engine
    run(engine.close())


OWN_TOKENIZER = pytest.param("server, own tokenizer", marks=pytest.mark.nightly)


@pytest.fixture(params=["transformers", "server", OWN_TOKENIZER, "vllm"])
def engine(request: pytest.FixtureRequest, smollm: str, reference: TransformersEngine) -> Engine:
    if request.param == "transformers":
        return reference
    if request.param == "vllm":
        return request.getfixturevalue("in_process")
    server = request.getfixturevalue("engine_server")
    tokenizer = smollm if "own" in request.param else None
    return open_engine(f"{server.url}/v1#{server.model}", tokenizer=tokenizer, concurrency=8, timeout=GUARD)


def texts(results: list[Completion | EngineError]) -> list[str]:
    return [str(item) if isinstance(item, EngineError) else item.text for item in results]


def test_greedy_text_is_the_same(engine: Engine, reference: TransformersEngine) -> None:
    assert run(engine.generate(PROMPTS, GREEDY)) == run(reference.generate(PROMPTS, GREEDY))


def test_greedy_text_does_not_depend_on_batching_or_order(engine: Engine) -> None:
    together = run(engine.generate(PROMPTS, GREEDY))
    assert run(engine.generate(PROMPTS[::-1], GREEDY))[::-1] == together
    assert [run(engine.generate([prompt], GREEDY))[0] for prompt in PROMPTS] == together


def test_scores_agree_to_a_thousandth(engine: Engine, reference: TransformersEngine) -> None:
    for found, expected in zip(run(engine.score(SCORED)), run(reference.score(SCORED)), strict=True):
        assert isinstance(found, TokenScores)
        assert isinstance(expected, TokenScores)
        assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-3)


def test_scores_do_not_depend_on_batching(engine: Engine) -> None:
    together = run(engine.score(SCORED))
    for request, item in zip(SCORED, together, strict=True):
        [alone] = run(engine.score([request]))
        assert isinstance(item, TokenScores)
        assert isinstance(alone, TokenScores)
        assert item.logprobs == pytest.approx(alone.logprobs, abs=1e-3)


def test_scoring_and_generating_at_once_disturb_neither(engine: Engine) -> None:
    async def both() -> tuple:
        return await asyncio.gather(engine.generate(PROMPTS, GREEDY), engine.score(SCORED), engine.score(SCORED[::-1]))

    written, scored, backwards = run(both())
    assert written == run(engine.generate(PROMPTS, GREEDY))
    for one, other in zip(scored, backwards[::-1], strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)


@pytest.mark.parametrize("choices", [["Yes", "No"], ["Paris", "the city of Rome", "I do not know that"]], ids=len)
def test_choices_get_the_log_probability_of_the_whole(
    engine: Engine, reference: TransformersEngine, choices: list[str]
) -> None:
    found, expected = run(engine.choose(PROMPTS[:3], choices)), run(reference.choose(PROMPTS[:3], choices))
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=2e-3)


@pytest.mark.parametrize("stop", ["4", "ris", "\n", ", f"])
def test_text_ends_before_a_stop_string(engine: Engine, reference: TransformersEngine, stop: str) -> None:
    sampling = Sampling(max_new_tokens=12, stop=(stop,))
    found = run(engine.generate(PROMPTS, sampling))
    assert found == run(reference.generate(PROMPTS, sampling))
    assert not any(stop in text for text in texts(found))


def test_what_cannot_be_answered_is_named_and_costs_nothing_else(engine: Engine) -> None:
    results = run(engine.generate(["e", "", "x " * 9000, "half a pair: \ud83d", "2 + 2 ="], GREEDY))
    assert [isinstance(item, EngineError) for item in results] == [False, True, True, True, False]
    assert [results[0], results[4]] == run(engine.generate(["e", "2 + 2 ="], GREEDY))
    scored = run(engine.score([("e", " f"), ("", "f"), ("x " * 9000, "y"), ("e", "")]))
    assert [isinstance(item, EngineError) for item in scored] == [False, True, True, False]
    assert scored[3] == TokenScores(())
    assert engine.name in str(results[2])


def test_a_long_prompt_is_answered_up_to_the_context(engine: Engine, reference: TransformersEngine) -> None:
    long = "one two " * 245  # about 490 tokens
    assert run(engine.generate([long], Sampling(max_new_tokens=8))) == run(
        reference.generate([long], Sampling(max_new_tokens=8))
    )


def test_seeded_sampling_repeats_and_draws_apart_for_equal_prompts(engine: Engine) -> None:
    sampling = Sampling(max_new_tokens=8, temperature=1.0, top_p=0.95, seed=5)
    first = run(engine.generate(["Once upon a time"] * 4, sampling))
    assert first == run(engine.generate(["Once upon a time"] * 4, sampling))
    assert len(set(texts(first))) >= 3
    assert first[1:2] != run(engine.generate(["Once upon a time"], sampling))


def test_many_long_seeded_prompts_at_once_are_all_answered(engine: Engine) -> None:
    prompts = [f"{number}. " + "one two three four five six seven eight nine ten " * 40 for number in range(12)]
    sampling = Sampling(max_new_tokens=2, temperature=1.0, seed=5)
    results = run(engine.generate(prompts, sampling))
    assert not [item for item in results if isinstance(item, EngineError)]


def test_the_global_random_state_is_left_alone(engine: Engine) -> None:
    states = random.getstate(), torch.get_rng_state()
    run(engine.generate(PROMPTS[:2], Sampling(max_new_tokens=4, temperature=1.0, seed=1)))
    run(engine.generate(PROMPTS[:2], Sampling(max_new_tokens=4, temperature=1.0)))
    run(engine.score(SCORED[:1]))
    assert states[0] == random.getstate()
    assert torch.equal(states[1], torch.get_rng_state())


def test_a_deadline_ends_the_call_and_the_engine_goes_on(engine: Engine) -> None:
    expected = run(engine.generate(["2 + 2 ="], GREEDY))
    slow = Sampling(max_new_tokens=400, stop=("\0",))
    results = run(engine.generate([f"{number}, and so on" for number in range(40)], slow, deadline=1.0))
    late = [item for item in results if isinstance(item, EngineError)]
    assert late
    assert all("deadline of 1 s" in str(item) for item in late)
    assert run(asyncio.wait_for(_generate(engine, ["2 + 2 ="], GREEDY), GUARD)) == expected


async def _generate(engine: Engine, prompts: list, sampling: Sampling) -> list[Completion | EngineError]:
    return await engine.generate(prompts, sampling)


def test_a_cancelled_call_ends_and_leaves_the_others_alone(engine: Engine) -> None:
    expected = run(engine.generate(PROMPTS, GREEDY))

    async def cancel_one() -> list[Completion | EngineError]:
        slow = [f"{number}, and so on" for number in range(4)]
        doomed = asyncio.create_task(engine.generate(slow, Sampling(max_new_tokens=400, stop=("\0",))))
        await asyncio.sleep(0.3)
        other = asyncio.create_task(engine.generate(PROMPTS, GREEDY))
        await asyncio.sleep(0.3)
        doomed.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doomed
        return await other

    assert run(asyncio.wait_for(cancel_one(), GUARD)) == expected


def test_an_engine_pickles_as_its_arguments(engine: Engine) -> None:
    data = pickle.dumps(engine)
    assert len(data) < 1000
    assert pickle.loads(data).name == engine.name


def test_a_guided_engine_writes_what_the_schema_says(engine: Engine) -> None:
    if isinstance(engine, TransformersEngine):
        assert not engine.guided
        return
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "old": {"type": "boolean"}},
        "required": ["city", "old"],
        "additionalProperties": False,
    }
    for text in texts(run(engine.generate([CHAT, "JSON:"], Sampling(max_new_tokens=40, json_schema=schema)))):
        written = json.loads(text)
        assert written["city"] in ("Paris", "Rome")
        assert isinstance(written["old"], bool)
    assert engine.guided


def test_a_sampled_text_is_the_same_at_a_server_and_in_this_process_under_vllm(
    engine_server: VLLMServer, in_process: VLLMEngine
) -> None:
    sampling = Sampling(max_new_tokens=8, temperature=1.0, seed=11)
    there = open_engine(f"{engine_server.url}/v1#{engine_server.model}")
    assert run(there.generate(["Once"] * 3, sampling)) == run(in_process.generate(["Once"] * 3, sampling))


def test_an_adapter_is_asked_for_by_its_name(engine_server: VLLMServer, smollm: str) -> None:
    body = json.dumps({"lora_name": "warm", "lora_path": WARM}).encode()
    headers = {"content-type": "application/json"}
    with urlopen(Request(f"{engine_server.url}/v1/load_lora_adapter", body, headers), timeout=GUARD) as answer:
        assert answer.status == 200  # with a sentence, no JSON
    adapted = open_engine(f"{engine_server.url}/v1#warm")
    plain = open_engine(f"{engine_server.url}/v1#{engine_server.model}")
    merged = TransformersEngine(smollm, dtype="float32", device="cpu", adapter=WARM)
    assert run(adapted.generate([CHAT], GREEDY)) == run(merged.generate([CHAT], GREEDY))
    # One after the other: in one batch, the CPU build (0.30) gives requests without an adapter the other ones'.
    scored, unadapted = run(adapted.score(SCORED)), run(plain.score(SCORED))
    for found, expected, other in zip(scored, run(merged.score(SCORED)), unadapted, strict=True):
        assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-3)
        assert abs(found.total - other.total) > 1e-2


@pytest.mark.slow
def test_an_adapter_in_this_process_gives_the_scores_of_the_merged_weights(smollm: str) -> None:
    engine = open_engine(f"vllm:{smollm}?max_model_len=256", adapter=WARM)
    merged = TransformersEngine(smollm, dtype="float32", device="cpu", adapter=WARM)
    requests = SCORED[:3]
    for found, expected in zip(run(engine.score(requests)), run(merged.score(requests)), strict=True):
        assert isinstance(found, TokenScores)
        assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-3)
    run(engine.close())


@pytest.mark.slow
@pytest.mark.nightly  # tests/rlkd/engines/test_replicas.py has the restart in mid-batch, without vLLM
def test_a_server_killed_and_started_again_in_mid_batch_costs_nothing_within_the_deadline(
    smollm: str, tmp_path: Path
) -> None:
    server = start_server(smollm, tmp_path / "first.log", "--max-model-len", "128", backend=None)
    engine = open_engine(f"{server.url}/v1#{server.model}", concurrency=4, retries=0)
    assert isinstance(engine, ServerEngine)
    prompts = [f"{number} eggs" for number in range(20)]
    expected = run(engine.generate(prompts, GREEDY))
    assert [item for item in expected if isinstance(item, EngineError)] == []
    again: list[VLLMServer] = []
    is_over = threading.Event()
    in_mid_batch: list[bool] = []

    def restart() -> None:
        server.wait_for_requests()
        in_mid_batch.append(not is_over.is_set())
        server.process.send_signal(signal.SIGUSR1)  # its guard kills everything at once
        server.process.wait()
        port = int(server.url.rpartition(":")[2])
        again.append(start_server(smollm, tmp_path / "again.log", "--max-model-len", "128", backend=None, port=port))

    restarter = threading.Thread(target=restart)
    restarter.start()
    try:
        results = run(engine.generate(prompts * 2, Sampling(max_new_tokens=12), deadline=GUARD))
    finally:
        is_over.set()
        restarter.join()
        for started in again:
            stop_server(started)
    assert in_mid_batch == [True], "the batch had ended before the kill: nothing was tested"
    assert results == expected * 2
