"""`rlkd report`: writes one HTML file with the curves and rollouts of a run, or of two runs compared."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rlkd.errors import UsageError

# Characters of a page.
LARGE = 50_000_000

DESCRIPTION = """\
Write one HTML file with the curves and rollouts of a run. It opens in a browser without a network.

  rlkd report runs/rlkd                      runs/rlkd/report.html
  rlkd report runs/rlkd runs/baseline        both runs: curves overlaid, held-out rows paired
  rlkd report runs/rlkd --out report.html

The run may still be going on. The page holds prompts and completions: share it as you would share the data."""


def main(arguments: Sequence[str]) -> int:
    """Run `rlkd report`; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="rlkd report", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="output_dir of a run")
    parser.add_argument("other", metavar="OTHER_RUN", type=Path, nargs="?", help="a run to compare it with")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to write (default: RUN/report.html)")
    parser.add_argument(
        "--rollouts",
        type=int,
        default=20_000,
        metavar="N",
        help="most rollouts of each run in the file; of more, those of every n-th step (default: %(default)s)",
    )
    parsed = parser.parse_args(arguments)
    if parsed.rollouts < 1:
        parser.error(f"argument --rollouts: {parsed.rollouts} is below 1")
    out: Path = parsed.out or parsed.run / "report.html"
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder; give the name of a file, such as {out / 'report.html'}")

    from rlkd.files import write_atomically
    from rlkd.report.page import render_page
    from rlkd.report.records import read_run

    paths = [path for path in (parsed.run, parsed.other) if path is not None]
    names = run_names(paths)
    runs = [read_run(path, most_rollouts=parsed.rollouts, name=name) for path, name in zip(paths, names, strict=True)]
    page = render_page(runs)
    try:
        write_atomically(out, page)
    except OSError as error:
        raise UsageError(f"{out} cannot be written ({error.strerror}); name another file with --out") from error
    shown = sum(len(run.rollouts) for run in runs)
    print(f"{out}: {len(page) / 1e6:.1f} MB, {shown} rollouts. Open it in a browser.")
    if len(page) > LARGE:
        print(f"A browser may be slow with so much: --rollouts {max(1, shown // 4)} makes a smaller file.")
    return 0


def run_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the runs apart.

    >>> run_names([Path("/runs/a/rlkd"), Path("/runs/b/rlkd")])
    ['a/rlkd', 'b/rlkd']
    """
    parts = [path.resolve().parts for path in paths]
    longest = max(map(len, parts))
    for length in range(1, longest + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UsageError(f"{paths[0]} and {paths[-1]} are the same run; give two to compare")
