"""A long run of RLKD on servers that are killed, with rewards that hang and fail: what grows, and what is lost.

    python benchmarks/soak.py                                  # two hours
    python benchmarks/soak.py --minutes 8                      # a rehearsal
    python benchmarks/soak.py --summary runs/soak              # the verdict again, from the files of a run
    python benchmarks/soak.py --vllm ~/venvs/vllm/bin/python   # rollouts by a real vLLM; see docs/machines.md

`rlkd serve` starts a rollout server, a judge and the recipe `rlkd` on the laboratory's student. The rollout server is
`soak_server.py`, a model in torch behind vLLM's protocol, or vLLM. One in a hundred requests to the judge gets no
answer and another one an error; one in a hundred samples hangs the reward `flaky` and another one makes it raise. Five
times a server is killed (SIGKILL of its process, not of its guard): the rollout server three times, the judge twice.
`rlkd serve` starts it again, and the trainer must go on by itself.

Every few seconds a line goes to `samples.jsonl`: resident memory of each role, processes,
CPU time, steps and rollouts. The verdict is printed at the end and stands in `soak.json`; `--summary` judges the files
of a run that was killed or still goes on. Of the time from the first step to the end, the second quarter is compared
with the last by medians:

- `memory_growth`: of all processes together, and of the trainer's own, at most 5 %. Workers of a reward are started
  when it needs them for the first time; a short run counts them as growth;
- `orphans`: processes that outlive `rlkd serve`, 0;
- `lost_rollouts`: steps from 1 to the last logged one without exactly their rollouts in the file, 0;
- `stale`: the largest difference between the server's and the trainer's log-probabilities of sampled tokens, at most
  0.01: after a restart the server has its first weights, and they would differ by more;
- `cpu_ratio`: CPU-seconds per completion token of the trainer, 0.95 to 1.05, and `wall_ratio`, the same of the wall
  clock, which counts on a machine without other work only (`--idle`).

`restored` counts how often the trainer has sent its weights to a restarted server. Exits with 1 if a bound does not
hold. Ctrl-C ends everything, and the verdict is that of the time so far.
"""

import harness  # before torch: one thread, no hub

# isort: split

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import yaml

from rlkd.files import read_records
from rlkd.process import carriers, descendants, die_with_parent

HERE = Path(__file__).resolve().parent
SERVER, RECIPE = HERE / "soak_server.py", HERE.parent / "recipes" / "rlkd.py"
MARK = "RLKD_SOAK_MARK"
SHARE = 0.01
BATCH, GROUP = 32, 8
BOUND, STALE = 0.05, 0.01
# Role and share of the time. The quarters that are compared have one kill of the rollout server each.
KILLS = (("judge", 0.12), ("rollout", 0.35), ("rollout", 0.55), ("judge", 0.65), ("rollout", 0.85))
ROLES = ("trainer", "workers", "rollout", "judge", "supervisor")

FLAKY = f'''
import time
import zlib

from rewards import RewardOptions


def flaky(prompts, completions, **columns):
    """The length of a completion; some hang, some fail."""
    scores = []
    for prompt, completion in zip(prompts, completions):
        draw = zlib.crc32(str((prompt, completion)).encode()) % 10_000 / 10_000
        if draw < {SHARE}:
            time.sleep(1e6)
        if draw < {2 * SHARE}:
            raise RuntimeError("a failure at random")
        scores.append(min(1.0, len(completion[0]["content"]) / 300))
    return scores


flaky.reward_options = RewardOptions(per_sample=True, timeout=1.0, cache=False)
'''


