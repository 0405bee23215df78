import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkd.answers import numbers
from rlkd.data.rows import RowError
from rlkd.data.samples import sample_rows
from rlkd.errors import UsageError
from rlkd.gsrm import DecompositionError, DeterministicJudge, JudgeError, RulesDecomposer
from rlkd.gsrm.alignment import Answers, Teacher
from rlkd.gsrm.datasets import RatedQuestion, RatedSolution, load_rationales
from rlkd.gsrm.evaluation import LENGTH, auroc_table, derangement, evaluate_gsrm
from rlkd.gsrm.measures import LAYOUTS, agreement, group_spread, solution_lines
from rlkd.statistics import resample
from rlkd.structure import Step, Structure

CONTROLS = ("last step of both sides removed", "shuffled teacher")
ROWS = sample_rows("test")[:12]


def a_table(scores, right, question, **options):
    n = question.max() + 1
    rows = auroc_table(scores, right, question, resample(n, 400), length="length", **options)
    return {row.name: row for row in rows}


def test_a_length_counts_with_the_sign_that_predicts_better_and_others_do_not():
    right = np.array([True, False] * 30)
    question = np.repeat(np.arange(30), 2)
    shorter_is_right = np.where(right, 1.0, 2.0)
    rows = a_table({"other": shorter_is_right, "length": shorter_is_right}, right, question, either_sign=["length"])
    assert (rows["length"].pooled.value, rows["length"].within.value) == (1.0, 1.0)
    assert (rows["other"].pooled.value, rows["other"].over_length.value) == (0.0, -1.0)


def test_the_difference_to_length_is_paired_and_so_tighter_than_the_two_intervals():
    random = np.random.default_rng(5)
    right = random.random(300) < 0.5
    question = np.repeat(np.arange(75), 4)
    length = right + random.normal(size=300)
    rows = a_table({"nearly length": length + 0.05 * random.normal(size=300), "length": length}, right, question)
    row = rows["nearly length"]
    assert row.over_length.high - row.over_length.low < 0.3 * (row.pooled.high - row.pooled.low)
    assert rows["length"].over_length.value == rows["length"].over_length.high == 0.0


def test_a_score_that_does_not_apply_somewhere_is_compared_with_length_on_the_rest():
    right = np.array([True, False, True, False])
    question = np.array([0, 0, 1, 1])
    length = np.array([1.0, 0.0, 0.0, 1.0])
    rows = a_table({"half": np.array([1.0, 0.0, np.nan, np.nan]), "length": length}, right, question)
    assert (rows["half"].pooled.value, rows["half"].over_length.value, rows["half"].candidates) == (1.0, 0.0, 2)


# Texts


def test_every_layout_but_lines_hides_the_steps_from_a_reader_of_newlines():
    solution = "She sold 48/2 = <<48/2=24>>24 clips.\n\nIn all 48+24 = <<48+24=72>>72.\n#### 72"
    lines = solution_lines(solution)
    assert lines == ["She sold 48/2 = 24 clips.", "In all 48+24 = 72."]
    assert LAYOUTS["paragraph"](lines) == "She sold 48/2 = 24 clips. In all 48+24 = 72."
    assert LAYOUTS["numbered"](lines).splitlines()[1] == "2. In all 48+24 = 72."
    assert LAYOUTS["bold"](lines).splitlines()[0] == "**Step 1:** She sold 48/2 = 24 clips."


def test_numbers_are_read_with_commas_and_decimals():
    assert numbers("$1,200.50 - 3 = 1197.5, so .5 kg, in 2024.") == [1200.5, 3, 1197.5, 0.5, 2024]


@given(st.integers(2, 50), st.integers(0, 5))
def test_everybody_gets_the_trace_of_somebody_else_and_each_trace_goes_once(n, seed):
    partner = derangement(n, seed)
    assert sorted(partner) == list(range(n))
    assert all(i != j for i, j in enumerate(partner))


def same(mine, theirs):
    return mine == theirs


