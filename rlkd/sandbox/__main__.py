"""`python -m rlkd.sandbox`: check whether the sandbox works here, and which mechanism is missing."""

import sys

from rlkd.sandbox import stages


def main() -> int:
    """Print a line per mechanism; exit code 1 if one is missing."""
    found = stages()
    for name, error in found:
        print(f"{'missing' if error else 'ok':<8} {name}" + (f"\n         {error}" if error else ""))
    return int(any(error for _, error in found))


if __name__ == "__main__":
    sys.exit(main())
