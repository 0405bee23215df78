"""`rlkd rewards`: list, describe, test and create rewards, and report the rewards of a run."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import inspect
import json
import logging
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkd.data.rows import TRL_ARGUMENTS
from rlkd.data.samples import SAMPLE
from rlkd.registry import is_factory, registry, settable_parameters

if TYPE_CHECKING:
    from rewards.testing.contract import Check
    from rewards.testing.runner import Samples, ScoredSamples

HELP = "List, describe, test and create rewards, and report the rewards of a run."
SPEC = "a registered name, package.module.function or path/to/file.py:function, as in reward_funcs"
SHOWN = 20
TEST = f"""\
Score samples with a reward, as a run does, and check that it keeps the contract.

The output is a table of the first {SHOWN} outcomes (with the seconds of the call that a sample was part of), the
number of distinct inputs, the time per sample, the cache hits of a second run (on a temporary cache), and the
contract, one line per requirement:

  scores       some sample is scored or not applicable; a reward that fails on all samples is a violation
  length       one value per completion, also for an empty batch and a batch of one
  values       finite numbers, None or Failed
  arguments    unchanged
  repetition   equal in two calls                  }}
  order        equal in any order of the batch     }} required of rewards that declare per_sample=True,
  batching     equal one by one and in halves      }} a note for others
  pickles      the copy gives equal scores
  name         can name metrics, and no other reward has it

The exit code is 1 if the contract is violated. Failures of single samples are shown and are not a violation.

All this scores the samples seven to nine times, with a line on stderr before each time. For a reward whose requests
cost time or money, --scores-only scores each different completion once and checks no contract; the exit code is then
1 if all samples fail.

