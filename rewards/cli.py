"""`rlkd rewards`: what rewards there are."""

import argparse
from collections.abc import Sequence

import rewards  # noqa: F401 (declares the built-in rewards)
from rlkd.registry import registry

HELP = "list the rewards that a config can name"


def main(arguments: Sequence[str]) -> int:
    """Run `rlkd rewards`."""
    parser = argparse.ArgumentParser(prog="rlkd rewards", description=HELP)
    parser.add_argument("action", choices=["list"], help="list: every registered name and where it comes from")
    parser.parse_args(arguments)
    names = registry("reward").names()
    width = max(map(len, names))
    for name, source in names.items():
        print(f"{name:<{width}}  {source}")
    print("\nAny package.module.function or path/to/file.py:function is a reward, too.")
    return 0
