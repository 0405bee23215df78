"""The structure reward on a server that is really there, replies badly, or is killed in the middle of a run."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rewards import Scored
from rlkd.data.loading import to_dataset
from tests.helpers import HELPERS, ROOT
from tests.helpers.rewards import build_reward
from tests.helpers.structure_server import MODEL, TEACHER, UNREADABLE
from trainers import RLKDConfig, RLKDTrainer
from trainers.common.run_files import read_steps
from trainers.rlkd.failures import TooManyFailures

ROWS = [{"id": f"row-{i}", "question": f"Problem {i}?", "rationales": [f"{TEACHER} {i}."]} for i in range(4)]
# Nothing here may hang; a test that does is told so well before a minute and a half has passed.
pytestmark = pytest.mark.timeout(90)
OUTAGE = 0.3  # seconds; an engine's retries span several


class ServerProcess:
    """`structure_server.py` in a process of its own, which may be killed and started again on the same port."""

    def __init__(self, log: Path, delay: float):
        self.log = log
        self.delay = delay
        self.port = 0
        self.start()

    @property
    def engine(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1#{MODEL}"

    def start(self) -> None:
        script = HELPERS / "structure_server.py"
        command = [sys.executable, script, self.port, self.log, self.delay]
        self.process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())  # printed once it listens

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    def events(self) -> list[tuple[str, int]]:
        """("arrived" or "answered", checksum of the request), in order, over all lives of the server."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [(line["event"], line["request"]) for line in map(json.loads, lines)]


@pytest.fixture
def start_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ServerProcess]]:
    monkeypatch.setenv("RLKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    started = []

    def start(delay: float = 0.0) -> ServerProcess:
        started.append(ServerProcess(tmp_path / "requests.jsonl", delay))
        return started[-1]

    yield start
    for server in started:
        server.kill()


def structure_arguments(engine: str, **more: Any) -> dict[str, Any]:
    return {"decomposer": "prompted", "judge": "model", "engine": engine, **more}


# What a step waits at most for a server that is away.
IMPATIENT = {"deadline": 8.0}


def trainer_on(model: str, engine: str, output: Path, rows: list[dict[str, Any]], **changes: Any) -> RLKDTrainer:
    settings = {
        "output_dir": str(output),
        "reward_funcs": ["structure"],
        "reward_kwargs": {"structure": structure_arguments(engine)},
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 8,
        "scale_rewards": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 3,
    }
    return RLKDTrainer(model, args=RLKDConfig(**settings | changes), train_dataset=to_dataset(rows))


def outcomes(rollouts: Path) -> dict[int, list[dict[str, Any]]]:
    """The outcomes of the structure reward, by step."""
    found: dict[int, list[dict[str, Any]]] = {}
    for record in read_steps(rollouts):
        found.setdefault(record["step"], []).append(record["rewards"]["structure"])
    return found


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.01)


def steps_in(metrics: Path) -> int:
    return len(read_steps(metrics)) if metrics.exists() else 0


def kill_in_the_middle_of_a_request(server: ServerProcess, metrics: Path, after_step: int) -> tuple[int, set[int]]:
    """Wait for the first request behind a step and kill. The number of events until then, and what got no answer."""
    wait_for(lambda: steps_in(metrics) >= after_step, f"step {after_step}")
    before = len(server.events())
    wait_for(lambda: any(event == "arrived" for event, _ in server.events()[before:]), "a request")
    server.kill()
    events = server.events()
    pending: Counter[int] = Counter()
    for event, request in events:
        pending[request] += 1 if event == "arrived" else -1
    return len(events), {request for request, count in pending.items() if count > 0}


# Replies that cannot be parsed


def test_a_teacher_trace_that_cannot_be_parsed_makes_the_reward_not_applicable_for_its_group(
    tiny_model, tmp_path, start_server
) -> None:
    rows = [ROWS[0], ROWS[1] | {"rationales": [f"{TEACHER} {UNREADABLE}"]}]
    changes = {"per_device_train_batch_size": 8, "max_steps": 2}
    trainer = trainer_on(tiny_model, start_server().engine, tmp_path / "run", rows, **changes)
    trainer.train()
    records = read_steps(trainer.rollouts_path)
    assert [record["step"] for record in records] == [1] * 8 + [2] * 8
    by_row = {row["id"]: [record for record in records if record["id"] == row["id"]] for row in rows}
    assert [record["rewards"]["structure"]["status"] for record in by_row["row-0"]] == ["score"] * 8
    assert [record["rewards"]["structure"]["status"] for record in by_row["row-1"]] == ["not_applicable"] * 8
    # A group without scores teaches nothing, and takes nothing from the other.
    assert all(record["advantage"] == 0.0 for record in by_row["row-1"])
    assert any(record["advantage"] != 0.0 for record in by_row["row-0"])
    metrics = read_steps(trainer.metrics_path)
    assert [entry["rewards/structure/not_applicable"] for entry in metrics] == [0.5, 0.5]
    assert [entry["rewards/structure/failed"] for entry in metrics] == [0.0, 0.0]