The data are rows as a run takes them (a .jsonl or .parquet file, {SAMPLE}, ...) or the rollouts of a run
(OUTPUT_DIR/rollouts/rank0.jsonl). Completions are in the field `completion` or `completions`. If there are none, they
are made from each row's rationale and answer: as written, a duplicate, the first half, with another answer, and empty.
Without a tokenizer, completion_ids has one id per word."""


def main(arguments: Sequence[str]) -> int:
    """Run `rlkd rewards`; return the exit code."""
    parser = argparse.ArgumentParser(prog="rlkd rewards", description=HELP)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, action: Callable[[argparse.Namespace], int], text: str, description: str = "") -> Any:
        layout = argparse.RawDescriptionHelpFormatter
        added = commands.add_parser(name, help=text, description=description or text, formatter_class=layout)
        added.set_defaults(action=action)
        return added

    command("list", list_rewards, "list every registered name with its description and source")
    shown = command("show", show, "show description, parameters, columns and options of a reward")
    shown.add_argument("spec", metavar="NAME", help=SPEC)

    tested = command("test", test, "score samples with a reward and check that it keeps the contract", TEST)
    tested.add_argument("spec", metavar="SPEC", help=SPEC)
    tested.add_argument("--data", default=SAMPLE, metavar="DATA", help=f"rows or rollouts (default: {SAMPLE})")
    tested.add_argument("--split", default="train", help="split of --data, if it has splits (default: train)")
    tested.add_argument("--completions", metavar="FIELD", help="field with a row's completions")
    tested.add_argument("--rows", type=_count, metavar="N", help="number of rows (default: enough for 20 samples)")
    tested.add_argument("--kwargs", type=_mapping, default={}, metavar="JSON", help="parameters, as in reward_kwargs")
    tested.add_argument("--options", type=_mapping, default={}, metavar="JSON", help="options, as in reward_options")
    tested.add_argument(
        "--scores-only", action="store_true", help="score the samples once, without the checks of the contract"
    )
    tested.add_argument("--json", action="store_true", help="JSON output")

    created = command("new", new, "write a reward file to edit, and its test")
    created.add_argument("name", metavar="NAME", help="name of the reward and its file")
    created.add_argument("--folder", type=Path, default=Path(), help="output folder (default: the current one)")
    kind = created.add_mutually_exclusive_group()
    kind.add_argument("--per-sample", action="store_true", help="a reward that scores each completion alone (default)")
    kind.add_argument("--batch", action="store_true", help="a reward that compares the completions of a batch")

    reported = command("report", report, "report statistics of a run's rewards, from its rollouts")
    reported.add_argument("run", type=Path, metavar="RUN", help="output_dir of the run")
    reported.add_argument("--json", action="store_true", help="JSON output")

    options = parser.parse_args(list(arguments))
    return options.action(options)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number of at least 1")
    return value


def _mapping(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r}: expected an object, as in '{{\"limit\": 300}}'")
    return value


def list_rewards(options: argparse.Namespace) -> int:
    """`rlkd rewards list`."""
    names = registry("reward").names()
    width = max(map(len, names))
    for name, source in names.items():
        print(f"{name:<{width}}  {source}")
        if line := _first_line(source.partition(" (")[0]):
            print(f"{'':<{width}}      {line}")
    print("\nAny package.module.function or path/to/file.py:function is a reward, too.")
    return 0


def _first_line(path: str) -> str:
    """The first docstring line of the object that a dotted path names, read without importing it; "" if none."""
    try:
        package, *modules, name = path.split(".")
        spec = importlib.util.find_spec(package)
        for module in modules:
            folders = spec.submodule_search_locations if spec else None
            spec = PathFinder.find_spec(module, folders) if folders else None
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8")) if spec and spec.origin else ast.Module([], [])
    except (ImportError, OSError, SyntaxError, ValueError):
        return ""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name == name:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    return ""


def show(options: argparse.Namespace) -> int:
    """`rlkd rewards show`."""
    from rewards.runner import declared_options

    found = registry("reward").find(options.spec)
    target = found.target
    factory = is_factory("reward", target)
    print(f"{found.name}  ({_source_line(target)})\n")
    print(inspect.getdoc(target) or "No docstring.")
    parameters = {name: p for name, p in settable_parameters(target).items() if name not in TRL_ARGUMENTS}
    if not factory:  # the other parameters of a reward function are columns
        parameters = {name: p for name, p in parameters.items() if p.default is not p.empty}
    print("\nparameters (reward_kwargs)")
    _print_pairs({name: "required" if p.default is p.empty else repr(p.default) for name, p in parameters.items()})
    print("\ncolumns of the data")
    if factory and not inspect.isclass(target):
        print("  those of the reward that this function makes")
        return 0
    called = settable_parameters(target.__call__ if factory else target)
    any_of = getattr(target, "needs_any", ())
    columns = {}
    for name, parameter in called.items():
        if name in (*TRL_ARGUMENTS, "self") or (name in parameters and not factory):
            continue
        optional = f"one of {' and '.join(any_of)} is required" if name in any_of else "optional"
        columns[name] = "required" if parameter.default is parameter.empty else optional
    _print_pairs(columns)
    print("\noptions (reward_options)")
    _print_pairs({name: repr(value) for name, value in asdict(declared_options(target)).items()})
    for name, text in getattr(target, "templates", {}).items():
        print(f"\ndefault template, {name}\n{textwrap.indent(text, '  ')}")
    return 0


def _source_line(target: Any) -> str:
    try:
        return f"{inspect.getsourcefile(target)}:{inspect.getsourcelines(target)[1]}"
    except (OSError, TypeError):
        return f"{type(target).__module__}.{type(target).__qualname__}"


def _print_pairs(pairs: dict[str, str]) -> None:
    width = max(map(len, pairs), default=0)
    for name, text in pairs.items():
        print(f"  {name:<{width}}  {text}")
    if not pairs:
        print("  none")


def test(options: argparse.Namespace) -> int:
    """`rlkd rewards test`."""
    from rewards import build_reward
    from rewards.testing.contract import check_contract, violations
    from rewards.testing.runner import samples_from, score_samples

    samples = samples_from(options.data, split=options.split, field=options.completions, rows=options.rows)
    progress = partial(print, file=sys.stderr, flush=True)
    with _without_failure_warnings():
        scored = score_samples(
            options.spec, samples, options.kwargs, options.options, once=options.scores_only, progress=progress
        )
        reward = build_reward(options.spec, options.kwargs, options.options, cache=False)
        checks = None if options.scores_only else check_contract(reward, samples, progress=progress)
    if options.json:
        outcomes = zip(samples.names, scored.outcomes, strict=False)  # a broken reward has none
        found = {
            "reward": reward.__name__,
            "samples_from": samples.origin,
            **{name: value for name, value in asdict(scored).items() if name != "outcomes"},
            "samples": [{"id": name, **asdict(outcome)} for name, outcome in outcomes],
            "checks": [asdict(check) for check in checks or ()],
        }
        print(json.dumps(found, indent=1, default=str))
    else:
        _render_test(reward.__name__, samples, scored, checks)
    if checks is None:
        return int(all(outcome.status == "failed" for outcome in scored.outcomes))
    return 1 if violations(checks) else 0


@contextmanager
def _without_failure_warnings() -> Iterator[None]:
    """Silence the runner's warnings of failures, which the table shows."""
    logger = logging.getLogger("rewards.runner")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _render_test(name: str, samples: Samples, scored: ScoredSamples, checks: Sequence[Check] | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(Text(f"{name}: {samples.origin}"))
    if scored.broken is None:
        table = Table()
        for column in ("sample", "outcome", "score", "cause", "seconds"):
            table.add_column(column, justify="right" if column in ("score", "seconds") else "left")
        for sample, outcome in list(zip(samples.names, scored.outcomes, strict=True))[:SHOWN]:
            score = "" if outcome.value is None else f"{outcome.value:.4g}"
            seconds = "duplicate" if outcome.reused else "" if outcome.seconds is None else f"{outcome.seconds:.2g}"
            cells = sample, outcome.status.replace("_", " "), score, outcome.cause or "", seconds
            table.add_row(*map(Text, cells))
        console.print(table)
        _print_pairs(_costs(scored))
    else:
        console.print(Text(f"No scores: {scored.broken}"))
    if checks is None:
        return
    console.print("\ncontract", highlight=False)
    styles = {"holds": "green", "violated": "bold red", "note": "cyan", "skipped": "dim"}
    table = Table(box=None, show_header=False, padding=(0, 1))
    for check in checks:
        mark = "VIOLATED" if check.verdict == "violated" else check.verdict
        table.add_row(Text(mark, styles[check.verdict]), check.name, Text(check.note))
    console.print(table)


def _costs(scored: ScoredSamples) -> dict[str, str]:
    count, distinct = len(scored.outcomes), scored.distinct
    statuses = Counter(outcome.status.replace("_", " ") for outcome in scored.outcomes)
    costs = {
        "outcomes": ", ".join(f"{n} {status}" for status, n in statuses.items()),
        "distinct inputs": "not counted: it takes whole batches" if distinct is None else f"{distinct} of {count}",
        "seconds per sample": f"{scored.seconds / count:.2g} ({scored.seconds:.2g} for all)",
    }
    if scored.seconds_second_run is not None:
        again = f"{scored.seconds_second_run / count:.2g} s per sample"
        costs["second run"] = f"{again}, cache hits {scored.cache_hits} of {count}"
    return costs


def new(options: argparse.Namespace) -> int:
    """`rlkd rewards new`."""
    from rewards.testing.template import usage, write_reward

    paths = write_reward(options.name, options.folder, per_sample=not options.batch)
    print(usage(options.name, *paths, per_sample=not options.batch))
    return 0


def report(options: argparse.Namespace) -> int:
    """`rlkd rewards report`."""
    from rlkd.report.rewards import read_report, render_report

    found = read_report(options.run)
    if options.json:
        print(json.dumps(found.to_dict(), indent=1))
        return 0
    from rich.console import Console

    console = Console()
    (console if console.is_terminal else Console(width=150)).print(render_report(found))
    return 0
