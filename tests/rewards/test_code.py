import json
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rewards import Failed, RewardError, Scored, build_reward
from rewards.code import Code
from rlkd.sandbox import SandboxError, SandboxUnavailable
from tests.helpers.sandbox import skip_without_sandbox

DOUBLE = "```python\nprint(2 * int(input()))\n```"
DOUBLES = [{"input": "1\n", "output": "2\n"}, {"input": "-3", "output": "-6"}]
SQUARE = "def square(x): return x * x"
SQUARES = [
    {"function": "square", "arguments": [3], "expected": 9},
    {"function": "square", "arguments": [-1], "expected": 1},
]


# These run everywhere; the others are skipped without a sandbox.
NEED_NO_SANDBOX = {
    "test_without_a_program_the_score_is_zero",
    "test_without_tests_the_reward_does_not_apply",
    "test_another_language_does_not_apply_and_is_logged_once",
    "test_unreadable_tests_are_a_failure_and_not_a_zero",
    "test_unreadable_tests_of_open_r1_are_a_failure",
    "test_a_parameter_out_of_range_is_named_with_its_value",
    "test_a_sandbox_that_breaks_down_is_a_failure_and_not_a_zero",
}


skipped_without_sandbox = skip_without_sandbox(NEED_NO_SANDBOX)


def fenced(program):
    return f"```python\n{program}\n```"


def score(completion, tests=None, info=None, **parameters):
    [found] = Code(**{"wall": 60, **parameters})([completion], verification_info=[info], tests=[tests])
    return found


def value(*arguments, **parameters):
    found = score(*arguments, **parameters)
    assert isinstance(found, Scored), found
    return found.value


def outcomes(found):
    return [result["outcome"] for result in found.detail["results"]]


def test_the_score_is_the_share_of_passed_tests():
    assert value(DOUBLE, DOUBLES) == 1.0
    found = score(fenced("print(2)"), DOUBLES)
    assert found.value == 0.5
    assert found.detail == {
        "passed": 1,
        "tests": 2,
        "results": [
            {"passed": True, "outcome": "passed"},
            {"passed": False, "outcome": "wrong", "reason": "printed '2\\n'"},
        ],
    }


def test_all_or_nothing_stops_at_the_first_test_that_fails():
    assert value(DOUBLE, DOUBLES, all_or_nothing=True) == 1.0
    found = score(fenced("print(1)"), DOUBLES, all_or_nothing=True)
    assert (found.value, len(found.detail["results"])) == (0.0, 1)


def test_without_a_program_the_score_is_zero():
    found = score("I cannot.", DOUBLES)
    assert (found.value, found.detail["reason"]) == (0.0, "no block of Python code")


def test_completions_may_be_messages():
    assert value([{"role": "assistant", "content": DOUBLE}], DOUBLES) == 1.0


@pytest.mark.parametrize(
    ("printed", "expected", "right"),
    [("1  \n2\n\n\n", "1\n2", True), ("", "\n", True), (" 1.0", "1", True), ("1\n\n2", "1\n2", False)],
)
def test_output_is_compared_by_lines_words_and_numbers(printed, expected, right):
    program = fenced(f"import sys\nsys.stdout.write({printed!r})")
    assert value(program, [{"input": "", "output": expected}]) == right


@pytest.mark.parametrize(
    "end",
    ["exit()", "quit()", "exit(0)", "if True: quit()\nprint(7)", "import sys\nsys.exit()", "raise SystemExit"],
)
def test_a_program_may_end_itself(end):
    assert value(fenced(f"print(6)\n{end}"), [{"input": "", "output": "6"}]) == 1.0


@pytest.mark.parametrize("end", ["exit(1)", "quit('no')", "exit"])
def test_the_exit_code_and_the_output_still_count(end):
    assert value(fenced(f"print(7)\n{end}"), [{"input": "", "output": "6"}]) == 0.0


