"""Whether programs that models write can be run."""

from __future__ import annotations

from rlkd.doctor.findings import Finding
from rlkd.sandbox import SandboxError, SandboxUnavailable, run_program

WAY_OUT = "Only the reward `code` needs it (docs/sandbox.md)."


def check_sandbox() -> Finding:
    """Run a program of one line in the sandbox."""
    try:
        result = run_program("print(6 * 7)")
    except (SandboxUnavailable, SandboxError) as error:
        return Finding(
            "sandbox",
            "warning",
            f"programs cannot be run: {error}",
            WAY_OUT,
        )
    if result.status == "ok" and result.stdout.strip() == "42":
        return Finding("sandbox", "ok", f"a program of one line has run in it, in {result.seconds:.2f} s")
    return Finding(
        "sandbox",
        "warning",
        f"a program of one line ended with {result.status}: {result.stderr.strip()[-200:]}",
        WAY_OUT,
    )