def test_agreement_in_order_is_lost_by_a_shift_and_order_free_it_is_not():
    gold = ["a", "b", "c"]
    assert agreement(gold, gold, same, in_order=True) == 1.0
    assert agreement(["x", *gold], gold, same, in_order=True) == 0.0
    assert agreement(["x", *gold], gold, same, in_order=False) == pytest.approx(6 / 7)
    assert agreement(["a", "a", None], gold, same, in_order=False) == pytest.approx(2 / 5)
    assert math.isnan(agreement(["a"], [None], same, in_order=False))


# The whole


class Scripted:
    """Decomposes by a function of the trace."""

    costly = True
    fingerprint = "scripted"

    def __init__(self, answer):
        self.answer = answer
        self.calls = []

    async def decompose(self, traces):
        self.calls.append(list(traces))
        return [self.answer(trace) for trace in traces]


GOLD = {row["question"]: Structure.from_list(row["structures"][0]) for row in ROWS}


def rules_of_the_trace(trace):
    return RulesDecomposer()._structure(trace.text)


def evaluated(answer, **options):
    return evaluate_gsrm(Scripted(answer), DeterministicJudge(), draws=100, **{"rows": ROWS, **options})


def test_a_decomposer_that_solves_the_problem_itself_agrees_with_gold_and_is_caught_by_swapped_traces():
    # It never reads the trace: perfect agreement, perfect stability.
    found = evaluated(lambda trace: GOLD[trace.question], alignments=[Teacher(), Answers()])
    assert found.joined["parse rate"].value == 1.0
    assert found.joined["step count: equal"].value == 1.0
    assert all(figure.value == 1.0 for name, figure in found.joined.items() if "F1" in name)
    assert found.stability["paragraph against lines: same list of answers"].value == 1.0
    assert found.faithfulness["structure score, teacher: swapped trace"].value == 1.0
    assert found.faithfulness["structure score, teacher: shuffled level"].value < 0.2
    assert found.faithfulness["structure score, answers: difference"].low > 0.5
    assert found.at_shuffled_level == {"teacher": False, "answers": False}
    name = "swapped trace, numbers in the output: from the question's own solution or text only"
    assert found.faithfulness[name].value > 0.3


def test_a_decomposer_that_reads_the_trace_falls_to_the_shuffled_level_when_traces_are_swapped():
    found = evaluated(rules_of_the_trace, alignments=[Teacher(), Answers()])
    assert found.at_shuffled_level == {"teacher": True, "answers": True}
    assert found.faithfulness["structure score, answers: difference"].value == 0.0
    assert found.faithfulness["swapped trace, numbers in the output: from the trace given"].value == 1.0


def test_what_cannot_be_decomposed_agrees_in_nothing_and_is_counted_by_cause():
    found = evaluated(lambda trace: DecompositionError("no step"), alignments=[Teacher()])
    assert found.joined["parse rate"].value == 0.0
    assert found.joined["answer agreement (F1), order-free"].value == 0.0
    assert math.isnan(found.joined["structure score against gold, teacher"].value)
    assert found.stability["bold against lines: same list of answers"].value == 0.0
    assert list(found.failures) == ["decomposer: no step"]
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["faithfulness"]


def test_a_judge_that_fails_leaves_its_figures_out_and_is_counted():
    class Broken:
        async def judge(self, pairs):
            return [JudgeError("no verdict") for _ in pairs]

    found = evaluate_gsrm(Scripted(rules_of_the_trace), Broken(), rows=ROWS, alignments=[Teacher()], draws=50)
    assert math.isnan(found.joined["structure score against gold, teacher"].value)
    assert found.joined["answer agreement (F1), order-free"].value > 0.5
    assert list(found.failures) == ["judge: no verdict"]


