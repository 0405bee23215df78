"""The reward `code`: runs the program of a completion on its tests in the sandbox (`rlkd.sandbox`)."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from rewards.contract import Failed, RewardError, RewardOptions, Scored
from rewards.outputs import same_output, same_value
from rlkd.data.rows import completion_text
from rlkd.programs import last_program
from rlkd.sandbox import (
    ProgramResult,
    SandboxError,
    SandboxLimits,
    SandboxUnavailable,
    call_function,
    check,
    run_program,
)

logger = logging.getLogger(__name__)

MIB = 1 << 20
TEST_FORMS = (
    '{"input": text, "output": text} or {"function": name, "arguments": list, "expected": value}, or one '
    '{"inputs": texts, "outputs": texts} with or without "fn_name"; '
    'in verification_info {"type": "stdin_stdout" or "function_call", "input", "output", "fn_name"}'
)


@dataclass(frozen=True)
class Case:
    """One test: standard input and output, or (with `function`) arguments and the expected value."""

    given: Any
    expected: Any
    function: str | None = None


class Code:
    """The share of its tests that the program of a completion passes, in [0, 1]; run in a sandbox.

    The program is the last block of Python code (```` ```python ````, see `rlkd.programs`) behind the thought; 0
    without one. A row needs one of these columns:

    - `tests`: a list of `{"input": text, "output": text}` (standard input and output; numbers are read as texts, lists
      as lines) or `{"function": name, "arguments": list, "expected": value}`. If `arguments` is a JSON text, so is
      `expected`. Or `{"inputs": texts, "outputs": texts}` (APPS), with `fn_name` for calls. Asserts are not run: see
      `docs/built_in_rewards.md`.
    - `verification_info` (open-r1): `{"language": "python", "test_cases": [{"type": "stdin_stdout", "input": text,
      "output": text}, {"type": "function_call", "fn_name": name, "input": ..., "output": ...}]}`. For a call, `input`
      is the list of arguments or a text with one JSON value per line, `output` the value or its JSON text.

    Either column may be one JSON text. Outputs are compared line by line and word by word, numbers by value, returned
    values as JSON (tuples are lists, keys are strings; floats to a relative 1e-9): `rewards.outputs`, outside the
    sandbox.

    Not applicable where a row has no tests or another language. Failed where the sandbox breaks down or the tests are
    unreadable. A program that crashes, hangs or exceeds a limit fails that test only.

    Args:
        all_or_nothing: 1 for a program that passes every test, else 0; stops at the first that fails.
        max_timeouts: number of tests that may time out before the rest count as not passed, so that an endless loop
            costs this many times the limit and not one limit per test.
        wall: seconds per test.
        cpu: seconds of processor time per test.
        memory: MiB per test.
        output: KiB that a test may print.
        file_size: MiB that a test may write to its temporary folder.
        processes: concurrent processes and threads per test.
        children: whether programs may start processes (then `memory` and `cpu` apply to each).
        workers: concurrent programs. Default: the number of processors.
        prefilled: whether the chat template opens `<think>`, so that a completion without `</think>` is all thought.
    """

    __name__ = "code"
    needs_any = ("verification_info", "tests")
    # Each program is a process with its own limits. Scores are not cached: a program that times out on a busy machine
    # may pass on another day.
    reward_options = RewardOptions(per_sample=True, isolate=False, timeout=None, cache=False)

    def __init__(
        self,
        *,
        all_or_nothing: bool = False,
        max_timeouts: int = 3,
        wall: float = 10.0,
        cpu: float = 5.0,
        memory: int = 512,
        output: int = 1024,
        file_size: int = 16,
        processes: int = 32,
        children: bool = False,
        workers: int | None = None,
        prefilled: bool = False,
    ):
        workers = (os.cpu_count() or 1) if workers is None else workers
        for name, value, least in (
            ("max_timeouts", max_timeouts, 1),
            ("memory", memory, 64),
            ("output", output, 1),
            ("file_size", file_size, 1),
            ("workers", workers, 1),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} {value!r}: expected an integer of at least {least}")
        for name, flag in (("all_or_nothing", all_or_nothing), ("children", children), ("prefilled", prefilled)):
            if not isinstance(flag, bool):
                raise ValueError(f"{name} {flag!r}: expected true or false")
        self.limits = SandboxLimits(
            wall=wall,
            cpu=cpu,
            memory=memory * MIB,
            processes=processes,
            children=children,
            output=output * 1024,
            file_size=file_size * MIB,
        )
        self.all_or_nothing = all_or_nothing
        self.max_timeouts = max_timeouts
        self.workers = workers
        self.prefilled = prefilled
        self._languages_warned_of: set[str] = set()

    def check_ready(self) -> None:
        """Raise `RewardError` if the sandbox does not work on this machine."""
        try:
            check()
        except (SandboxUnavailable, SandboxError) as error:
            raise RewardError(f"reward {self.__name__!r}: {error}") from error

    def __call__(
        self,
        completions: Sequence[Any],
        verification_info: Sequence[Any] | None = None,
        tests: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[Scored | Failed | None]:
        """Score a batch, `workers` programs at a time."""
        none = [None] * len(completions)
        rows = zip(completions, verification_info or none, tests or none, strict=True)
        stop = threading.Event()
        with ThreadPoolExecutor(max(1, min(self.workers, len(completions))), "code") as threads:
            futures = [threads.submit(self._score, completion_text(c), info, t, stop) for c, info, t in rows]
            try:
                return [future.result() for future in futures]
            except BaseException:  # Ctrl-C above all: kill the running programs and start no others
                stop.set()
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def _score(self, text: str, info: Any, plain: Any, stop: threading.Event) -> Scored | Failed | None:
        try:
            tests = self._tests(info, plain)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return Failed(f"tests of the row: {type(error).__name__}: {error}; expected {TEST_FORMS}")
        if not tests:
            return None
        program = last_program(text, self.prefilled)
        if program is None:
            return Scored(0.0, {"passed": 0, "tests": len(tests), "results": [], "reason": "no block of Python code"})
        results: list[dict[str, Any]] = []
        timeouts = 0
        for test in tests:
            if timeouts >= self.max_timeouts or (self.all_or_nothing and results and not results[-1]["passed"]):
                break
            try:
                result = self._run(program, test, stop)
            except (SandboxError, SandboxUnavailable) as error:
                return Failed(f"sandbox: {error}")
            except ValueError as error:  # arguments that are not JSON, never the program's fault
                return Failed(f"tests of the row: {error}; expected {TEST_FORMS}")
            timeouts += result.status == "timeout"
            results.append(grade(result, test))
        passed = sum(result["passed"] for result in results)
        value = float(passed == len(tests)) if self.all_or_nothing else passed / len(tests)
        return Scored(value, {"passed": passed, "tests": len(tests), "results": results})

    def _run(self, program: str, test: Case, stop: threading.Event) -> ProgramResult:
        if test.function is None:
            return run_program(program, stdin=test.given, limits=self.limits, stop=stop)
        return call_function(program, test.function, test.given, limits=self.limits, stop=stop)

    def _tests(self, info: Any, plain: Any) -> list[Case]:
        """The tests of a row from either column; raises ValueError, TypeError or KeyError for a malformed test."""
        plain = _loaded(plain)
        if isinstance(plain, Mapping):
            return parallel_tests(plain)
        if plain:
            return [plain_test(test) for test in plain]
        info = _loaded(info)
        if not info:
            return []
        language = info.get("language") or "python"
        if str(language).lower() not in ("python", "python3"):
            if language not in self._languages_warned_of:
                self._languages_warned_of.add(language)
                logger.warning("reward %r judges Python only; rows in %r are not applicable", self.__name__, language)
            return []
        return [open_r1_test(test) for test in _loaded(info.get("test_cases")) or []]


def plain_test(test: Mapping[str, Any]) -> Case:
    """A test of the column `tests`. Keys that are None, as tables fill them in, count as absent."""
    if isinstance(test, str):
        raise ValueError(f"{test[:80]!r} is a text; a program could pass an assert by ending before it")
    if test.get("fn_name") is not None:
        return open_r1_test({**test, "type": "function_call"})
    if test.get("function") is not None:
        arguments, expected = test["arguments"], test["expected"]
        if isinstance(arguments, str):
            arguments, expected = json.loads(arguments), json.loads(expected)
        if not isinstance(arguments, list):
            raise ValueError(f"'arguments' of {test['function']!r} is {arguments!r}, not a list")
        return Case(arguments, expected, _text(test["function"], "function"))
    if (kind := test.get("testtype") or test.get("type")) in ("functional", "function_call"):
        raise ValueError(f"a test of the type {kind!r} names no function")
    return _printing(test)


def parallel_tests(tests: Mapping[str, Any]) -> list[Case]:
    """The tests of a column `tests` that is one object: two lists, as in APPS, TACO and CodeContests, or one test.

    In calls, an input is the list of arguments or a text with one JSON value per line; the output of such a text is
    JSON, too. Some rows of APPS wrap each returned value in a list and others do not, which no one can tell apart
    where every output is a list of one.
    """
    name = next((name for name in ("inputs", "input") if isinstance(tests.get(name), list | tuple)), None)
    if name is None:
        return [plain_test(tests)]
    outputs = tests["outputs" if name == "inputs" else "output"]
    pairs = list(zip(tests[name], outputs, strict=True))
    function = tests.get("fn_name")
    if function is None:
        return [_printing({"input": given, "output": expected}) for given, expected in pairs]
    if all(isinstance(expected, list) and len(expected) == 1 for expected in outputs):
        raise ValueError(
            f"each output of {function!r} is a list of one: the value or a list around it? Name the function in each "
            f"test"
        )
    return [
        _call(function, given, _json(expected) if isinstance(given, str) else expected) for given, expected in pairs
    ]


def open_r1_test(test: Mapping[str, Any]) -> Case:
    """A test of open-r1's column `verification_info`."""
    kind = test.get("type") or "stdin_stdout"
    if kind == "stdin_stdout":
        return _printing(test)
    if kind != "function_call":
        raise ValueError(f"type {kind!r}")
    return _call(test["fn_name"], test["input"], _json(test["output"]))


def _call(function: Any, given: Any, expected: Any) -> Case:
    """A call with a list of arguments, or with a text of one JSON value per line."""
    if isinstance(given, str):
        given = [json.loads(line) for line in given.split("\n") if line.strip()]
    if not isinstance(given, list | tuple):
        raise ValueError(f"the input of {function!r} is {given!r}, not a list of arguments")
    return Case(list(given), expected, _text(function, "fn_name"))


def grade(result: ProgramResult, test: Case) -> dict[str, Any]:
    """Whether a test is passed, the outcome as a word, and a short reason if it is not."""
    if result.status != "ok":
        last = result.stderr.strip().splitlines()[-1:] or [f"exit code {result.returncode}"]
        reason = last[0] if result.status in ("error", "memory") else f"after {result.seconds:.1f} s"
        # The program's own output: no control sequences may reach a terminal or log.
        reason = "".join(c if c.isprintable() else "\ufffd" for c in reason[:200])
        return {"passed": False, "outcome": result.status, "reason": reason}
    if test.function is None:
        found, right = result.stdout, same_output(result.stdout, test.expected)
    else:
        found = result.value
        try:
            right = same_value(found, test.expected)
        except (OverflowError, RecursionError):
            # A number or a nesting beyond bounds must not raise: no program may choose its own outcome.
            return {"passed": False, "outcome": "wrong", "reason": "returned a value that is too large to compare"}
    if right:
        return {"passed": True, "outcome": "passed"}
    try:
        shown = f"{'returned' if test.function else 'printed'} {found!r}"[:200]
    except RecursionError:
        shown = "returned a value nested too deeply to show"
    return {"passed": False, "outcome": "wrong", "reason": shown}


def _printing(test: Mapping[str, Any]) -> Case:
    given = "" if test.get("input") is None else test["input"]
    found = {name: test[name] for name in ("output", "expected_output", "expected") if test.get(name) is not None}
    expected, *others = found.values() or [test["output"]]
    if any(other != expected for other in others):
        raise ValueError(f"{' and '.join(map(repr, found))} of one test differ")
    return Case(_lines(given, "input"), _lines(expected, "output"))


def _lines(value: Any, name: str) -> str:
    """A text, a number, or a list of lines."""
    if not isinstance(value, list | tuple):
        return _text(value, name)
    # Texts with line ends are no lines but the inputs of several tests.
    if not all(isinstance(line, str) and "\n" not in line for line in value):
        raise ValueError(f"{name!r} is {value!r}, not a text or a list of lines without their ends")
    return "\n".join(value)


def _json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _loaded(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return json.loads(value) if value.strip() else None


def _text(value: Any, name: str) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"{name!r} is {value!r}, not a text")
    return value