def test_a_program_runs_as_a_script_of_its_own():
    program = """
import sys, __main__
def found():
    return __name__, __file__, sys.argv, __doc__, __main__.found is found
if __name__ == "__main__":
    print(found())
"""
    printed = "('__main__', '/program.py', ['/program.py'], None, True)"
    assert value(fenced(program), [{"input": "", "output": printed}]) == 1.0


@pytest.mark.parametrize(
    "program",
    [
        "class Solution:\n    def total(self, nums: List[int]) -> int: return sum(nums)",
        "def total(nums: List[int]) -> Optional[int]: return sum(nums)",
        "def total(nums: Dict[int, Tuple[int, ...]]) -> Any: return sum(nums)",
        "def total(nums): return sum(nums)\nif __name__ == '__main__': exit()",
        "def total(nums):\n    found = defaultdict(int)\n    for n in nums: found[0] += n\n    return found[0]",
        "def total(nums): return deque(accumulate(nums)).pop() if -inf < math.inf else 0",
        "@lru_cache(None)\ndef f(n): return n + 7\nclass Solution:\n    def total(self, nums): return f(nums[0])",
        "def total(nums):\n    heapq.heapify(nums)\n    return heappop(nums) + heapq.heappop(nums)",
        "def total(nums): return reduce(operator.add, nums) + bisect_left(nums, 0) + bisect.bisect(nums, 1)",
        "def total(nums): return sum(n * k for n, k in Counter(copy.deepcopy(nums)).items()) + Counter()['a']",
        "def total(nums): return pow(sum(nums), 1, 100) + gcd(2, 4) - len(re.findall('[ab]', string.digits + 'ab'))",
        "def total(nums): return sum(nums) if isinstance(Counter(nums), Counter) and sys.maxsize else json.loads('1')",
        "def total(nums): return (datetime.date(2026, 1, 10) - datetime.date(2026, 1, 1)).days",
    ],
)
def test_answers_in_leetcode_s_form_need_no_imports(program):
    assert value(fenced(program), [{"function": "total", "arguments": [[2, 7]], "expected": 9}]) == 1.0


@pytest.mark.parametrize("name", ["cast", "sub"])
def test_a_name_that_needs_no_import_is_no_function_of_the_program(name):
    for program in ("x = 1", f"class Solution:\n    def {name}(self, a, b): return 9"):
        found = value(fenced(program), [{"function": name, "arguments": [18, 9], "expected": 9}])
        assert found == float("Solution" in program)


def test_a_program_of_standard_input_imports_what_it_uses():
    assert value(fenced("print(math.gcd(6, 12))"), [{"input": "", "output": "6"}]) == 0.0


def test_functions_are_called_and_their_values_compared():
    assert value(fenced(SQUARE), SQUARES) == 1.0
    assert value(fenced("class Solution:\n    def square(self, x): return 9"), SQUARES) == 0.5


def test_open_r1_s_format_is_read_as_an_object_and_as_json():
    cases = [{"type": "stdin_stdout", "input": "1", "output": "2", "fn_name": None}]
    info = {"language": "python", "test_cases": cases}
    assert value(DOUBLE, None, info) == value(DOUBLE, None, json.dumps(info)) == 1.0
    assert value(DOUBLE, json.dumps(DOUBLES)) == 1.0


@pytest.mark.parametrize(
    ("given", "expected"),
    [("[1, 2]\n3", "6"), ([[1, 2], 3], 6), ("[1, 2]\n3\n", 6), ("[3]\n3", "6.0")],
)
def test_calls_in_open_r1_s_format_take_a_list_or_one_json_value_per_line(given, expected):
    case = {"type": "function_call", "fn_name": "add", "input": given, "output": expected}
    program = fenced("def add(xs, y): return sum(xs) + y")
    assert value(program, None, {"language": "python", "test_cases": [case]}) == 1.0


def test_columns_filled_with_none_and_arguments_as_json_text_are_read():
    empty = dict.fromkeys(("input", "output", "function", "arguments", "expected"))
    tests = [
        {**empty, "function": "square", "arguments": "[3]", "expected": "9"},
        {**empty, "input": "", "output": ""},
    ]
    assert value(fenced(SQUARE), tests) == 1.0


