"""The verdict on a run of `soak.py`, from its files: what grew, and what was lost.

Of the time from the first step to the end, the second quarter is compared with the last by medians:

- `memory_growth`: of all processes together, and of the trainer's own, at most 5 %. Workers of a reward are started
  when it needs them for the first time; a short run counts them as growth;
- `orphans`: processes that outlive `rlkd serve`, 0;
- `lost_rollouts`: steps from 1 to the last logged one without exactly their rollouts in the file, 0;
- `stale`: the largest difference between the server's and the trainer's log-probabilities of sampled tokens, at most
  0.01: after a restart the server has its first weights, and they would differ by more;
- `cpu_ratio`: CPU-seconds per completion token of the trainer, 0.95 to 1.05, and `wall_ratio`, the same of the wall
  clock, which counts on a machine without other work only (`--idle`).

`restored` counts how often the trainer has sent its weights to a restarted server.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import harness
from rlkd.files import read_records

# What the run has: completions a step, and of them a prompt's.
BATCH, GROUP = 32, 8
ROLES = ("trainer", "workers", "rollout", "judge", "supervisor")
BOUND, STALE = 0.05, 0.01


def verdict(folder: Path, kills: int, *, idle: bool) -> int:
    """Write and print what the files of a run with so many kills say; returns the exit status."""
    figures = summary(folder)
    bounds = {
        "all kills": len(figures["kills"]) == kills,
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
    """Whether a figure is there and from `low` to `high`."""
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


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file, which may not be there yet."""
    return read_records(path) if path.exists() else iter(())