def test_a_student_whose_reply_cannot_be_parsed_scores_nothing_and_the_others_are_scored(start_server) -> None:
    reward = build_reward("structure", structure_arguments(start_server().engine))
    texts = ["I go this way.", f"{UNREADABLE} as I am.", "I go that way.", "And I a third one."]
    columns = {"question": ["Problem?"] * 4, "rationales": [ROWS[0]["rationales"]] * 4}
    values = asyncio.run(reward(prompts=["Problem?"] * 4, completions=texts, **columns))
    assert [outcome.status for outcome in reward.outcomes] == ["score"] * 4
    assert values[1] == 0
    assert ["unreadable" in outcome.detail for outcome in reward.outcomes] == [False, True, False, False]
    assert "no complete step in the reply" in reward.outcomes[1].detail["unreadable"]


def test_one_unreadable_reply_changes_no_other_score(start_server) -> None:
    reward = build_reward("structure", structure_arguments(start_server().engine)).function
    texts = ["I go this way.", "I go that way.", "And I a third one."]

    def scores(completions: list[str]) -> list[Any]:
        n = len(completions)
        columns = {"question": ["Problem?"] * n, "rationales": [ROWS[0]["rationales"]] * n}
        return asyncio.run(reward(prompts=["Problem?"] * n, completions=completions, **columns))

    alone = scores(texts)
    together = scores([UNREADABLE, *texts])
    assert isinstance(together[0], Scored)
    assert together[0].value == 0
    assert all(isinstance(result, Scored) for result in alone)
    assert [result.value for result in together[1:]] == [result.value for result in alone]
    assert len({result.value for result in alone}) > 1


# A server that goes away


@pytest.mark.slow
def test_a_server_killed_and_restarted_in_mid_run_costs_retries_and_nothing_else(
    tiny_model, tmp_path, start_server
) -> None:
    server = start_server(delay=0.3)
    trainer = trainer_on(tiny_model, server.engine, tmp_path / "run", ROWS, max_steps=5)
    killed: list[tuple[int, set[int]]] = []

    def outage() -> None:
        killed.append(kill_in_the_middle_of_a_request(server, trainer.metrics_path, after_step=2))
        time.sleep(OUTAGE)
        server.start()

    thread = threading.Thread(target=outage, daemon=True)
    thread.start()
    trainer.train()
    thread.join()
    assert_lived_through_the_outage(server, killed[0], trainer.metrics_path, [trainer.rollouts_path])


@pytest.mark.slow
def test_a_server_that_stays_away_costs_the_scores_of_those_steps_only(tiny_model, tmp_path, start_server) -> None:
    server = start_server(delay=0.3)
    impatient = {"reward_kwargs": {"structure": structure_arguments(server.engine, **IMPATIENT)}}
    trainer = trainer_on(tiny_model, server.engine, tmp_path / "run", ROWS, max_steps=4, **impatient)

    def outage() -> None:
        kill_in_the_middle_of_a_request(server, trainer.metrics_path, after_step=1)
        wait_for(lambda: steps_in(trainer.metrics_path) >= 2, "a step without the server")
        server.start()

    thread = threading.Thread(target=outage, daemon=True)
    thread.start()
    trainer.train()
    thread.join()
    metrics = read_steps(trainer.metrics_path)
    assert [entry["step"] for entry in metrics] == [1, 2, 3, 4]
    failed = [entry["rewards/structure/failed"] for entry in metrics]
    assert (failed[0], failed[1], failed[3]) == (0.0, 1.0, 0.0)
    found = outcomes(trainer.rollouts_path)
    assert all("no connection" in outcome["cause"] for outcome in found[2])
    assert [outcome["status"] for outcome in found[4]] == ["score"] * 4
    # Without a score there is nothing to learn from: the advantages are 0, and not what a reward of 0 would make them.
    assert {r["advantage"] for r in read_steps(trainer.rollouts_path) if r["step"] == 2} == {0.0}