@pytest.mark.parametrize(
    "tests",
    [
        [{"input": 3, "output": 6}],
        [{"input": 3.0, "output": "6.0"}],
        {"inputs": ["3\n"], "outputs": ["6\n"]},
        {"inputs": [3, 4], "outputs": ["6", 8]},
        '{"inputs": ["3"], "outputs": ["6"]}',
        {"input": ["3\n", "4\n"], "output": ["6\n", "8\n"]},
        {"input": "3", "output": "6"},
        [{"input": ["3", "and more"], "output": ["6"]}],
        {"inputs": [["3", ""]], "outputs": [["6"]], "fn_name": None},
        [{"input": "3", "expected_output": "6"}],
        [{"input": "3", "expected": 6, "output": None}],
        [{"input": "3", "output": "6", "expected_output": "6", "testtype": "stdin"}],
    ],
)
def test_tests_may_be_numbers_and_two_lists(tests):
    assert value(fenced("n = float(input())\nprint(2 * n)"), tests) == 1.0


@pytest.mark.parametrize(
    "tests",
    [
        {"inputs": [[3]], "outputs": [9], "fn_name": "square"},
        {"inputs": [[3], [-1]], "outputs": [9, 1], "fn_name": "square"},
        {"inputs": ["3", "-1\n"], "outputs": ["9", 1], "fn_name": "square"},
        '{"inputs": [[3]], "outputs": [9.0], "fn_name": "square"}',
        {"function": "square", "arguments": [3], "expected": 9},
        [{"fn_name": "square", "input": [3], "output": 9, "type": "function_call"}],
        [{"fn_name": "square", "input": "3", "output": "9", "testtype": "functional"}],
    ],
)
def test_tests_of_one_function_may_name_it_once(tests):
    assert value(fenced(SQUARE), tests) == 1.0
    assert value(fenced("def square(x): return [x * x]"), tests) == 0.0
    assert value(fenced("print(9)"), tests) == 0.0


def test_a_text_is_a_value_among_values_and_json_behind_a_text_of_arguments():
    program = fenced("def same(x): return x")
    assert value(program, {"inputs": [["9"]], "outputs": ["9"], "fn_name": "same"}) == 1.0
    assert value(program, {"inputs": ['"9"'], "outputs": ['"9"'], "fn_name": "same"}) == 1.0
    assert value(program, {"inputs": [[["a"]], [[]]], "outputs": [["a"], []], "fn_name": "same"}) == 1.0
    assert value(program, {"inputs": [[["a"]], [[]]], "outputs": ["a", []], "fn_name": "same"}) == 0.5


def test_a_program_inside_a_thought_is_not_handed_in():
    for text in (f"<think>{DOUBLE}", f"<think>{DOUBLE}</think>I gave up.", f"{DOUBLE}</think>"):
        assert value(text, DOUBLES) == 0.0
    assert value(f"<think>{fenced('print(1)')}</think>{DOUBLE}", DOUBLES) == 1.0
    assert value(f"I think: {DOUBLE}", DOUBLES, prefilled=True) == 0.0
    assert value(f"I think.</think>{DOUBLE}", DOUBLES, prefilled=True) == 1.0


@pytest.mark.parametrize("tests", [None, [], "", "[]"])
def test_without_tests_the_reward_does_not_apply(tests):
    assert score(DOUBLE, tests) is None
    assert Code()([DOUBLE]) == [None]


def test_another_language_does_not_apply_and_is_logged_once(caplog):
    info = {"language": "cpp", "test_cases": [{"input": "1", "output": "2"}]}
    assert Code()([DOUBLE, DOUBLE], verification_info=[info, info]) == [None, None]
    assert caplog.text.count("'cpp'") == 1


def test_the_reason_is_free_of_control_sequences():
    [result] = score(fenced("import sys\nsys.exit('a\\x1b[31mb')"), DOUBLES[:1]).detail["results"]
    assert (result["outcome"], result["reason"]) == ("error", "a\ufffd[31mb")


