import asyncio
import json
import pickle
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlkd.data.samples import sample_rows
from rlkd.gsrm import (
    GSRM,
    DecompositionError,
    DeterministicJudge,
    JudgeError,
    ReasoningTrace,
    RulesDecomposer,
    StructureStore,
    Verdict,
)
from rlkd.gsrm.alignment import BUILT_IN
from rlkd.gsrm.factory import make
from rlkd.gsrm.judges import same_answer
from rlkd.structure import Step, Structure

STRUCTURES = [Structure.from_list(row["structures"][0]) for row in sample_rows("gsrm")[:60]]


def one_step(text: str) -> Structure:
    return Structure([Step(text)])


class CountingDecomposer:
    """Makes one step of a trace, and fails on traces that say so."""

    costly = True

    def __init__(self, fingerprint="counting"):
        self.fingerprint = fingerprint
        self.calls: list[list[str]] = []

    async def decompose(self, traces):
        self.calls.append([trace.text for trace in traces])
        return [DecompositionError("told to") if "fail" in t.text else one_step(t.text) for t in traces]


class CountingJudge(DeterministicJudge):
    """The deterministic judge, failing on steps that say so."""

    def __init__(self):
        super().__init__()
        self.calls = []

    async def judge(self, pairs):
        self.calls.append(list(pairs))
        found = await super().judge(pairs)
        broken = [any("unjudgeable" in step.meta for step in mine) for mine, _ in pairs]
        return [JudgeError("told to") if b else verdicts for b, verdicts in zip(broken, found, strict=True)]


def traces(*texts):
    return [ReasoningTrace("?", text) for text in texts]


def structure(gsrm, *texts, teacher=None):
    flags = teacher or [True] * len(texts)
    return asyncio.run(
        gsrm.structure([ReasoningTrace("?", text, flag) for text, flag in zip(texts, flags, strict=True)])
    )


def reward(students, teachers, rule="teacher", judge=None):
    gsrm = GSRM(CountingDecomposer(), judge or CountingJudge(), alignment=make("alignment", rule))
    return asyncio.run(gsrm.reward(students, teachers))


# Structures


def test_each_distinct_trace_is_decomposed_once_and_results_are_in_order():
    decomposer = CountingDecomposer()
    found = structure(GSRM(decomposer, CountingJudge()), "a", "b", "a", "a")
    assert found == [one_step(text) for text in "abaa"]
    assert decomposer.calls == [["a", "b"]]


def test_the_same_text_about_another_problem_is_another_trace():
    decomposer = CountingDecomposer()
    gsrm = GSRM(decomposer, CountingJudge())
    asyncio.run(gsrm.structure([ReasoningTrace("one", "a"), ReasoningTrace("two", "a")]))
    assert decomposer.calls == [["a", "a"]]


def test_without_traces_the_decomposer_is_not_called():
    decomposer = CountingDecomposer()
    assert structure(GSRM(decomposer, CountingJudge())) == []
    assert decomposer.calls == []


def test_stored_structures_outlive_the_model_that_made_them(tmp_path):
    path = tmp_path / "deep" / "structures.sqlite"
    first, second = CountingDecomposer(), CountingDecomposer()
    made = structure(GSRM(first, CountingJudge(), store=path), "a", "b")
    assert structure(GSRM(second, CountingJudge(), store=path), "b", "c", "a") == [made[1], one_step("c"), made[0]]
    assert second.calls == [["c"]]


def test_another_decomposer_does_not_see_them(tmp_path):
    path = tmp_path / "structures.sqlite"
    structure(GSRM(CountingDecomposer("one"), CountingJudge(), store=path), "a")
    other = CountingDecomposer("other")
    structure(GSRM(other, CountingJudge(), store=path), "a")
    assert other.calls == [["a"]]


def test_errors_are_never_stored(tmp_path):
    path = tmp_path / "structures.sqlite"
    decomposer = CountingDecomposer()
    gsrm = GSRM(decomposer, CountingJudge(), store=path)
    for _ in range(2):
        [found] = structure(gsrm, "fail")
        assert isinstance(found, DecompositionError)
    assert decomposer.calls == [["fail"], ["fail"]]


def test_only_structures_of_teachers_are_stored(tmp_path):
    path = tmp_path / "structures.sqlite"
    structure(GSRM(CountingDecomposer(), CountingJudge(), store=path), "student", "teacher", teacher=[False, True])
    again = CountingDecomposer()
    structure(GSRM(again, CountingJudge(), store=path), "student", "teacher")
    assert again.calls == [["student"]]


