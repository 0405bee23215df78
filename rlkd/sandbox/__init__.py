"""Runs programs that a model wrote in a sandbox without network, files and privileges, under resource limits.

    >>> from rlkd.sandbox import SandboxLimits, call_function, run_program
    >>> run_program("print(int(input()) + 1)", stdin="41").stdout
    '42\\n'
    >>> call_function("def twice(x): return 2 * x", "twice", [[1, 2]]).value
    [1, 2, 1, 2]

Covered (`tests/rlkd/sandbox/test_sandbox.py` attacks each line):

- the network: no socket can be opened, of whatever family; no name is resolved; the network namespace is empty
- files outside: nothing of the caller's can be read (home, project, caches, keys, /etc, /proc, /sys, the packages
  installed for this Python), by absolute path, by symlink or by an inherited descriptor
- writing: everything is read-only but /tmp, which is memory of limited size and vanishes with the sandbox
- the caller's environment: the program gets six variables that say nothing about the caller
- other processes: none outside can be seen, signalled, traced or read
- starting processes: impossible unless `SandboxLimits.children` allows it; then the number is bounded (fork bomb)
- leftovers: at the program's end, at a time limit or at the caller's death (SIGKILL), everything it started is killed,
  daemons included; there is no folder to remove
- limits on CPU time, wall time, memory, processes and threads, output, file size
- standard input: the test's input or nothing
- privileges: no capabilities and no way to gain any, no new namespaces, no mounts, no unusual kernel interfaces
- forged verdicts: expected outputs never enter the sandbox; the caller compares, outside
- fails closed: if a mechanism is missing or did not take effect, nothing is executed (`SandboxUnavailable`)

Not covered:

- bugs of the kernel or the processor: if you need more, run all of this in a virtual machine
- side channels: time, load of the machine, the kernel's version and the processor's model can be seen
- contention: several programs at once slow each other and the caller down, up to their limits
- with `SandboxLimits.children`, memory and CPU time are limited per process: `processes` times as much in total
- the installation of Python and the system's library folders, with all that other software keeps in them (programs,
  packages of its own), can be read, as can the paths of both
- memory that the kernel itself needs for the program (buffers of pipes and socket pairs, file locks) comes on top of
  `SandboxLimits.memory`: some ten MiB
- reading the arguments or the input of a test and answering that one test from a table, as any program can

Mechanisms: Linux 5.14 or newer on x86-64 or ARM64; user, mount, process, network, IPC and host name namespaces; a
separate file tree (pivot_root); no_new_privs, no capabilities, a seccomp filter (`rlkd.sandbox.seccomp`); resource
limits. Nothing to install, no root. `python -m rlkd.sandbox` lists what is missing and how to get it; see also
docs/sandbox.md.
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