@pytest.mark.slow
def test_a_server_that_does_not_come_back_ends_the_run_after_a_checkpoint_that_resumes(
    tiny_model, tmp_path, start_server
) -> None:
    server = start_server(delay=0.1)
    impatient = {"structure": structure_arguments(server.engine, **IMPATIENT)}
    changes = {"max_steps": 5, "failure_window": 1, "reward_kwargs": impatient}
    trainer = trainer_on(tiny_model, server.engine, tmp_path / "run", ROWS, **changes)
    killer = threading.Thread(
        target=kill_in_the_middle_of_a_request, args=(server, trainer.metrics_path, 2), daemon=True
    )
    killer.start()
    with pytest.raises(TooManyFailures, match=r"reward 'structure' failed on 4 of 4 .* no connection"):
        trainer.train()
    killer.join()
    stopped = trainer.state.global_step
    assert stopped == 3
    server.start()
    resumed = trainer_on(tiny_model, server.engine, tmp_path / "run", ROWS, **changes)
    resumed.train(resume_from_checkpoint=True)
    metrics = read_steps(resumed.metrics_path)
    assert [entry["step"] for entry in metrics] == [1, 2, 3, 4, 5]
    assert [entry["rewards/structure/failed"] for entry in metrics] == [0.0, 0.0, 1.0, 0.0, 0.0]


@pytest.mark.slow
@pytest.mark.nightly
def test_two_processes_live_through_the_restart_of_their_server(tiny_model, tmp_path, start_server) -> None:
    server = start_server(delay=0.3)
    run = tmp_path / "run"
    script = tmp_path / "train.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.trainers.rlkd.test_structure_server import ROWS, trainer_on\n"
        "from trainers.common.arguments import end_processes\n"
        "model, engine, output = sys.argv[1:]\n"
        "trainer_on(model, engine, Path(output), ROWS, max_steps=5, ddp_backend='gloo').train()\n"
        "end_processes()\n"
    )
    torchrun = [Path(sys.executable).with_name("torchrun"), "--nproc_per_node", 2, "--standalone"]
    command = [*torchrun, script, tiny_model, server.engine, run]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with (tmp_path / "output.txt").open("w+") as output:
        process = subprocess.Popen(list(map(str, command)), cwd=tmp_path, env=env, stdout=output, stderr=output)
        try:
            killed = kill_in_the_middle_of_a_request(server, run / "metrics.jsonl", after_step=2)
            time.sleep(OUTAGE)
            server.start()
            process.wait(60)
        finally:
            if process.poll() is None:
                process.terminate()  # torchrun takes its workers along
                process.wait(10)
        output.seek(0)
        assert process.returncode == 0, output.read()[-3000:]
    ranks = [run / "rollouts" / f"rank{rank}.jsonl" for rank in (0, 1)]
    assert_lived_through_the_outage(server, killed, run / "metrics.jsonl", ranks)
    # Each process had a group of its own to score.
    first, second = (read_steps(path) for path in ranks)
    for step in range(1, 6):
        ids = [{record["id"] for record in records if record["step"] == step} for records in (first, second)]
        assert [len(one) for one in ids] == [1, 1]
        assert ids[0] != ids[1]


def assert_lived_through_the_outage(
    server: ServerProcess, killed: tuple[int, set[int]], metrics: Path, rollouts: list[Path]
) -> None:
    """All five steps are there, requests that the server died on were sent again, and scores are real again."""
    events_before, unanswered = killed
    assert unanswered & {request for event, request in server.events()[events_before:] if event == "arrived"}
    entries = read_steps(metrics)
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 5]
    assert [entry["rewards/structure/failed"] for entry in entries if entry["step"] != 3] == [0.0] * 4
    for path in rollouts:
        found = outcomes(path)
        assert {step: len(group) for step, group in found.items()} == dict.fromkeys(range(1, 6), 4)
        for step, group in found.items():
            for outcome in group:
                if outcome["status"] == "failed":  # its pauses may all have been short, in the step of the outage
                    assert step == 3
                    assert "no connection" in outcome["cause"]
                else:
                    assert outcome["status"] == "score"
                    assert 0 <= outcome["value"] <= 1
        assert len({outcome["value"] for step in (4, 5) for outcome in found[step]}) > 1