def test_a_students_structure_is_not_used_for_a_teacher(tmp_path):
    # A decomposer may take what was cut short from a student, never from a teacher.
    store = StructureStore(tmp_path / "structures.sqlite")
    store.put("f", {ReasoningTrace("?", "a"): one_step("cut")})
    assert store.get("f", {ReasoningTrace("?", "a", teacher=True)}) == {}


def test_a_store_holds_any_structure_and_its_first_version(tmp_path):
    store = StructureStore(tmp_path / "structures.sqlite")
    kept = dict(zip(traces(*map(str, range(60))), STRUCTURES, strict=True)) | {
        ReasoningTrace("?", "none"): Structure()
    }
    store.put("f", kept)
    store.put("f", {ReasoningTrace("?", "none"): one_step("changed")})
    assert store.get("f", set(kept)) == kept
    assert store.get("f", {ReasoningTrace("?", "unknown")}) == {}


def test_a_store_is_shared_by_threads_and_pickles_as_its_path(tmp_path):
    store = StructureStore(tmp_path / "structures.sqlite")
    made = traces(*map(str, range(20)))
    threads = [threading.Thread(target=store.put, args=("f", {trace: one_step(trace.text)})) for trace in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    copy = pickle.loads(pickle.dumps(store))
    assert copy.get("f", set(made)) == {trace: one_step(trace.text) for trace in made}


# Rewards


def test_the_example_of_the_module_holds():
    gsrm = GSRM(RulesDecomposer(), DeterministicJudge())
    teacher, student = structure(
        gsrm,
        "In May she sold 48/2 = 24 clips. In all she sold 48+24 = 72 clips.",
        "In May she sold 48/2 = 24 clips. So she sold 48+48 = 96 clips in all.",
    )
    [score] = asyncio.run(gsrm.reward([student], [[teacher]]))
    assert score.value == 0.625
    assert score.steps == (1.0, 0.25)


@pytest.mark.parametrize("rule", ["teacher", "f1", "ordered", "answers"])
def test_a_student_that_does_what_the_teacher_does_scores_one(rule):
    for score in reward(STRUCTURES, [[s] for s in STRUCTURES], rule):
        assert score.value == 1.0


def test_the_student_follows_whichever_branch_suits_it_best():
    away = Structure([Step("Why is the sky blue?", "rayleigh", "air")])
    [score] = reward([STRUCTURES[0]], [[away, STRUCTURES[0], away]], "f1")
    assert (score.value, score.branch) == (1.0, 1)
    assert score.teacher == STRUCTURES[0]


def test_more_branches_never_make_the_best_one_worse_under_f1():
    for i, student in enumerate(STRUCTURES[:20]):
        branches = STRUCTURES[i : i + 3]
        [alone], [together] = reward([student], [branches[:1]], "f1"), reward([student], [branches], "f1")
        assert together.value >= alone.value


def test_under_the_teacher_rule_a_short_branch_is_measured_by_the_longest():
    long = Structure([Step("How many in May?", "48/2", "24"), Step("How many in all?", "48+24", "72")])
    short = Structure(long.steps[:1])
    [score] = reward([short], [[short, long]])
    assert score.value == 0.5


def test_equal_pairs_are_judged_once():
    judge = CountingJudge()
    a, b = STRUCTURES[:2]
    reward([a, a, b], [[a, b], [a, b], [a]], judge=judge)
    assert judge.calls == [[(a, a), (a, b), (b, a)]]


def test_a_pair_that_the_judge_fails_on_costs_its_own_student_only():
    a = STRUCTURES[0]
    good, bad = reward([a, one_step("unjudgeable")], [[a], [a]])
    assert good.value == 1.0
    assert isinstance(bad, JudgeError)


@pytest.mark.parametrize("branches", [[], [Structure()], [STRUCTURES[0], Structure()]])
def test_a_teacher_without_steps_is_refused_and_never_scores_zero(branches):
    with pytest.raises(ValueError, match="problem 1: no teacher branch with steps"):
        reward([STRUCTURES[0]] * 2, [[STRUCTURES[0]], branches])


def test_a_student_without_steps_scores_zero():
    [score] = reward([Structure()], [[STRUCTURES[0]]])
    assert score.value == 0.0


def test_a_score_is_plain_values_for_a_log():
    [score] = reward([STRUCTURES[0]], [[STRUCTURES[0]]])
    logged = json.loads(json.dumps(score.to_dict()))
    assert logged["student"] == logged["teacher"] == STRUCTURES[0].to_list()
    assert logged["steps"] == [1.0] * len(STRUCTURES[0])
    assert (logged["alignment"], logged["branch"]) == ("teacher", 0)
    assert logged["verdicts"][0] == {"meta": True, "question": True, "answer": True}


SAMPLED = st.sampled_from(STRUCTURES)


@given(
    SAMPLED,
    st.lists(SAMPLED, min_size=1, max_size=3),
    st.integers(0, 6),
    st.sampled_from(["teacher", "f1", "ordered", "answers"]),
)
def test_normalised_scores_lie_between_zero_and_one(student, branches, length, rule):
    student = Structure((student.steps + branches[0].steps)[:length])
    [score] = reward([student], [branches], rule)
    assert 0.0 <= score.value <= 1.0


@given(st.lists(st.tuples(SAMPLED, SAMPLED), min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_the_order_of_a_batch_changes_no_score(batch, random):
    order = list(range(len(batch)))
    random.shuffle(order)
    plain = reward([s for s, _ in batch], [[t] for _, t in batch])
    shuffled = reward([batch[i][0] for i in order], [[batch[i][1]] for i in order])
    assert shuffled == [plain[i] for i in order]


# Rules without the cascade


def numbered(*answers):
    return Structure([Step(f"What is number {i}?", None, a) for i, a in enumerate(answers)])


def test_under_answers_nothing_is_judged_and_matches_name_the_pairs():
    judge = CountingJudge()
    [score] = reward([numbered("5", "9", "$7.00")], [[numbered("7", "6", "5 clips")]], "answers", judge)
    assert judge.calls == []
    assert score.value == pytest.approx(2 / 3)
    assert score.matches == ((0, 2), (2, 0))
    assert score.verdicts == ()
    assert score.to_dict()["matches"] == [[0, 2], [2, 0]]


@given(
    st.text(max_size=8) | st.integers(-99, 9999).map("{:,}".format), st.sampled_from(["{}", "${}", "{} clips", "{}."])
)
def test_answers_match_exactly_where_the_judges_rule_says_so(text, form):
    left, right = text.strip(), form.format(text).strip()
    if left and right:
        [score] = reward([numbered(left)], [[numbered(right)]], "answers")
        assert score.value == float(same_answer(left, right))


def test_under_ordered_all_pairs_of_steps_are_judged_in_one_call_and_equal_ones_once():
    judge = CountingJudge()
    student, teacher = numbered("5", "7", "5"), numbered("7", "5")
    [first, second] = reward([student, student], [[teacher], [teacher]], "ordered", judge)
    assert first == second
    [asked] = judge.calls
    assert len(asked) == len(set(asked)) == 6
    assert all(len(mine) == len(theirs) == 1 for mine, theirs in asked)


def test_the_verdicts_of_an_ordered_score_belong_to_its_matches():
    teacher = Structure([Step("How many in May?", "48/2", "24"), Step("How many in all?", "48+24", "72")])
    student = Structure([Step("Why is the sky blue?"), teacher[0], Step("How many in all?", "48+24", "71")])
    [score] = reward([student], [[teacher]], "ordered")
    assert score.matches == ((1, 0), (2, 1))
    assert score.verdicts == (Verdict(True, True, True), Verdict(True, True, False))
    assert score.value == pytest.approx(2 * 1.5 / 5)


@pytest.mark.parametrize("rule", ["teacher", "ordered"])
def test_a_judge_that_fails_leaves_no_score_under_any_rule_that_needs_it(rule):
    [score] = reward([one_step("unjudgeable")], [[STRUCTURES[0]]], rule)
    assert isinstance(score, JudgeError)


@pytest.mark.parametrize("rule", BUILT_IN)
def test_a_comparison_holds_every_branch_and_the_reward_is_the_best_of_them(rule):
    gsrm = GSRM(CountingDecomposer(), CountingJudge(), alignment=make("alignment", rule))
    [compared] = asyncio.run(gsrm.compare([STRUCTURES[1]], [STRUCTURES[:3]]))
    [best] = asyncio.run(gsrm.reward([STRUCTURES[1]], [STRUCTURES[:3]]))
    assert [score.branch for score in compared] == [0, 1, 2]
    assert [score.teacher for score in compared] == STRUCTURES[:3]
    assert best == compared[1]
    assert best.value == max(score.value for score in compared)


def test_a_teacher_without_answers_has_nothing_to_compare_under_answers_only():
    wordy = one_step("Let x be the price.")
    rules = {name: make("alignment", name) for name in BUILT_IN}
    assert {name: rule.comparable(wordy) for name, rule in rules.items()} == {n: n != "answers" for n in BUILT_IN}
    assert not any(rule.comparable(Structure()) for rule in rules.values())
