"""Does RLKD learn the teacher's structure, or would any teacher do? One recorded run against its control.

    python benchmarks/studies/recorded_run.py --out runs/recorded --parallel            # about an hour on two cores
    python benchmarks/studies/recorded_run.py --out runs/recorded --parallel --resume   # continues after a kill
    python benchmarks/studies/recorded_run.py --out runs/recorded --analyse             # only reads the files
    python benchmarks/studies/recorded_run.py --out /tmp/smoke --smoke                  # does the script work?

Two arms of `recipes/rlkd.py` with `recipes/rlkd_recorded.yaml`, one after the other, or at once with a thread each:

    true        every question with its own teacher
    shuffled    every question with the teacher of another one that has as many steps (`--shuffle_teachers`)

Both see the same questions in the same order. The shuffled arm is rewarded for agreement with a foreign teacher, so
the logged rewards of the two arms are not comparable: all rollouts are scored again, those of both arms against both
teachers. The steps of a rollout are those that the arm's structure model found in training, so no model is needed; a
second scorer, `rules`, starts from the text.

Fixed before the first result: the config, the seeds below, and the primary figures (`PRIMARY`). Results:
`results.json`, `table.md` and `recorded_run.png` in the output folder, and the primary figures in the last line.

Arguments after `--` go to the recipe of both arms, e.g. `-- --max_steps 20`.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import yaml

from curves import Curve, Panel, draw, fitted_line
from grid import ROOT, arguments, guarded, write_results
from rlkd.data.rows import question_of
from rlkd.data.shuffle import shuffled_teachers
from rlkd.engines import run
from rlkd.errors import UsageError
from rlkd.files import lock_file, read_records
from rlkd.series import block_length, series_mean, trend
from rlkd.statistics import Interval
from rlkd.structure import Structure
from trainers.common.data_arguments import DataArguments

# Chosen before the first run; the seed of training (order of questions, sampling) is in the config.
SHUFFLE_SEED = 11
BOOTSTRAP_SEED = 13
CONFIG = ROOT / "recipes/rlkd_recorded.yaml"
ARMS: dict[str, list[str]] = {"true": [], "shuffled": ["--shuffle_teachers", str(SHUFFLE_SEED)]}
# The interval of no scores.
UNKNOWN = Interval(math.nan, -math.inf, math.inf, 0)
SIGNED = "+.3f"
PRIMARY = {
    "structure_trend": "trend of the structure column in the arm `true`, per 100 steps",
    "agreement_trend_difference": "trend of agreement with the true teacher, `true` minus `shuffled`, per 100 steps",
    "agreement_level_difference": "that agreement over the last third of the steps, `true` minus `shuffled`",
}
# Three steps of four short completions with the rules, so that nothing but a model is needed.
SMOKE = [
    *"--model_name_or_path embedded --max_steps 3 --eval_rows 2 --eval_every 2 --save_steps 2".split(),  # noqa: SIM905
    *"--per_device_train_batch_size 4 --gradient_accumulation_steps 1 --max_completion_length 8".split(),  # noqa: SIM905
    *("--reward_kwargs", '{"structure": {"decomposer": "rules"}}'),
]


@guarded
def main() -> None:
    parser = argparse.ArgumentParser(description="RLKD against shuffled teachers, recorded.")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted study")
    parser.add_argument("--parallel", action="store_true", help="both arms at once, one thread each")
    given, extra = arguments(parser, CONFIG)
    overrides = [*(SMOKE if given.smoke else []), *extra]
    settings = effective_settings(given.config, overrides)
    if not given.analyse:
        train(given, overrides, settings["max_steps"])
    results = analyse(given.out, settings) | {"smoke": given.smoke, "overrides": overrides}
    write_results(given.out, _plain(results), table(results))
    try:
        draw(results["panels"], given.out / "recorded_run.png", _title(results))
    except UsageError as error:
        print(f"no figure: {error}", file=sys.stderr)
    print(json.dumps({"steps": results["steps"], "smoke": given.smoke} | _plain(results["primary"])))


def effective_settings(config: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The config with the overrides of the command line (`--key value ...`)."""
    try:
        settings = dict(yaml.safe_load(config.read_text()))
    except OSError as error:
        raise UsageError(f"--config: {error}") from error
    key = ""
    for word in overrides:
        if word.startswith("--"):
            key, _, value = word[2:].partition("=")
            settings[key] = yaml.safe_load(value) if value else True
        else:
            settings[key] = yaml.safe_load(word)
    return settings