def test_a_killed_evaluation_resumes_from_its_store(tmp_path):
    class Killed(BaseException):
        pass

    calls = []

    def dies_late(trace):
        calls.append(trace)
        if len(calls) > 40:
            raise Killed
        return rules_of_the_trace(trace)

    # 12 rows in four layouts and one swap; the calls for three layouts are complete when it dies.
    options = {"rows": ROWS, "store": tmp_path / "kept.sqlite", "draws": 50, "alignments": [Answers()]}
    with pytest.raises(Killed):
        evaluate_gsrm(Scripted(dies_late), DeterministicJudge(), **options)
    again = Scripted(rules_of_the_trace)
    resumed = evaluate_gsrm(again, DeterministicJudge(), **options)
    assert sum(map(len, again.calls)) == 5 * 12 - 36
    whole = evaluate_gsrm(Scripted(rules_of_the_trace), DeterministicJudge(), **options | {"store": None})
    assert resumed.to_dict() == whole.to_dict()


def rated_rows(n=20):
    """Right solutions with the teacher's results; wrong ones go wrong from the first step on."""
    rated = []
    for i in range(2, n + 2):
        right = f"First we get {i} + 1 = {i + 1} apples. Then {i + 1} * 2 = {2 * i + 2} apples are there."
        wrong = f"First we get {i} + 1 = {i + 3} apples. Then {i + 3} * 2 = {2 * i + 6} apples are there."
        rated.append(
            RatedQuestion(
                f"How many, with {i}?", right, (RatedSolution("a", right, True), RatedSolution("b", wrong, False))
            )
        )
    return rated


def test_the_table_has_every_score_its_controls_and_their_differences_to_length():
    found = evaluate_gsrm(
        RulesDecomposer(), DeterministicJudge(), rated=rated_rows(), alignments=[Teacher(), Answers()], draws=100
    )
    rows = {row.name: row for row in found.auroc}
    assert rows["structure, answers"].pooled.value == rows["structure, teacher"].within.value == 1.0
    # Every wrong one is already wrong before its last step, so the control keeps the signal.
    assert rows["structure, answers, last step of both sides removed"].within.value == 1.0
    assert abs(rows["structure, answers, shuffled teacher"].pooled.value - 0.5) < 0.2
    assert rows["structure, answers"].over_length.low > 0.2
    assert rows[LENGTH].over_length.value == 0.0
    assert rows["answer of the last step alone"].pooled.value == 1.0
    assert {"crude cascade (rules, token overlap)", "numbers in the texts, order-free F1", "length in steps"} <= set(
        rows
    )
    assert not any(name.startswith("rules + deterministic") for name in rows)  # it would say the same again
    assert (found.setup["candidates"], found.setup["candidates_right"]) == (40, 20)
    assert {f"structure, {rule}, {control}" for rule in ("teacher", "answers") for control in CONTROLS} <= set(rows)
    assert set(found.spread) == {"teacher", "answers"}
    assert found.spread["answers"]["right solutions that earn 0"].value == 0.0


def test_shares_without_a_signal_are_counted_by_solution_and_by_question():
    scores = np.array([0.0, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0, math.nan])
    right = np.array([True, True, False, False, True, False, False, False])
    question = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    found = group_spread(scores, right, question, resample(2, 50))
    assert found["right solutions that earn 0"].value == pytest.approx(2 / 3)
    assert found["wrong solutions that earn 0"].value == pytest.approx(2 / 4)
    assert found["questions whose wrong solutions all earn the same"].value == 1.0
    assert found["questions whose solutions all earn the same"].value == 0.5
    assert found["questions whose solutions all earn the same"].n == 2


def test_another_decomposer_is_shown_next_to_the_rules():
    found = evaluated(rules_of_the_trace, rows=(), rated=rated_rows(6), alignments=[Answers()])
    rows = {row.name: row for row in found.auroc}
    assert rows["rules + deterministic, answers"].pooled == rows["structure, answers"].pooled
    assert set(found.over_rules) == {"answers, all together", "answers, within questions"}
    assert all((figure.value, figure.low, figure.high) == (0.0, 0.0, 0.0) for figure in found.over_rules.values())
    assert rows["equations alone, answers"].within.value == 1.0


def test_the_last_step_alone_shows_nothing_once_it_is_removed():
    rated = [
        RatedQuestion(
            q.question, q.teacher, (q.solutions[0], RatedSolution("b", q.teacher.rpartition("= ")[0] + "= 1.", False))
        )
        for q in rated_rows(8)
    ]
    found = evaluate_gsrm(RulesDecomposer(), DeterministicJudge(), rated=rated, alignments=[Answers()], draws=100)
    rows = {row.name: row for row in found.auroc}
    assert rows["structure, answers"].within.value == 1.0
    assert rows["structure, answers, last step of both sides removed"].within.value == 0.5


