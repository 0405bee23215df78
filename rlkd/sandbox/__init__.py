"""Runs programs that a model wrote in a sandbox without network, files and privileges, under resource limits.

    >>> from rlkd.sandbox import SandboxLimits, call_function, run_program
    >>> run_program("print(int(input()) + 1)", stdin="41").stdout
    '42\\n'
    >>> call_function("def twice(x): return 2 * x", "twice", [[1, 2]]).value
    [1, 2, 1, 2]

`docs/sandbox.md` lists what is covered and what is not; `tests/rlkd/sandbox/test_sandbox.py` attacks each line of it.
If a mechanism is missing or did not take effect, nothing is executed (`SandboxUnavailable`).
"""

from rlkd.sandbox.run import (
    ENVIRONMENT,
    ProgramResult,
    SandboxError,
    SandboxLimits,
    SandboxUnavailable,
    call_function,
    check,
    run_program,
    stages,
)

__all__ = [
    "ENVIRONMENT",
    "ProgramResult",
    "SandboxError",
    "SandboxLimits",
    "SandboxUnavailable",
    "call_function",
    "check",
    "run_program",
    "stages",
]