def train(given: argparse.Namespace, overrides: Sequence[str], max_steps: int) -> None:
    """Run the arms that are not complete; raise `UsageError` if one of them fails or already runs."""
    waiting = [arm for arm in ARMS if not (given.resume and is_complete(given.out / arm, max_steps))]
    for arms in [waiting] if given.parallel else [[arm] for arm in waiting]:
        _run_arms(arms, given, overrides)


def is_complete(folder: Path, max_steps: int) -> bool:
    """Whether an arm has trained and evaluated its last step."""
    from trainers.common.run_files import last_steps

    files = (folder / "metrics.jsonl", folder / "eval.jsonl")
    return all({record["step"] for record in last_steps(path, 1)} == {max_steps} for path in files)


def _run_arms(arms: Sequence[str], given: argparse.Namespace, overrides: Sequence[str]) -> None:
    environment = dict(os.environ) | ({"OMP_NUM_THREADS": "1"} if given.parallel else {})
    started: dict[str, subprocess.Popen[bytes]] = {}
    with contextlib.ExitStack() as stack:
        stack.callback(_stop, started)
        for arm in arms:
            folder = given.out / arm
            folder.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, str(ROOT / "recipes/rlkd.py"), "--config", str(given.config)]
            command += ["--output_dir", str(folder), *ARMS[arm], *overrides]
            command += ["--resume_from_checkpoint"] if given.resume else []
            log = stack.enter_context((given.out / f"{arm}.log").open("ab"))
            lock = stack.enter_context(_lock(given.out / f"{arm}.lock", arm))
            started[arm] = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, pass_fds=[lock.fileno()]
            )
            print(f"{arm}: started as process {started[arm].pid}; its output goes to {log.name}", flush=True)
        failed = [arm for arm, process in started.items() if process.wait() != 0]
    if failed:
        tail = (given.out / f"{failed[0]}.log").read_bytes().decode(errors="replace")[-2000:]
        raise UsageError(
            f"arm {failed[0]!r} ended with an error; --resume continues from its last checkpoint.\n{tail}"
        )


def _stop(processes: Mapping[str, "subprocess.Popen[bytes]"]) -> None:
    """End the processes that still run, and wait for their end."""
    for process in processes.values():
        if process.poll() is None:
            process.terminate()
            process.wait()


def _lock(path: Path, arm: str) -> IO[bytes]:
    """A lock that the arm's process inherits, so that it outlives a kill of this process."""
    lock = lock_file(path)
    if lock is None:
        raise UsageError(f"arm {arm!r} is still running ({path} is locked); wait for it, or end that process")
    return lock