@pytest.mark.parametrize("which", ["rows", "rated"])
def test_one_problem_is_not_enough_to_swap(which):
    given = {"rows": ROWS[:1]} if which == "rows" else {"rated": rated_rows(1)}
    with pytest.raises(UsageError, match=f"{which}: one problem is not enough"):
        evaluate_gsrm(RulesDecomposer(), DeterministicJudge(), **given)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 3))
def test_equal_seeds_give_equal_evaluations(seed):
    one, two = (
        evaluate_gsrm(RulesDecomposer(), DeterministicJudge(), rated=rated_rows(5), draws=50, seed=seed)
        for _ in range(2)
    )
    assert one.to_dict() == two.to_dict()


# The file of rationales


def written(tmp_path, *records):
    path = tmp_path / "rationales.jsonl"
    path.write_text("\n".join(record if isinstance(record, str) else json.dumps(record) for record in records))
    return path


def rationale(source, correct=True, text="1 + 1 = 2"):
    return {"source": source, "text": text, "correct": correct, "final": "2"}


def test_the_teacher_and_excluded_sources_are_not_compared(tmp_path):
    rationales = [rationale("human", text="by hand"), rationale("socratic"), rationale("m", False), rationale("n")]
    path = written(tmp_path, {"question": "Why?", "rationales": rationales, "gold": "2"})
    [rated] = load_rationales(path, limit=None)
    assert (rated.question, rated.teacher) == ("Why?", "by hand")
    assert [(c.source, c.correct) for c in rated.solutions] == [("m", False), ("n", True)]
    [rated] = load_rationales(path, teacher="m", exclude=(), limit=None)
    assert [c.source for c in rated.solutions] == ["human", "socratic", "n"]


def test_rows_are_chosen_by_their_index(tmp_path):
    rows = [{"question": str(i), "rationales": [rationale("human"), rationale("m")]} for i in range(6)]
    chosen = load_rationales(written(tmp_path, *rows), first=2, limit=3)
    assert [rated.question for rated in chosen] == ["2", "3", "4"]


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: found list [1], expected a JSON object"),
        ({"rationales": []}, "line 2, field 'question': expected a str, found None"),
        ({"question": "?", "rationales": "x"}, "line 2, field 'rationales': expected a list, found 'x'"),
        ({"question": "?", "rationales": ["x"]}, "line 2, rationale 0, field 'source': expected a str, found 'x'"),
        (
            {"question": "?", "rationales": [rationale("m"), rationale("n") | {"correct": 1}]},
            "line 2, rationale 1, field 'correct': expected a bool, found 1",
        ),
    ],
)
def test_a_row_that_does_not_fit_is_named_with_line_field_and_value(tmp_path, record, named):
    good = {"question": "?", "rationales": [rationale("human"), rationale("m")]}
    with pytest.raises(RowError) as refused:
        load_rationales(written(tmp_path, good, record), limit=None)
    assert named in str(refused.value)


def test_a_file_without_the_teachers_source_is_refused(tmp_path):
    path = written(tmp_path, {"question": "?", "rationales": [rationale("m"), rationale("n")]})
    with pytest.raises(UsageError, match="no row from index 0 on has a rationale of the source 'human'"):
        load_rationales(path, limit=None)


def test_a_missing_file_is_refused_with_its_path(tmp_path):
    with pytest.raises(UsageError, match=r"there is no file .*nowhere\.jsonl"):
        load_rationales(tmp_path / "nowhere.jsonl", limit=None)


def test_steps_without_answers_do_not_break_the_comparison_of_answers():
    found = evaluated(lambda trace: Structure([Step("Let x be the price.")]), alignments=[Answers()])
    assert found.joined["answer agreement (F1), in order"].value == 0.0
    assert found.stability["numbered against lines: same list of answers"].value == 1.0
