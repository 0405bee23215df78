import asyncio
import logging
import math
import subprocess
import sys
import textwrap

import pytest

from rlkd.errors import UsageError
from rlkd.validity import BUILT_IN, StepQuestion, Tally, ValidityError, load_scorer, score_pairs

USER = textwrap.dedent("""
    import asyncio
    from rlkd.validity import StepQuestion

    def brevity(questions, limit=10):
        return [max(0.0, 1 - len(question.step) / limit) for question in questions]

    def nats(questions):
        return [-float(len(question.step)) for question in questions]
    nats.scale = "log"

    async def awaited(questions, value=0.5):
        await asyncio.sleep(0)
        return [value] * len(questions)

    class Constant:
        scale = "log"
        def __init__(self, value):
            self.value = value
        def __call__(self, questions):
            return [self.value] * len(questions)

    def maker(value=-1.0):
        return Constant(value)

    ready = Constant(-3.0)
    number = 3
    def needy(questions, answer_key):
        return [0.0] * len(questions)
""")


@pytest.fixture
def user(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(USER)
    return file


def question(step="a step", **more):
    return StepQuestion(prompt="2 + 2?", prefix="", step=step, **more)


def scorer_of(function, scale="probability"):
    function.scale = scale
    return function


def test_the_built_in_scorers_are_listed_without_loading_a_model_library():
    code = (
        "import sys, rlkd.validity; from rlkd.registry import registry; print(*registry('validity').names());"
        "print([m for m in ('torch', 'transformers', 'trl', 'vllm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["arithmetic judge likelihood prm rollout", "[]"]


def test_every_built_in_scorer_goes_by_its_name():
    parameters = {
        "judge": {"engine": "transformers:x"},
        "rollout": {"engine": "transformers:x"},
        "prm": {"model": "x"},
    }
    for name in BUILT_IN:
        assert load_scorer(name, parameters.get(name)).__name__ == name


def test_a_function_of_a_file_is_a_scorer_with_its_parameters(user):
    scorer = load_scorer(f"short={user}:brevity", {"limit": 5})
    assert (scorer.__name__, scorer.scale) == ("short", "probability")
    assert score_pairs(scorer, [question("ab")], [question("abcde")]) == ([0.6], [0.0])


def test_a_scorer_on_the_log_scale_says_so_itself(user):
    scorer = load_scorer(f"{user}:nats")
    assert scorer.scale == "log"
    assert score_pairs(scorer, [question("ab")], [question("abc")]) == ([-2.0], [-3.0])


def test_classes_makers_and_objects_are_scorers_too(user):
    for spec, parameters, value in (("Constant", {"value": -2.0}, -2.0), ("maker", {}, -1.0), ("ready", {}, -3.0)):
        scorer = load_scorer(f"{user}:{spec}", parameters)
        assert (scorer.__name__, scorer.scale) == (spec, "log")
        assert score_pairs(scorer, [question()], [question()]) == ([value], [value])


def test_an_asynchronous_function_is_awaited_also_where_a_loop_runs_already(user):
    scorer = load_scorer(f"{user}:awaited", {"value": 0.25})
    assert score_pairs(scorer, [question()], [question("other")]) == ([0.25], [0.25])

    async def inside():
        return score_pairs(scorer, [question()], [question("other")])

    assert asyncio.run(inside()) == ([0.25], [0.25])


@pytest.mark.parametrize(
    ("spec", "parameters", "message"),
    [
        ("brevity", {"limits": 5}, r"validity scorer 'brevity' has no parameter 'limits'.*Did you mean 'limit'"),
        ("Constant", {}, r"needs the parameter 'value'"),
        ("needy", {}, r"needs the parameter 'answer_key'"),
        ("ready", {"value": 1}, r"takes no parameters; found value"),
        ("number", {}, r"is not a function or class of scorers, but 3"),
        ("brevty", {}, r"has no 'brevty'.*Did you mean 'brevity'"),
    ],
)
def test_a_spec_that_cannot_be_built_names_what_is_wrong(user, spec, parameters, message):
    with pytest.raises(ValidityError, match=message):
        load_scorer(f"{user}:{spec}", parameters)


def test_an_unknown_name_offers_what_there_is():
    with pytest.raises(ValidityError, match=r"unknown validity 'likelyhood'.*Did you mean 'likelihood'"):
        load_scorer("likelyhood")


def test_a_scale_that_does_not_exist_is_refused():
    with pytest.raises(ValidityError, match="reduction='median'"):
        load_scorer("likelihood", {"reduction": "median"})


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_none_and_what_is_not_finite_are_failures(value):
    asked = scorer_of(lambda questions: [value] * len(questions))
    assert score_pairs(asked, [question()], [question("other")]) == ([None], [None])


def test_an_exception_is_a_failure_of_every_question_and_is_logged_with_its_cause(caplog):
    def broken(questions):
        raise RuntimeError("the disk is full")

    with caplog.at_level(logging.WARNING):
        assert score_pairs(scorer_of(broken), [question()], [question("other")]) == ([None], [None])
    assert "'broken': 2 of 2 steps have no validity" in caplog.text
    assert "the disk is full" in caplog.text


def test_a_scorer_that_takes_too_long_has_failed_and_the_log_says_so(caplog):
    async def slow(questions):
        await asyncio.sleep(60)

    with caplog.at_level(logging.WARNING):
        assert score_pairs(scorer_of(slow), [question()], [question("b")], deadline=0.01) == ([None], [None])
    assert "no result within its time of 0.01 s" in caplog.text


def test_a_mistake_that_the_user_must_fix_ends_the_run():
    def misconfigured(questions):
        raise UsageError("set the key")

    with pytest.raises(UsageError, match="set the key"):
        score_pairs(scorer_of(misconfigured), [question()], [question()])


@pytest.mark.parametrize(
    ("answered", "message"),
    [
        ([0.5], "returned 1 values for 2 questions"),
        ([0.5, "good"], "returned 'good' for question 1"),
        ([0.5, [0.5]], r"returned \[0.5\] for question 1"),
        (0.5, "returned a float: expected a list of 2 numbers"),
        ([0.5, 1.5], "returned 1.5 for question 1; on the scale 'probability'"),
        ([-0.5, 0.5], "returned -0.5 for question 0.*scale = 'log'"),
    ],
)
def test_an_answer_outside_of_the_contract_names_scorer_and_question(answered, message):
    def careless(questions):
        return answered

    with pytest.raises(ValidityError, match=f"'careless' {message}"):
        score_pairs(scorer_of(careless), [question("a")], [question("b")])


def test_tensors_arrays_and_numbers_of_other_libraries_are_answers():
    torch = pytest.importorskip("torch")
    numpy = pytest.importorskip("numpy")
    for answer in (torch.tensor([0.25, 0.5]), numpy.array([0.25, 0.5]), [torch.tensor(0.25), numpy.float32(0.5)]):
        found = score_pairs(scorer_of(lambda questions, answer=answer: answer), [question("a")], [question("b")])
        assert found == ([0.25], [0.5])


def test_both_proposals_come_in_one_call_and_equal_questions_once():
    calls = []

    def asked(questions):
        calls.append([q.step for q in questions])
        return [len(q.step) / 10 for q in questions]

    teacher, student = [question("aa"), question("b")], [question("aa"), question("ccc")]
    assert score_pairs(scorer_of(asked), teacher, student) == ([0.2, 0.1], [0.2, 0.3])
    assert calls == [["aa", "b", "ccc"]]


def test_questions_that_differ_in_a_column_are_both_scored():
    asked = scorer_of(lambda questions: [q.columns["worth"] for q in questions])
    one, other = question(columns={"worth": 0.1}), question(columns={"worth": 0.9})
    assert score_pairs(asked, [one], [other]) == ([0.1], [0.9])


def test_the_scorer_is_not_called_where_there_are_no_steps():
    assert score_pairs(scorer_of(lambda questions: 1 / 0), [], []) == ([], [])


def test_proposals_that_do_not_pair_up_are_refused():
    with pytest.raises(ValueError, match="1 proposals of the teacher and 0 of the student"):
        score_pairs(scorer_of(lambda questions: []), [question()], [])


def test_the_scorer_of_the_documentation_works(root, tmp_path):
    _, _, text = (root / "docs/validity.md").read_text().partition("## A scorer of your own")
    (tmp_path / "mine.py").write_text(text.split("```python\n")[1].split("```")[0])
    scorer = load_scorer(f"{tmp_path / 'mine.py'}:no_repetition", {"weight": 0.5})
    asked = StepQuestion("2 + 2?", "so it is ", "it is 4"), StepQuestion("2 + 2?", "so it is ", "")
    assert score_pairs(scorer, *([one] for one in asked)) == ([pytest.approx(2 / 3)], [None])


@pytest.mark.parametrize(
    ("values", "failed"),
    [([0.5, 0.5], 0), ([None, 0.5], 1), ([float("nan"), None], 2), (["undecided", "undecided"], 0), (None, 2)],
)
def test_failures_are_counted_apart_from_undecided_questions(values, failed):
    def scorer(questions):
        if values is None:
            raise ConnectionError("server down")
        return values

    tally = Tally()
    score_pairs(scorer_of(scorer), [question("a")], [question("b")], tally=tally)
    assert (tally.asked, tally.failed) == (2, failed)
    assert bool(tally.cause) == bool(failed)
    if values is None:
        assert tally.cause == "ConnectionError: server down"


def test_undecided_reaches_the_weights_as_no_validity():
    assert score_pairs(scorer_of(lambda questions: ["undecided", 0.5]), [question("a")], [question("b")]) == (
        [None],
        [0.5],
    )