def analyse(out: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All figures of the study, from the files of both arms; steps that one of them lacks are left out."""
    data = DataArguments(**{f.name: settings[f.name] for f in dataclasses.fields(DataArguments) if f.name in settings})
    rows = data.train_rows()
    teachers = {
        "true": {row["id"]: row for row in rows},
        "shuffled": {row["id"]: row for row in shuffled_teachers(rows, SHUFFLE_SEED)},
    }
    test_rows = {row["id"]: row for row in data.test_rows()}
    parameters = settings["reward_kwargs"]["structure"]
    rollouts = {arm: read_rollouts(out / arm, teachers[arm]) for arm in ARMS}
    branches = {arm: teacher_steps(teachers[arm], rollouts[arm], parameters) for arm in ARMS}
    arms = {arm: read_arm(out / arm, rollouts[arm], teachers, branches, test_rows, parameters) for arm in ARMS}
    steps = sorted(set(arms["true"]["metrics"]) & set(arms["shuffled"]["metrics"]))
    if len(steps) < 2:
        raise UsageError(f"{out}: the arms have {len(steps)} steps in common; nothing to analyse")
    block, third = block_length(len(steps)), max(1, len(steps) // 3)

    def series(arm: str, name: str) -> dict[int, float]:
        found = arms[arm]["series"][name]
        return {step: found[step] for step in steps if step in found and math.isfinite(found[step])}

    def rate(values: Mapping[int, float]) -> Interval:
        if len(values) < 2:
            return UNKNOWN
        return trend(list(values.values()), list(values), block=block, seed=BOOTSTRAP_SEED)

    def level(values: Mapping[int, float]) -> Interval:
        late = [value for step, value in values.items() if step in steps[-third:]]
        return series_mean(late, block=block, seed=BOOTSTRAP_SEED) if late else UNKNOWN

    def compared(name: str, figure: Callable[[Mapping[int, float]], Interval]) -> dict[str, Interval]:
        true, shuffled = series("true", name), series("shuffled", name)
        difference = {step: true[step] - shuffled[step] for step in true if step in shuffled}
        return {"true": figure(true), "shuffled": figure(shuffled), "difference": figure(difference)}

    names = list(arms["true"]["series"])
    results: dict[str, Any] = {
        "steps": len(steps),
        "block": block,
        "seeds": {"training": settings.get("seed"), "shuffle": SHUFFLE_SEED, "bootstrap": BOOTSTRAP_SEED},
        "settings": dict(settings),
        "trends": {name: compared(name, rate) for name in names},
        "levels": {name: compared(name, level) for name in names},
        "held_out": {arm: arms[arm]["held_out"] for arm in ARMS},
        "rescoring_gap": {arm: arms[arm]["gap"] for arm in ARMS},
    }
    results["held_out"]["difference"] = _held_out_differences(arms)
    results["primary"] = {
        "structure_trend": results["trends"]["structure, logged"]["true"],
        "agreement_trend_difference": results["trends"]["agreement with the true teacher"]["difference"],
        "agreement_level_difference": results["levels"]["agreement with the true teacher"]["difference"],
    }
    results["panels"] = _panels(results, series)
    return results


def read_rollouts(folder: Path, rows: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rollouts of an arm; raises `UsageError` where files are missing or a row is not in the data."""
    for name in ("metrics.jsonl", "eval.jsonl", "rollouts/rank0.jsonl"):
        if not (folder / name).is_file():
            raise UsageError(f"there is no {folder / name}; run the study first, without --analyse")
    rollouts = [record for path in (folder / "rollouts").glob("rank*.jsonl") for record in read_records(path)]
    lost = next((record["id"] for record in rollouts if record["id"] not in rows), None)
    if lost is not None:
        raise UsageError(f"{folder}: row {lost!r} of a rollout is not in the data of the config")
    return rollouts


def teacher_steps(
    rows: Mapping[str, Mapping[str, Any]], rollouts: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any]
) -> dict[str, list[Structure]]:
    """The teacher's branches of each row, as an arm was trained on them.

    They come from the data, as in the reward; if the reward decomposes rationales, from the rollouts, so that no model
    runs again.
    """
    decomposed = parameters.get("decomposer", "rules") in ("rules", "generative")
    if parameters.get("teacher") == "rows" or ("teacher" not in parameters and not decomposed):
        return {name: [Structure.from_list(steps) for steps in row["structures"]] for name, row in rows.items()}
    found: dict[str, dict[Structure, None]] = defaultdict(dict)
    for record in rollouts:
        if steps := _detail(record).get("teacher"):
            found[record["id"]][Structure.from_list(steps)] = None
    return {name: list(branches) for name, branches in found.items()}


