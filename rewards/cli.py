"""`rlkd rewards`: what rewards there are, what one says of samples, whether it keeps the contract, what a run saw.

rlkd rewards list                                every name that a config can use
rlkd rewards show NAME                           one reward: what it is, its parameters, columns and options
rlkd rewards test SPEC [--data rows.jsonl]       its scores of samples, and whether it keeps the contract
rlkd rewards new NAME                            a reward file to start from, with its test
rlkd rewards report RUN                          the rewards of a run, from its rollouts
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import inspect
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkd.data.rows import TRL_ARGUMENTS
from rlkd.data.samples import SAMPLE
from rlkd.registry import registry, settable_parameters

if TYPE_CHECKING:
    from rewards.testing.contract import Check
    from rewards.testing.runner import Samples, Trial

HELP = "Rewards: list and describe them, test one, start a new one, and see what those of a run said."
SPEC = "a registered name, package.module.function or path/to/file.py:function, as in reward_funcs"
SHOWN = 20
TEST = f"""\
Score samples with a reward, as a run does it, and check that it keeps the contract.

Shown are the outcomes of the first {SHOWN} samples (the seconds are those of the call that a sample was part of), the
number of distinct inputs, the time per sample, the cache hits of a second run (on a temporary cache), and the
contract, one line a demand:

  scores       something is scored, or found not applicable; a reward that fails on all samples is a violation
  length       one value a completion, also for an empty batch and for a batch of one
  values       finite numbers, None or Failed
  arguments    left as they were
  repetition   the same when called twice         }}
  order        the same in any order of the batch }} demanded of rewards that say per_sample=True,
  batching     the same one by one and in halves  }} a note for others
  pickles      and the copy gives the same
  name         can name metrics, and no other reward has it

The exit code is 1 where the contract is violated. Failures of single samples are shown, and are no violation.

Data are rows as a run takes them (a .jsonl or .parquet file, {SAMPLE}, ...) or the rollouts of a run
(OUTPUT_DIR/rollouts/rank0.jsonl). Completions are taken from the field `completion` or `completions`. Where there are
none, they are made of each row's rationale and answer: as written, once more, the first half, with another answer, and
empty. There is no tokenizer here, so completion_ids have one id a word."""


def main(arguments: Sequence[str]) -> int:
    """Run `rlkd rewards`; return the exit code."""
    parser = argparse.ArgumentParser(prog="rlkd rewards", description=HELP)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, action: Callable[[argparse.Namespace], int], text: str, description: str = "") -> Any:
        layout = argparse.RawDescriptionHelpFormatter
        added = commands.add_parser(name, help=text, description=description or text, formatter_class=layout)
        added.set_defaults(action=action)
        return added

    command("list", list_rewards, "list every registered name, what it is and where it comes from")
    shown = command("show", show, "show a reward: what it is, its parameters, columns and options")
    shown.add_argument("spec", metavar="NAME", help=SPEC)

    tested = command("test", test, "score samples with a reward and check that it keeps the contract", TEST)
    tested.add_argument("spec", metavar="SPEC", help=SPEC)
    tested.add_argument("--data", default=SAMPLE, metavar="DATA", help=f"rows or rollouts ({SAMPLE})")
    tested.add_argument("--split", default="train", help="of --data, where it has splits (train)")
    tested.add_argument("--completions", metavar="FIELD", help="field that holds a row's completions")
    tested.add_argument("--rows", type=_count, metavar="N", help="so many rows (default: as many as give 20 samples)")
    tested.add_argument("--kwargs", type=_mapping, default={}, metavar="JSON", help="parameters, as in reward_kwargs")
    tested.add_argument("--options", type=_mapping, default={}, metavar="JSON", help="options, as in reward_options")
    tested.add_argument("--json", action="store_true", help="print everything as JSON")

    started = command("new", new, "write a reward file to start from, and its test")
    started.add_argument("name", metavar="NAME", help="of the reward and its file")
    started.add_argument("--folder", type=Path, default=Path(), help="where to write (the current folder)")
    kind = started.add_mutually_exclusive_group()
    kind.add_argument("--per-sample", action="store_true", help="a score rests on one completion (the default)")
    kind.add_argument("--batch", action="store_true", help="a score rests on the other completions of the batch, too")

    reported = command("report", report, "show what the rewards of a run said, from its rollouts")
    reported.add_argument("run", type=Path, metavar="RUN", help="output_dir of the run")
    reported.add_argument("--json", action="store_true", help="print everything as JSON")

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


# list


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
    """The first line of the docstring that a dotted path names, read without importing it; "" where it has none."""
    package, *parts = path.split(".")
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return ""
    places = [Path(place) for place in (found.submodule_search_locations or [])] if found else []
    file = Path(found.origin) if found and found.origin else None
    while len(parts) > 1:
        name = parts.pop(0)
        inner = [place / name for place in places if (place / name).is_dir()]
        modules = [place / f"{name}.py" for place in places] + [place / "__init__.py" for place in inner]
        file, places = next((module for module in modules if module.is_file()), None), inner
        if file is None:
            return ""
    if file is None or file.suffix != ".py":
        return ""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return ""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and [node.name] == parts:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    return ""


# show


def show(options: argparse.Namespace) -> int:
    """`rlkd rewards show`."""
    from rewards.runner import _is_reward, declared_options

    found = registry("reward").find(options.spec)
    target = found.target
    print(f"{found.name}  ({_place(target)})\n")
    print(inspect.getdoc(target) or "No docstring.")
    parameters = {name: p for name, p in settable_parameters(target).items() if name not in TRL_ARGUMENTS}
    makes_one = inspect.isfunction(target) and not _is_reward(target)
    if not inspect.isclass(target) and not makes_one:  # a reward itself, whose other parameters are columns
        parameters = {name: p for name, p in parameters.items() if p.default is not p.empty}
    print("\nparameters (reward_kwargs)")
    _print_pairs(
        {name: "must be given" if p.default is p.empty else repr(p.default) for name, p in parameters.items()}
    )
    print("\ncolumns of the data")
    if makes_one:
        print("  those of the reward that this function makes")
        return 0
    called = settable_parameters(target.__call__ if inspect.isclass(target) else target)
    any_of = getattr(target, "needs_any", ())
    columns = {}
    for name, parameter in called.items():
        if name in (*TRL_ARGUMENTS, "self") or (name in parameters and not inspect.isclass(target)):
            continue
        used = f"one of {' and '.join(any_of)} is needed" if name in any_of else "used where it is there"
        columns[name] = "needed" if parameter.default is parameter.empty else used
    _print_pairs(columns)
    print("\noptions (reward_options)")
    _print_pairs({name: repr(value) for name, value in asdict(declared_options(target)).items()})
    return 0


def _place(target: Any) -> str:
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


# test


def test(options: argparse.Namespace) -> int:
    """`rlkd rewards test`."""
    from rewards.runner import build_reward
    from rewards.testing.contract import check_contract, violations
    from rewards.testing.runner import samples_from, try_reward

    samples = samples_from(options.data, split=options.split, field=options.completions, rows=options.rows)
    with _quiet():
        trial = try_reward(options.spec, samples, options.kwargs, options.options)
        reward = build_reward(options.spec, options.kwargs, options.options, cache=False)
        checks = check_contract(reward, samples)
    if options.json:
        print(json.dumps(_as_json(reward.__name__, samples, trial, checks), indent=1, default=str))
    else:
        _render_test(reward.__name__, samples, trial, checks)
    return 1 if violations(checks) else 0


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the runner's warnings of failures, which the table shows."""
    logger = logging.getLogger("rewards.runner")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _as_json(name: str, samples: Samples, trial: Trial, checks: Sequence[Check]) -> dict[str, Any]:
    return {
        "reward": name,
        "samples_from": samples.origin,
        "samples": [{"id": i, **asdict(o)} for i, o in zip(samples.names, trial.outcomes, strict=False)],
        "broken": trial.broken,
        "distinct": trial.distinct,
        "seconds": trial.seconds,
        "seconds_second_run": trial.again,
        "cache_hits": trial.hits,
        "checks": [asdict(check) for check in checks],
    }