@pytest.mark.parametrize(
    "tests",
    [
        [{"input": "1"}],
        [{"input": True, "output": "1"}],
        [{"input": [1], "output": "1"}],
        [{"input": ["1\n", "2\n"], "output": ["1\n", "2\n"]}],
        [{"input": "1", "output": "1", "expected_output": "2"}],
        [{"input": "1", "output": "1", "testtype": "functional"}],
        {"input": ["1"], "output": []},
        {"inputs": [[1]], "outputs": [1]},
        {"inputs": [1], "outputs": [1], "fn_name": "f"},
        {"inputs": [{"x": 1}], "outputs": [1], "fn_name": "f"},
        {"inputs": ["a"], "outputs": ["1"], "fn_name": "f"},
        {"inputs": [[1], [2]], "outputs": [[1], [2]], "fn_name": "f"},
        ["assert f(1) == 1"],
        {"inputs": ["1"], "outputs": []},
        {"inputs": [[1]], "outputs": [[1]], "fn_name": "f"},
        [{"function": "f", "arguments": 3, "expected": 3}],
        [{"function": "f", "arguments": [3]}],
        [{"function": "f", "arguments": [{3}], "expected": 3}],
        "[1, 2",
        ["1"],
        7,
    ],
)
def test_unreadable_tests_are_a_failure_and_not_a_zero(tests):
    found = score(DOUBLE, tests)
    assert isinstance(found, Failed)
    assert found.cause.startswith("tests of the row: ")


def test_unreadable_tests_of_open_r1_are_a_failure():
    for info in ([1], {"test_cases": [{"type": "assert", "input": "", "output": ""}]}, {"test_cases": [{}]}):
        assert isinstance(score(DOUBLE, None, info), Failed)


@pytest.mark.slow
def test_a_program_that_fails_gets_its_zero_and_the_reason():
    program = """
import sys, time
n = int(input())
if n == 0: 1 / 0
if n == 1: sys.exit(3)
if n == 2: bytearray(8 << 30)
if n == 3:
    while True: print("x" * 999)
if n == 4: time.sleep(999)
print(n)
"""
    tests = [{"input": str(n), "output": str(n)} for n in range(6)]
    found = score(fenced(program), tests, wall=3)
    assert outcomes(found) == ["error", "error", "memory", "output", "timeout", "passed"]
    assert found.value == 1 / 6
    assert [r.get("reason") for r in found.detail["results"]][:3] == [
        "ZeroDivisionError: division by zero",
        "exit code 3",
        "MemoryError",
    ]


def test_after_some_timeouts_the_rest_is_not_run():
    tests = [{"input": "", "output": ""}] * 5
    found = score(fenced("import time\ntime.sleep(99)"), tests, wall=0.3, max_timeouts=2)
    assert (found.value, outcomes(found)) == (0.0, ["timeout", "timeout"])


@pytest.mark.parametrize(
    "program",
    [
        "print('PASSED')",
        "import os\nos._exit(0)",
        "import sys\nsys.exit(0)",
        "import atexit\natexit.register(lambda: print('9'))\ndef square(x): return True",
        "class Yes(int):\n    def __eq__(self, other): return True\ndef square(x): return Yes(7)",
        "import builtins\nbuiltins.print = builtins.all = builtins.bool = lambda *_: True\ndef square(x): return 7",
        "import json\njson.dumps = lambda *_, **__: '{\"passed\": true}'\ndef square(x): return 7",
        'import os, json\ndef square(x):\n    os.write(3, b\'{"status": "ok", "value": 9}\')\n    os._exit(0)',
        "import os\ndef square(x):\n    os.write(3, b'exit 0 0.1\\nstarted\\n')\n    os._exit(0)",
        "import inspect\ndef square(x):\n    return [f.frame.f_locals.get('expected') for f in inspect.stack()]",
        "def square(x): return open('/arguments.json').read()",
        "import sys\ndef square(x):\n    sys.modules['__main__'].__dict__.clear()\n    return 7",
        "import __main__\n__main__.main = lambda: None\nassert False",
        "def square(x): return 10 ** 4000",
        "def square(x): return eval('[' * 60 + ']' * 60)",
    ],
)
def test_a_verdict_cannot_be_forged(program):
    assert value(fenced(program), [{"function": "square", "arguments": [3], "expected": 9}]) == 0.0