def read_arm(
    folder: Path,
    rollouts: Sequence[Mapping[str, Any]],
    teachers: Mapping[str, Mapping[str, Any]],
    branches: Mapping[str, Mapping[str, Sequence[Structure]]],
    test_rows: Mapping[str, Any],
    parameters: Mapping[str, Any],
) -> dict[str, Any]:
    """The data of an arm: `metrics` by step, `series` (name -> step -> mean), `held_out` evaluations, and `gap`.

    `gap`: the largest difference between a logged structure reward and the same scored again against the arm's own
    teacher; it must be 0 for a deterministic reward, else the arms are not as described.
    """
    from rewards.structure import StructureReward
    from rlkd.report.held_out import interval_of
    from trainers.common.run_files import read_steps

    metrics = {record["step"]: record for record in read_records(folder / "metrics.jsonl")}
    by_rules = StructureReward("rules", alignment=parameters.get("alignment", "teacher"))
    kept = ("judge", "judge_engine", "engine", "embedding_model", "alignment", "threshold", "store")
    again = StructureReward(decomposer="rules", **{key: parameters[key] for key in kept if key in parameters})

    scores = {}
    for teacher, rows in teachers.items():
        own = [rows[record["id"]] for record in rollouts]
        scores[f"agreement with the {teacher} teacher, by rules"] = score_texts(by_rules, rollouts, own)
        scores[f"agreement with the {teacher} teacher"] = score_steps(again, rollouts, branches[teacher])
    logged = [record["rewards"].get("structure", {}).get("value") for record in rollouts]
    mine = scores[f"agreement with the {folder.name} teacher"]
    gaps = [abs(a - b) for a, b in zip(logged, mine, strict=True) if a is not None and b is not None]

    def from_metrics(key: str) -> dict[int, Any]:
        return {step: record.get(key) for step, record in metrics.items()}

    series = {
        "structure, logged": from_metrics("rewards/structure/mean"),
        **{name: _means(rollouts, values) for name, values in scores.items()},
        "accuracy in training": from_metrics("rewards/accuracy/mean"),
        "tokens per completion": from_metrics("completions/mean_length"),
        "truncated completions": from_metrics("completions/clipped_ratio"),
    }
    held_out = []
    for record in read_steps(folder / "eval.jsonl"):
        texts = [{"completion": row["completion"], "prompt": ""} for row in record["rows"]]
        found = score_texts(by_rules, texts, [test_rows[row["id"]] for row in record["rows"]])
        each = {
            row["id"]: {"accuracy": row["correct"], "structure by rules": value}
            for row, value in zip(record["rows"], found, strict=True)
        }
        held_out.append(
            {
                "step": record["step"],
                "accuracy": interval_of(record["accuracy"]),
                "structure by rules": _rows_mean([value for value in found if value is not None]),
                "ended": record["ended"]["mean"],
                "tokens": record["tokens"],
                "rows": each,
            }
        )
    return {
        "metrics": metrics,
        "series": {name: {s: v for s, v in values.items() if v is not None} for name, values in series.items()},
        "held_out": held_out,
        "gap": max(gaps, default=None),
    }


