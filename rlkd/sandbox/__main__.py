"""`python -m rlkd.sandbox`: say whether programs of a model can be run here, and which means is missing."""

import sys

from rlkd.sandbox import stages


def main() -> int:
    """Print a line for each means; exit code 1 where one is missing."""
    found = stages()
    for name, error in found:
        print(f"{'missing' if error else 'ok':<8} {name}" + (f"\n         {error}" if error else ""))
    return int(any(error for _, error in found))


if __name__ == "__main__":
    sys.exit(main())