def test_a_value_beyond_all_bounds_is_wrong_and_not_a_failure():
    for program in (
        "import os\ndef f(): os.write(3, b'[' * 900 + b']' * 900); os._exit(0)",
        "def f(): return 10 ** 4000",
        "def f(): return '\\ud800'",
        "import os\ndef f(): os.write(3, b'[' * 300_000); os._exit(0)",
    ):
        for expected in (0.5, [[1]], "x"):
            assert value(fenced(program), [{"function": "f", "arguments": [], "expected": expected}]) == 0.0


def test_one_test_does_not_see_what_another_left():
    program = """
import os
print(os.path.exists("/tmp/seen"))
open("/tmp/seen", "w").close()
"""
    assert value(fenced(program), [{"input": "", "output": "False"}] * 3) == 1.0


def test_a_sandbox_that_breaks_down_is_a_failure_and_not_a_zero(monkeypatch):
    for error in (SandboxError("out of processes"), SandboxUnavailable("gone")):

        def broken(*_, error=error, **__):
            raise error

        monkeypatch.setattr("rewards.code.run_program", broken)
        assert score(DOUBLE, DOUBLES) == Failed(f"sandbox: {error}")


def test_a_missing_sandbox_is_an_error_before_a_model_loads(monkeypatch):
    reward = build_reward("rewards.code.Code")
    reward.check_ready()

    def missing():
        raise SandboxUnavailable("no user namespaces")

    monkeypatch.setattr("rewards.code.check", missing)
    with pytest.raises(RewardError, match="no user namespaces"):
        reward.check_ready()


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"wall": -1}, "wall -1"),
        ({"cpu": "5"}, "cpu '5'"),
        ({"memory": 1}, "memory 1"),
        ({"output": 0}, "output 0"),
        ({"processes": 0}, "processes 0"),
        ({"workers": 0}, "workers 0"),
        ({"max_timeouts": 0}, "max_timeouts 0"),
        ({"file_size": 0.5}, "file_size 0.5"),
        ({"all_or_nothing": 1}, "all_or_nothing 1"),
        ({"children": "no"}, "children 'no'"),
        ({"prefilled": 1}, "prefilled 1"),
    ],
)
def test_a_parameter_out_of_range_is_named_with_its_value(parameters, text):
    with pytest.raises(ValueError, match=text):
        Code(**parameters)


@pytest.mark.slow
def test_scores_are_in_the_order_of_the_batch_with_any_number_of_workers():
    programs = [fenced(f"import time\ntime.sleep({(7 - i) / 20})\nprint({i % 3})") for i in range(8)]
    tests = [[{"input": "", "output": "0"}]] * 8
    expected = [float(i % 3 == 0) for i in range(8)]
    for workers in (1, 8):
        found = Code(wall=60, workers=workers)(programs, tests=tests)
        assert [f.value for f in found] == expected


def test_a_built_reward_pickles_and_scores_in_any_thread():
    reward = pickle.loads(pickle.dumps(build_reward("rewards.code.Code", {"wall": 60})))
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(reward, completions=[DOUBLE], tests=[DOUBLES]).result(60) == [1.0]


def test_ctrl_c_stops_the_programs_at_once(monkeypatch):
    begun = threading.Event()

    def interrupted(self, timeout=None):
        begun.wait(60)
        raise KeyboardInterrupt

    def slow(*arguments, stop, **parameters):
        begun.set()
        assert stop.wait(60)
        raise SandboxError("stopped")

    monkeypatch.setattr("rewards.code.run_program", slow)
    monkeypatch.setattr("concurrent.futures.Future.result", interrupted)
    before = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        Code(workers=2)([DOUBLE] * 5, tests=[DOUBLES] * 5)
    assert time.monotonic() - before < 60  # a guard: nobody told them to stop