def _render_test(name: str, samples: Samples, trial: Trial, checks: Sequence[Check]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(Text(f"{name}: {samples.origin}"))
    if trial.broken is None:
        table = Table()
        for column in ("sample", "outcome", "score", "cause", "seconds"):
            table.add_column(column, justify="right" if column in ("score", "seconds") else "left")
        for sample, outcome in list(zip(samples.names, trial.outcomes, strict=True))[:SHOWN]:
            score = "" if outcome.value is None else f"{outcome.value:.4g}"
            seconds = "like another" if outcome.reused else "" if outcome.seconds is None else f"{outcome.seconds:.2g}"
            cells = sample, outcome.status.replace("_", " "), score, outcome.cause or "", seconds
            table.add_row(*map(Text, cells))
        console.print(table)
        _print_pairs(_costs(samples, trial))
    else:
        console.print(Text(f"No scores: {trial.broken}"))
    console.print("\ncontract", highlight=False)
    styles = {"holds": "green", "violated": "bold red", "note": "cyan", "skipped": "dim"}
    table = Table(box=None, show_header=False, padding=(0, 1))
    for check in checks:
        mark = "VIOLATED" if check.verdict == "violated" else check.verdict
        table.add_row(Text(mark, styles[check.verdict]), check.name, Text(check.note))
    console.print(table)


def _costs(samples: Samples, trial: Trial) -> dict[str, str]:
    count, by_sample = len(samples), trial.distinct is not None
    statuses = Counter(outcome.status.replace("_", " ") for outcome in trial.outcomes)
    return {
        "outcomes": ", ".join(f"{n} {status}" for status, n in statuses.items()),
        "distinct inputs": f"{trial.distinct} of {count}" if by_sample else "not told apart: it takes whole batches",
        "seconds per sample": f"{trial.seconds / count:.2g} ({trial.seconds:.2g} for all)",
        "second run": f"{trial.again / count:.2g} s a sample, cache hits {trial.hits} of {count}",
    }


# new, report


def new(options: argparse.Namespace) -> int:
    """`rlkd rewards new`."""
    from rewards.testing.template import how_to_use, write_starter

    paths = write_starter(options.name, options.folder, per_sample=not options.batch)
    print(how_to_use(options.name, *paths, per_sample=not options.batch))
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
