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

Every few seconds a line goes to `samples.jsonl`: resident memory of each role, processes, CPU time, steps and
rollouts. The verdict (`soak_verdict.py` lists its bounds) is printed at the end and stands in `soak.json`; `--summary`
judges the files of a run that was killed or still goes on. Exits with 1 if a bound does not hold. Ctrl-C ends
everything, and the verdict is that of the time so far.
"""

import harness  # noqa: F401  # before torch: one thread, no hub

# isort: split

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import psutil

from rlkd.process import carriers, descendants, die_with_parent
from soak_configs import free_port, write_configs
from soak_verdict import ROLES, verdict

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parent / "recipes" / "rlkd.py"
MARK = "RLKD_SOAK_MARK"
# Role and share of the time. The quarters that are compared have one kill of the rollout server each.
KILLS = (("judge", 0.12), ("rollout", 0.35), ("rollout", 0.55), ("judge", 0.65), ("rollout", 0.85))


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
        return verdict(given.summary, len(KILLS), idle=given.idle)
    folder = given.output.resolve()
    if (folder / "samples.jsonl").exists():
        parser.error(f"--output {given.output}: it holds an earlier run; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    Soak(folder, given).run()
    return verdict(folder, len(KILLS), idle=given.idle)


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
        environment = os.environ | write_configs(self.folder, self.given, self.ports) | {MARK: self.mark}
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


def append(path: Path, record: dict[str, Any]) -> None:
    """Add a line of JSON."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    sys.exit(main())