def main() -> int:
    parser = argparse.ArgumentParser(description="A long run on servers that are killed.")
    parser.add_argument("--minutes", type=float, default=120.0, help="default: %(default)g")
    parser.add_argument("--output", type=Path, default=Path("runs/soak"), help="default: %(default)s")
    parser.add_argument("--transfer", choices=("gloo", "disk"), default="gloo", help="default: %(default)s")
    parser.add_argument("--vllm", metavar="PYTHON", help="interpreter of an environment with vLLM and rlkd")
    parser.add_argument("--student", default="lab-student", help="default: %(default)s")
    parser.add_argument("--idle", action="store_true", help="nothing else runs here: the wall clock counts")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--summary", type=Path, metavar="FOLDER", help="only judge the files of a run")
    given = parser.parse_args()
    if given.summary:
        return verdict(given.summary, given.idle)
    folder = given.output.resolve()
    if (folder / "samples.jsonl").exists():
        parser.error(f"--output {given.output}: it holds an earlier run; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    Soak(folder, given).run()
    return verdict(folder, given.idle)


class Soak:
    """The processes of one soak, and its files."""

    def __init__(self, folder: Path, given: argparse.Namespace):
        self.folder, self.given = folder, given
        self.mark = uuid.uuid4().hex
        self.seconds = 60 * given.minutes
        self.pause = max(2.0, self.seconds / 480)
        self.ports = {role: free_port() for role in ("rollout", "judge")}
        self.metrics, self.rollouts = (
            Lines(folder / "run" / "metrics.jsonl"),
            Lines(folder / "run" / "rollouts" / "rank0.jsonl"),
        )
        self.seen: set[tuple[int, float]] = set()
        self.python = given.vllm or sys.executable

    def run(self) -> None:
        """Start everything, sample and kill until the time is over, end everything."""
        environment = os.environ | self.write_files() | {MARK: self.mark}
        trainer = [self.python, str(RECIPE), "--config", str(self.folder / "run.yaml")]
        words = ["-m", "rlkd.cli", "serve", "--config", str(self.folder / "serve.yaml"), "--quiet", "--", *trainer]
        with (self.folder / "serve.log").open("wb") as log:
            self.serve = subprocess.Popen(
                [sys.executable, *words],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=environment,
                start_new_session=True,  # Ctrl-C comes here only
                preexec_fn=lambda: die_with_parent(signal.SIGTERM),
            )
        try:
            self.watch()
        except KeyboardInterrupt:
            self.note("interrupted")
        finally:
            self.end()

    def write_files(self) -> dict[str, str]:
        """The configs and the reward; returns the variables of the processes."""
        (self.folder / "flaky.py").write_text(FLAKY)
        stand_in = {"command": [sys.executable, str(SERVER)], "gpus": "cpu", "model": self.given.student}
        rollout = {**stand_in, "port": self.ports["rollout"], "weight_transfer": self.given.transfer}
        if self.given.vllm:
            del rollout["command"]
            rollout |= {"python": self.given.vllm, "max_model_len": 512}
        judge = {**stand_in, "port": self.ports["judge"], "served_model_name": "judge"}
        judge["extra"] = ["--judge", str(SHARE)]
        servers = {"output_dir": "serve", "restarts": 10, "workers": {"rollout": rollout, "judge": judge}}
        (self.folder / "serve.yaml").write_text(yaml.safe_dump(servers, sort_keys=False))
        engine = f"http://127.0.0.1:{self.ports['judge']}/v1?timeout=1#judge"
        structure = {"decomposer": "rules", "judge": "model", "judge_engine": engine, "store": str(self.folder)}
        settings = {
            "dataset_name": "lab-dependency",
            "model_name_or_path": self.given.student,
            "use_peft": False,
            "reward_funcs": ["accuracy", "structure", f"{self.folder / 'flaky.py'}:flaky"],
            "reward_weights": [1.0, 1.0, 0.1],
            "reward_kwargs": {"structure": structure},
            "reward_cache": "off",
            "max_steps": 1_000_000,
            "per_device_train_batch_size": BATCH,
            "num_generations": GROUP,
            "max_completion_length": 96,
            "temperature": 1.0,
            "learning_rate": 1.0e-5,
            "lr_scheduler_type": "constant",
            "beta": 0.0,
            "gradient_checkpointing": False,
            "use_vllm": True,
            "vllm_mode": "server",
            "vllm_server_base_url": "env:RLKD_ROLLOUT_URL",
            "vllm_weight_transfer": self.given.transfer,
            "vllm_group_port": free_port(),
            "output_dir": str(self.folder / "run"),
            "logging_steps": 1,
            "save_strategy": "steps",
            "save_steps": 25,
            "save_total_limit": 2,
            "report_to": "none",
        }
        (self.folder / "run.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        variables = {"RLKD_CACHE": str(self.folder / "cache")}
        if not self.given.vllm:
            variables["PYTHONPATH"] = os.pathsep.join(
                [str(pretend_vllm(self.folder / "no-vllm")), *filter(None, [os.environ.get("PYTHONPATH")])]
            )
        return variables

    def watch(self) -> None:
        """Sample, and kill servers, until the time since the first step is over."""
        chance = random.Random(self.given.seed)
        kills = [(role, self.seconds * share + self.seconds * chance.uniform(0, 0.02)) for role, share in KILLS]
        started = time.monotonic()
        first: float | None = None
        print(f"{'min':>6} {'steps':>6} {'rollouts':>8} {'procs':>5} " + " ".join(f"{role:>10}" for role in ROLES))
        while True:
            if self.serve.poll() is not None:
                self.note("ended", code=self.serve.returncode)
                return
            now = time.monotonic()
            if first is None and self.metrics.count():
                first = now
                self.note("first_step", after=round(now - started, 1))
            if first is not None:
                if now - first > self.seconds:
                    return
                while kills and now - first > kills[0][1]:
                    self.kill(kills.pop(0)[0])
            self.sample(None if first is None else now - first)
            time.sleep(self.pause)

    def kill(self, role: str) -> None:
        """SIGKILL to the process of a server."""
        victims = self.by_role()[role]
        for process in victims:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.note("killed", role=role, pids=[process.pid for process in victims])
        print(f"{'':>6} killed: {role}", flush=True)

    def by_role(self) -> dict[str, list[psutil.Process]]:
        """The running processes; what a server has started counts as its own, and what the trainer has as a worker."""
        found: dict[str, list[psutil.Process]] = {role: [] for role in ROLES}
        found["supervisor"].append(psutil.Process(self.serve.pid))
        for guard in psutil.Process(self.serve.pid).children():
            for process in guard.children():
                with contextlib.suppress(psutil.Error):
                    line = " ".join(process.cmdline())
                    role = "trainer" if RECIPE.name in line else "judge" if "--judge" in line else "rollout"
                    found[role].append(process)
                    found["workers" if role == "trainer" else role] += descendants(process.pid)
            found["supervisor"].append(guard)
        return found

    def sample(self, at: float | None) -> None:
        """A line of `samples.jsonl`; `at`: seconds since the first step."""
        record: dict[str, Any] = {"at": at if at is None else round(at, 2), "rss": {}, "cpu": {}, "processes": {}}
        try:
            roles = self.by_role()
        except psutil.Error:
            return
        for role, processes in roles.items():
            resident, spent, number = 0, 0.0, 0
            for process in processes:
                with contextlib.suppress(psutil.Error):
                    with process.oneshot():
                        resident += process.memory_info().rss
                        spent += sum(process.cpu_times()[:4])  # with that of children that have ended
                        self.seen.add((process.pid, process.create_time()))
                    number += 1
            record["rss"][role] = round(resident / 2**20, 1)
            record["cpu"][role], record["processes"][role] = round(spent, 2), number
        record["steps"], record["rollouts"] = self.metrics.count(), self.rollouts.count()
        append(self.folder / "samples.jsonl", record)
        if at is not None:
            memory = " ".join(f"{record['rss'][role]:>6.0f} MiB" for role in ROLES)
            number = sum(record["processes"].values())
            row = f"{at / 60:>6.1f} {record['steps']:>6} {record['rollouts']:>8} {number:>5} {memory}"
            print(row, flush=True)
            with (self.folder / "table.txt").open("a") as table:
                table.write(row + "\n")

    def end(self) -> None:
        """End `rlkd serve` as Ctrl-C does, and look for what is left."""
        with contextlib.suppress(KeyboardInterrupt):  # a second one does not leave processes behind
            if self.serve.poll() is None:
                self.serve.send_signal(signal.SIGINT)
            try:
                self.serve.wait(120)
            except subprocess.TimeoutExpired:
                self.note("does not end")
                self.serve.kill()
                self.serve.wait()
            time.sleep(2)
        left = {process.pid: process for process in carriers(MARK, self.mark)}
        for pid, created in self.seen:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                if process.create_time() == created and process.status() != psutil.STATUS_ZOMBIE:
                    left[pid] = process
        names = []
        for process in left.values():
            with contextlib.suppress(psutil.Error):
                names.append(" ".join(process.cmdline())[:200])
                process.kill()
        self.note("left", processes=names)

    def note(self, event: str, **content: Any) -> None:
        """A line of `events.jsonl`."""
        append(self.folder / "events.jsonl", {"time": round(time.time(), 1), "event": event, **content})


class Lines:
    """Counts the lines of a file that grows."""

    def __init__(self, path: Path):
        self.path, self.offset, self.number = path, 0, 0

    def count(self) -> int:
        """The lines so far."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self.offset)
                while block := file.read(1 << 20):
                    self.offset += len(block)
                    self.number += block.count(b"\n")
        return self.number


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file, which may not be there yet."""
    return read_records(path) if path.exists() else iter(())


def append(path: Path, record: dict[str, Any]) -> None:
    """Add a line of JSON."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def pretend_vllm(folder: Path) -> Path:
    """A package `vllm` with the names that TRL imports; a run with gloo or disk never uses them."""
    names = {
        "__init__": "LLM = RequestOutput = SamplingParams = None",
        "sampling_params": "StructuredOutputsParams = None",
        "utils/network_utils": "get_ip = None",
        "distributed/weight_transfer/nccl_common": "trainer_init = None",
        "distributed/weight_transfer/packed_tensor": "packed_nccl_broadcast_producer = None",
    }
    for name, content in names.items():
        path = folder / "vllm" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        for parent in path.relative_to(folder).parents[:-1]:
            (folder / parent / "__init__.py").touch()
        path.write_text(content + "\n")
    metadata = folder / "vllm-0.30.0.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.30.0\n")
    (metadata / "top_level.txt").write_text("vllm\n")
    return folder


# The verdict


def verdict(folder: Path, idle: bool) -> int:
    """Write and print what the files of a run say; returns the exit status."""
    figures = summary(folder)
    bounds = {
        "all kills": len(figures["kills"]) == len(KILLS),
        f"memory_growth <= {BOUND}": within(figures["memory_growth"], -1, BOUND),
        f"trainer_memory_growth <= {BOUND}": within(figures["trainer_memory_growth"], -1, BOUND),
        "orphans = 0": figures["orphans"] == [],
        "lost_rollouts = 0": figures["lost_rollouts"] == [],
        f"stale <= {STALE}": within(figures["stale"], 0, STALE),
        "cpu_ratio": within(figures["cpu_ratio"], 1 - BOUND, 1 + BOUND),
    }
    if idle:
        bounds["wall_ratio"] = within(figures["wall_ratio"], 1 - BOUND, 1 + BOUND)
    figures["holds"] = bounds
    (folder / "soak.json").write_text(json.dumps(figures, indent=1) + "\n")
    print()
    for name, value in figures.items():
        print(f"{name:<24} {json.dumps(value)}")
    return harness.report(figures, bounds)


def within(value: float | None, low: float, high: float) -> bool:
    return value is not None and low <= value <= high


def summary(folder: Path) -> dict[str, Any]:
    """The figures of a run, or of the part that there is."""
    samples = [one for one in records(folder / "samples.jsonl") if one["at"] is not None]
    events = list(records(folder / "events.jsonl"))
    metrics = list(records(folder / "run" / "metrics.jsonl"))
    end = max((one["at"] for one in samples), default=0.0)
    log = folder / "serve.log"
    text = log.read_text(errors="replace") if log.exists() else ""

    def quarter(number: int) -> list[dict[str, Any]]:
        return [one for one in samples if (number - 1) * end / 4 <= one["at"] <= number * end / 4]

    second, last = quarter(2), quarter(4)

    def growth(roles: tuple[str, ...]) -> float | None:
        parts = [median(sum(one["rss"][role] for role in roles) for one in part) for part in (second, last) if part]
        return round(parts[1] / parts[0] - 1, 4) if len(parts) == 2 else None

    speeds = [speed(part, metrics) for part in (second, last)]
    ratios = {
        name: round(speeds[1][name] / speeds[0][name], 4) if all(one.get(name) for one in speeds) else None
        for name in ("cpu", "wall")
    }
    differences = [one.get("sampling/sampling_logp_difference/max") for one in metrics if "reward" in one]
    known = [value for value in differences if value is not None]
    memory = {
        role: [round(median(one["rss"][role] for one in part)) for part in (second, last) if part] for role in ROLES
    }
    return {
        "minutes": round(end / 60, 1),
        "steps": len(metrics),
        "rollouts": sum(1 for _ in records(folder / "run" / "rollouts" / "rank0.jsonl")),
        "kills": [one["role"] for one in events if one["event"] == "killed"],
        "memory_growth": growth(ROLES),
        "trainer_memory_growth": growth(("trainer",)),
        "memory_mib": memory,
        "processes": dict(Counter(sum(one["processes"].values()) for one in samples).most_common(4)),
        "orphans": next((one["processes"] for one in reversed(events) if one["event"] == "left"), None),
        "lost_rollouts": lost_rollouts(folder, [int(one["step"]) for one in metrics]),
        "stale": max(known) if known and len(known) == len(differences) else None,
        "failed": {
            name: round(sum(one.get(f"rewards/{name}/failed", 0.0) for one in metrics) / max(1, len(metrics)), 4)
            for name in ("accuracy", "structure", "flaky")
        },
        "cpu_ratio": ratios["cpu"],
        "wall_ratio": ratios["wall"],
        "speed": speeds,
        "restored": text.count("is back and has the trainer's weights"),
        "longest_step_s": max((one["step_time"] for one in metrics if "step_time" in one), default=None),
    }


def speed(part: list[dict[str, Any]], metrics: list[dict[str, Any]]) -> dict[str, float]:
    """Of a stretch of samples: seconds per step and per completion token, of the trainer's CPU and of the clock."""
    if len(part) < 2 or part[-1]["steps"] <= part[0]["steps"]:
        return {}
    steps = metrics[part[0]["steps"] : part[-1]["steps"]]
    tokens = [BATCH * one["completions/mean_length"] for one in steps]
    cpu = sum(part[-1]["cpu"][role] - part[0]["cpu"][role] for role in ("trainer", "workers"))
    return {
        "steps": len(steps),
        "tokens_per_step": round(sum(tokens) / len(tokens), 1),
        "cpu_s_per_step": round(cpu / len(steps), 4),
        "wall_s_per_step": round(median(one["step_time"] for one in steps), 4),
        "cpu": cpu / sum(tokens),
        "wall": median(one["step_time"] / count for one, count in zip(steps, tokens, strict=True)),
    }


def lost_rollouts(folder: Path, steps: list[int]) -> list[str]:
    """What is wrong with the rollouts of the logged steps. Those of a step that was not finished come on top."""
    groups: dict[int, Counter[str]] = defaultdict(Counter)
    for record in records(folder / "run" / "rollouts" / "rank0.jsonl"):
        groups[record["step"]][record["id"]] += 1
    wrong = [] if steps == list(range(1, len(steps) + 1)) else ["steps of metrics.jsonl have gaps or duplicates"]
    for step in steps:
        counts = sorted(groups[step].values())
        if sum(counts) != BATCH or any(count % GROUP for count in counts):
            wrong.append(f"step {step}: {sum(counts)} rollouts, in groups of {counts}")
    more = [step for step in groups if step not in set(steps) and step != len(steps) + 1]
    return wrong + [f"rollouts of step {step}, which is not logged" for step in more]


if __name__ == "__main__":
    sys.exit(main())
