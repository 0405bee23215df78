"""Speed of a vLLM server through our engine, compared with vLLM in this process and with one request after another.

    python benchmarks/engine_throughput.py            # 64 prompts x 32 tokens, three rounds
    python benchmarks/engine_throughput.py --quick    # 16 prompts x 8 tokens, one round

Needs an environment with vLLM; on a machine without a GPU that is the CPU build. The same greedy prompts, new in each
round so that no prefix cache helps, go to `ServerEngine.generate` (`server`) and to vLLM's `LLM.generate` (`offline`)
all at once, and a few to the server one by one (`sequential`). Rates are medians over the rounds. Exits with 1 where
`server_over_offline` is below 0.75 or a text of server and offline differs.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

# Of the server and of vLLM in this process; what the environment says comes first.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

import harness
from rlkd.engines import Completion, Sampling, run
from rlkd.engines.server import ServerEngine
from rlkd.http import get_json
from rlkd.models import resolve_model
from rlkd.process import python_command
from rlkd.serve.vllm_command import vllm_arguments

# vLLM may use all cores, here and in its server.
del os.environ["OMP_NUM_THREADS"], os.environ["OPENBLAS_NUM_THREADS"]
CONTEXT = 512
SHARE = 0.4  # of a GPU, on which both engines must fit
SEQUENTIAL = 8  # prompts that the one-by-one rate is measured on
EXPECTED = 0.75


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare a vLLM server with vLLM in this process.")
    parser.add_argument("--model", default="embedded", help="folder, hub id, or a name of rlkd.models")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    args = harness.parse(parser, quick="16 prompts x 8 tokens, one round, 2 prompts one by one")
    alone = SEQUENTIAL
    if args.quick:
        args.prompts, args.tokens, args.rounds, alone = 16, 8, 1, 2
    model = resolve_model(args.model)

    with server(model) as url:
        offline, settings = load(model, args.tokens)
        engine = ServerEngine(url, model, concurrency=args.prompts, timeout=600)
        one_by_one = [made_prompt(-1, number) for number in range(2)]
        by_server(engine, one_by_one, args.tokens)  # both are warm before anything is timed
        by_llm(offline, settings, one_by_one)

        rates: dict[str, list[float]] = {"server": [], "offline": [], "sequential": []}
        same = True
        for number in range(args.rounds):
            prompts = [made_prompt(number, place) for place in range(args.prompts)]
            others = [made_prompt(number, args.prompts + place) for place in range(alone)]
            arms = {
                "server": partial(by_server, engine, prompts, args.tokens),
                "offline": partial(by_llm, offline, settings, prompts),
                "sequential": partial(one_after_another, engine, others, args.tokens),
            }
            results = {name: timed(arm) for name, arm in arms.items()}
            for name, (_, rate) in results.items():
                rates[name].append(rate)
            same = same and results["server"][0] == results["offline"][0]
            print(f"round {number + 1}: " + ", ".join(f"{name} {values[-1]:.1f}" for name, values in rates.items()))

    medians = {name: statistics.median(values) for name, values in rates.items()}
    figures = {
        "prompts": args.prompts,
        "tokens": args.tokens,
        "rounds": args.rounds,
        "server_tokens_per_second": round(medians["server"], 1),
        "offline_tokens_per_second": round(medians["offline"], 1),
        "sequential_tokens_per_second": round(medians["sequential"], 1),
        "server_over_offline": round(medians["server"] / medians["offline"], 3),
        "server_over_sequential": round(medians["server"] / medians["sequential"], 2),
        "texts_equal": same,
    }
    fast = figures["server_over_offline"] >= EXPECTED
    return harness.report(figures, {"texts_equal": same, f"server_over_offline >= {EXPECTED}": fast})


def made_prompt(number: int, place: int) -> str:
    """A prompt of some thirty tokens that no other shares a beginning with."""
    return f"{number * 1000 + place} boxes hold {place % 7 + 2} eggs each. " + "A cook needs some of them today, so"


Written = list[tuple[str, int]]
"""Texts, each with its number of tokens."""


def timed(write: Callable[[], Written]) -> tuple[Written, float]:
    written, seconds, _ = harness.timed(write)
    return written, sum(tokens for _, tokens in written) / seconds


def by_server(engine: ServerEngine, prompts: list[str], tokens: int) -> Written:
    written = []
    for result in run(engine.generate(prompts, Sampling(max_new_tokens=tokens))):
        if not isinstance(result, Completion):
            raise SystemExit(f"the server failed: {result}")
        written.append((result.text, result.n_tokens))
    return written


def one_after_another(engine: ServerEngine, prompts: list[str], tokens: int) -> Written:
    return [by_server(engine, [prompt], tokens)[0] for prompt in prompts]


def by_llm(llm: Any, settings: Any, prompts: list[str]) -> Written:
    outputs = [output.outputs[0] for output in llm.generate(prompts, settings, use_tqdm=False)]
    return [(output.text, len(output.token_ids)) for output in outputs]


def named_arguments() -> dict[str, Any]:
    named: dict[str, Any] = {"max_model_len": CONTEXT, "generation_config": "vllm", "disable_log_stats": True}
    return named | ({"dtype": "float32", "enforce_eager": True} if on_cpu() else {"gpu_memory_utilization": SHARE})


def on_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def load(model: str, tokens: int) -> tuple[Any, Any]:
    from vllm import LLM, SamplingParams

    return LLM(model=model, **named_arguments()), SamplingParams(temperature=0.0, max_tokens=tokens)


@contextmanager
def server(model: str) -> Iterator[str]:
    """Start `vllm serve`, wait until it is healthy, and end it with all its processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # The module behind `vllm serve`: the command itself needs metadata that the CPU distribution lacks.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += vllm_arguments(
        host="127.0.0.1",
        port=port,
        on_cpu=on_cpu(),
        memory=None if on_cpu() else SHARE,
        max_model_len=CONTEXT,
        extra=["--generation-config", "vllm"],
    )
    guard = python_command("rlkd.serve.guard:main", str(os.getpid()), "20", "10", *command)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with log.open("wb") as file:
            process = subprocess.Popen(guard, stdout=file, stderr=file, start_new_session=True)
        try:
            until = time.monotonic() + 600
            while not healthy(f"http://127.0.0.1:{port}/health"):
                if process.poll() is not None or time.monotonic() > until:
                    raise SystemExit(f"vllm serve did not come up:\n{log.read_text(errors='replace')[-3000:]}")
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait()


def healthy(url: str) -> bool:
    try:
        return get_json(url, timeout=5)[0] == 200
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