def score_texts(reward: Any, records: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The structure reward of completions against the teachers of `rows`; None where it has no score."""
    pairs = list(zip(records, rows, strict=True))
    results = run(
        reward(
            prompts=[record["prompt"] for record in records],
            completions=[record["completion"] for record in records],
            rationales=[row["rationales"] for row in rows],
            structures=[row["structures"] for row in rows],
            # The student's own question, also with a foreign teacher.
            question=[row.get("question") or question_of(record["prompt"]) for record, row in pairs],
        )
    )
    return [getattr(result, "value", result if isinstance(result, float) else None) for result in results]


def score_steps(
    reward: Any, records: Sequence[Mapping[str, Any]], branches: Mapping[str, Sequence[Structure]]
) -> list[float | None]:
    """The structure reward of the steps found in training, against other teachers."""
    indices, students, teachers = [], [], []
    for index, record in enumerate(records):
        steps = _detail(record).get("student")
        usable = [branch for branch in branches.get(record["id"], ()) if reward.gsrm.alignment.comparable(branch)]
        if steps is not None and usable:
            indices.append(index)
            students.append(Structure.from_list(steps))
            teachers.append(usable)
    scores: list[float | None] = [None] * len(records)
    for index, score in zip(indices, run(reward.gsrm.reward(students, teachers)), strict=True):
        scores[index] = getattr(score, "value", None)
    return scores


def _detail(record: Mapping[str, Any]) -> Mapping[str, Any]:
    return record["rewards"].get("structure", {}).get("detail") or {}


def table(results: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [f"{results['steps']} steps, blocks of {results['block']}, seeds {results['seeds']}.", ""]
    lines += ["Primary, fixed beforehand:", "", "| figure | value |", "| --- | --- |"]
    lines += [f"| {PRIMARY[key]} | {value.short(SIGNED)} |" for key, value in results["primary"].items()]
    for key, title in (("trends", "Trend per 100 steps"), ("levels", "Mean of the last third")):
        lines += ["", f"| {title} | true | shuffled | difference |", "| --- | --- | --- | --- |"]
        for name, found in results[key].items():
            spec = SIGNED if key == "trends" else ".3f"
            cells = [*(found[arm].short(spec) for arm in ARMS), found["difference"].short(SIGNED)]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| held out | step | accuracy | structure by rules | ended | tokens |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for arm in ARMS:
        for m in results["held_out"][arm]:
            lines.append(
                f"| {arm} | {m['step']} | {m['accuracy'].short()} | {m['structure by rules'].short()} "
                f"| {m['ended']:.0%} | {m['tokens']:.0f} |"
            )
    lines += ["", "| held out, row by row | accuracy | structure by rules |", "| --- | --- | --- |"]
    for name, found in results["held_out"]["difference"].items():
        lines.append(f"| {name} | {found['accuracy'].short(SIGNED)} | {found['structure by rules'].short(SIGNED)} |")
    return "\n".join(lines) + "\n"


def _means(records: Sequence[Mapping[str, Any]], values: Sequence[float | None]) -> dict[int, float]:
    found = defaultdict(list)
    for record, value in zip(records, values, strict=True):
        if value is not None:
            found[record["step"]].append(value)
    return {step: sum(values) / len(values) for step, values in sorted(found.items())}


def _rows_mean(values: Sequence[float]) -> Interval:
    """The mean over rows, which are independent of each other."""
    return series_mean(values, block=1, seed=BOOTSTRAP_SEED) if values else UNKNOWN


def _held_out_differences(arms: Mapping[str, Any]) -> dict[str, dict[str, Interval]]:
    """Paired by row: the gain of each arm from its first to its last evaluation, and the arms at the end."""
    ends = {arm: (arms[arm]["held_out"][0]["rows"], arms[arm]["held_out"][-1]["rows"]) for arm in ARMS}
    pairs = {f"{arm}: last minus first": (last, first) for arm, (first, last) in ends.items()}
    pairs["true minus shuffled, last"] = (ends["true"][1], ends["shuffled"][1])

    def paired(own: Any, other: Any, key: str) -> Interval:
        values = [(own[row][key], other[row][key]) for row in own if row in other]
        return _rows_mean([one - two for one, two in values if one is not None and two is not None])

    return {
        name: {key: paired(own, other, key) for key in ("accuracy", "structure by rules")}
        for name, (own, other) in pairs.items()
    }


def _panels(results: Mapping[str, Any], series: Any) -> list[Panel]:
    def scattered(title: str, name: str) -> Panel:
        curves, notes = [], {}
        for arm in ARMS:
            values = series(arm, name)
            steps, heights = list(values), list(values.values())
            line = fitted_line(heights, steps) if len(steps) > 1 else None
            curves.append(Curve(arm, steps, heights, line=line))
            found = results["trends"][name][arm]
            notes[arm] = f", per 100 steps: {found.short(SIGNED)}"
        return Panel(title, curves, notes)

    def held_out(title: str, key: str) -> Panel:
        curves = []
        for arm in ARMS:
            found = results["held_out"][arm]
            centres = [m[key].value for m in found]
            low = [m[key].low if math.isfinite(m[key].low) else m[key].value for m in found]
            high = [m[key].high if math.isfinite(m[key].high) else m[key].value for m in found]
            curves.append(Curve(arm, [m["step"] for m in found], centres, low, high))
        return Panel(title, curves)

    return [
        scattered("Structure reward as logged, each arm against its own teacher", "structure, logged"),
        scattered("The same rollouts against the TRUE teacher", "agreement with the true teacher"),
        held_out("Accuracy on held-out rows, greedy (Wilson 95 %)", "accuracy"),
        held_out("Structure on held-out rows, by rules, true teacher (95 %)", "structure by rules"),
        scattered("Tokens per completion", "tokens per completion"),
        scattered("Share of truncated completions", "truncated completions"),
    ]


def _title(results: Mapping[str, Any]) -> str:
    smoke = "SMOKE TEST, NO RESULT - " if results["smoke"] else ""
    return f"{smoke}RLKD with true and with shuffled teachers, {results['steps']} steps"


def _plain(value: Any) -> Any:
    """Plain values for JSON, without panels and single rows; infinite bounds become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items() if key not in ("panels", "rows")}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return round(value, 5) if math.isfinite(value) else None
    return value


if __name__ == "__main__":
    sys.exit(main())
