from collections import Counter
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlkd.gsrm.alignment import (
    CASCADES,
    NORMS,
    StructureScore,
    Verdict,
    answers_score,
    best_branch,
    ordered_score,
    step_scores,
    structure_score,
)

ALL_VERDICTS = [Verdict(*fields) for fields in product((True, False), (True, False, None), (True, False, None))]


def reference_steps(verdicts, missing_is_mismatch):
    """The cascade written the long way: every step looks at all verdicts up to itself."""
    scores = []
    for index, verdict in enumerate(verdicts):
        score = 1.0
        for earlier in verdicts[: index + 1]:
            if not earlier.meta:
                score = 0.0
        for same in (verdict.question, verdict.answer):
            if same is False:
                score = score / 2
            if same is None and missing_is_mismatch:
                score = score / 2
        scores.append(score)
    return scores


def reference_value(verdicts, n_student, n_teacher, norm, n_longest):
    if n_student == 0 or n_teacher == 0:
        return 0.0
    if norm == "sum":
        return sum(reference_steps(verdicts, False))
    total = sum(reference_steps(verdicts, True))
    if norm == "teacher":
        return total / n_longest
    return total / n_teacher * total / n_student * 2 / (total / n_teacher + total / n_student) if total else 0.0


@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_every_combination_of_verdicts_scores_as_the_slow_reference_says(length):
    for verdicts in product(ALL_VERDICTS, repeat=length):
        for missing in (False, True):
            assert step_scores(verdicts, missing_is_mismatch=missing) == reference_steps(verdicts, missing)


def test_every_combination_of_four_verdicts_scores_as_the_slow_reference_says_under_all_norms():
    for verdicts in product(ALL_VERDICTS, repeat=4):
        for norm in CASCADES:
            score = structure_score(verdicts, 4, 6, norm)
            assert score.steps == tuple(reference_steps(verdicts, norm != "sum"))
            assert score.value == pytest.approx(reference_value(verdicts, 4, 6, norm, 6), rel=1e-12)


@pytest.mark.parametrize("norm", CASCADES)
@pytest.mark.parametrize(("n_student", "n_teacher"), list(product(range(4), repeat=2)))
def test_the_norms_agree_with_the_reference_for_all_short_lengths(norm, n_student, n_teacher):
    for verdicts in product(ALL_VERDICTS, repeat=min(n_student, n_teacher, 2)):
        verdicts += (Verdict(True, True, None),) * (min(n_student, n_teacher) - len(verdicts))
        for n_longest in (None, n_teacher + 2):
            score = structure_score(verdicts, n_student, n_teacher, norm, n_longest)
            expected = reference_value(verdicts, n_student, n_teacher, norm, n_longest or n_teacher)
            assert score.value == pytest.approx(expected, rel=1e-12)
            assert (score.n_student, score.n_teacher, score.norm, score.branch) == (n_student, n_teacher, norm, 0)


def test_the_example_of_the_paper_comes_out():
    verdicts = [Verdict(True, True, False), Verdict(True, False, True), Verdict(False, True, True)]
    score = structure_score(verdicts, n_student=3, n_teacher=4, norm="sum")
    assert score == StructureScore(1.0, (0.5, 0.5, 0.0), 3, 4, "sum", divisor=1.0, matches=None)
    assert structure_score(verdicts, 3, 4).value == 0.25
    assert structure_score(verdicts, 3, 4, "f1").value == pytest.approx(2 / 7)


@pytest.mark.parametrize("norm", CASCADES)
def test_judging_may_stop_at_the_first_meta_mismatch(norm):
    judged = [Verdict(True, True, True), Verdict(False, None, None)]
    whole = structure_score([*judged, Verdict(True, True, True)], 3, 3, norm)
    assert structure_score(judged, 3, 3, norm) == whole
    assert whole.steps == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_number_of_verdicts_that_does_not_fit_is_refused_with_both_numbers(count):
    with pytest.raises(ValueError, match=rf"{count} verdicts .*n_student=3, n_teacher=5\) = 3"):
        structure_score([Verdict(True, True, True)] * count, 3, 5)


def test_too_many_verdicts_are_refused_even_after_a_mismatch():
    with pytest.raises(ValueError, match="2 verdicts"):
        structure_score([Verdict(False, True, True)] * 2, 1, 1)


@pytest.mark.parametrize(
    ("verdict", "free", "penalised"),
    [
        (Verdict(True, None, True), 1.0, 0.5),
        (Verdict(True, None, None), 1.0, 0.25),
        (Verdict(True, False, None), 0.5, 0.25),
        (Verdict(True, True, True), 1.0, 1.0),
    ],
)
def test_a_field_that_one_side_lacks_costs_nothing_under_sum_and_half_a_step_otherwise(verdict, free, penalised):
    assert structure_score([verdict], 1, 1, "sum").value == free
    assert structure_score([verdict], 1, 1, "teacher").value == penalised
    assert structure_score([verdict], 1, 1, "f1").value == penalised


@pytest.mark.parametrize("norm", ["sum", "teacher"])
def test_a_truncated_structure_never_earns_more_than_the_whole_one(norm):
    for verdicts in product(ALL_VERDICTS, repeat=3):
        values = [structure_score(verdicts[:n], n, 3, norm).value for n in range(4)]
        assert values == sorted(values)


def test_surplus_student_steps_cost_something_under_f1_only():
    perfect = [Verdict(True, True, True)] * 2
    assert {norm: structure_score(perfect, 2, 2, norm).value for norm in CASCADES} == {"teacher": 1, "sum": 2, "f1": 1}
    assert {norm: structure_score(perfect, 6, 2, norm).value for norm in CASCADES} == {
        "teacher": 1.0,
        "sum": 2.0,
        "f1": 0.5,
    }


def test_dividing_by_the_longest_branch_does_not_favour_the_shortest():
    short = structure_score([Verdict(True, True, True)], 1, 1, "teacher", n_longest=4)
    long = structure_score([Verdict(True, True, True)] * 4, 4, 4, "teacher", n_longest=4)
    assert (short.value, long.value) == (0.25, 1.0)


def test_a_longest_branch_shorter_than_this_one_is_refused():
    with pytest.raises(ValueError, match="n_longest=1 is less than n_teacher=2"):
        structure_score([Verdict(True, True, True)], 1, 2, "teacher", n_longest=1)


def test_negative_lengths_are_refused():
    with pytest.raises(ValueError, match="n_student=-1"):
        structure_score([], -1, 2)


@pytest.mark.parametrize("norm", ["mean", "ordered", "answers"])
def test_a_norm_that_is_no_cascade_is_refused_and_the_three_are_listed(norm):
    with pytest.raises(ValueError, match=f"'{norm}' is no cascade; choose one of teacher, sum, f1"):
        structure_score([], 0, 0, norm)


def test_the_best_branch_is_the_maximum_and_the_first_wins_a_tie():
    scores = [StructureScore(value, (), 2, 2, "teacher") for value in (0.25, 0.5, 0.5, 0.0)]
    best = best_branch(scores)
    assert (best.value, best.branch) == (0.5, 1)
    assert [score.branch for score in scores] == [0, 0, 0, 0]


def test_no_branches_and_mixed_norms_are_refused():
    with pytest.raises(ValueError, match="no scores"):
        best_branch([])
    with pytest.raises(ValueError, match="different norms cannot be compared: f1, sum"):
        best_branch([StructureScore(1.0, (1.0,), 1, 1, norm) for norm in ("sum", "f1")])


def test_a_score_shows_its_steps_to_a_reader():
    verdicts = [Verdict(True, True, False), Verdict(False, True, True)]
    shown = str(structure_score(verdicts, 2, 4))
    assert shown == "0.125 (teacher, branch 0, 2 student steps, 4 teacher steps; per step: 0.5 0)"


# Without the cascade


def tables(rows, columns):
    verdict = st.builds(Verdict, st.booleans(), st.sampled_from([True, False, None]), st.booleans())
    return st.lists(st.lists(verdict, min_size=columns, max_size=columns), min_size=rows, max_size=rows)


def slow_ordered(table, n_student, n_teacher):
    """The largest sum, by trying every choice of steps on both sides."""
    best = 0.0
    for size in range(min(n_student, n_teacher) + 1):
        for mine, theirs in product(combinations(range(n_student), size), combinations(range(n_teacher), size)):
            chosen = [table[i][j] for i, j in zip(mine, theirs, strict=True)]
            best = max(best, sum(reference_steps([v], True)[0] for v in chosen))
    return best


@given(st.data(), st.integers(0, 4), st.integers(0, 4))
def test_the_ordered_score_is_the_best_of_all_choices_of_steps_in_order(data, n_student, n_teacher):
    table = data.draw(tables(n_student, n_teacher))
    score = ordered_score(table, n_student, n_teacher)
    assert sum(score.steps) == slow_ordered(table, n_student, n_teacher)
    for (i, j), (k, m) in zip(score.matches, score.matches[1:], strict=False):
        assert i < k
        assert j < m
    assert score.steps == tuple(reference_steps([table[i][j]], True)[0] for i, j in score.matches)
    assert all(score.steps)


def test_a_surplus_first_step_loses_the_cascade_but_only_its_share_when_ordered():
    yes, no = Verdict(True, True, True), Verdict(False, False, False)
    table = [[no, no], [yes, no], [no, yes]]
    assert structure_score([table[0][0], table[1][1]], 3, 2, "f1").value == 0.0
    score = ordered_score(table, 3, 2)
    assert (score.value, score.matches) == (pytest.approx(4 / 5), ((1, 0), (2, 1)))


def test_steps_in_the_wrong_order_do_not_all_count_when_ordered_and_do_as_answers():
    yes, no = Verdict(True, True, True), Verdict(False, False, False)
    assert ordered_score([[no, yes], [yes, no]], 2, 2).value == 0.5
    assert answers_score(["b", "a"], ["a", "b"]).value == 1.0


@pytest.mark.parametrize(("n_student", "n_teacher"), [(1, 2), (2, 1), (3, 2)])
def test_a_table_of_verdicts_that_does_not_fit_is_refused(n_student, n_teacher):
    table = [[Verdict(True, True, True)] * 2] * 2
    with pytest.raises(ValueError, match=f"expected n_student={n_student} rows of n_teacher={n_teacher}"):
        ordered_score(table, n_student, n_teacher)


ANSWERS = st.lists(st.sampled_from([None, 1, 2, 3]), max_size=6)


@given(ANSWERS, ANSWERS)
def test_the_answers_score_is_the_f1_of_two_multisets(student, teacher):
    mine, theirs = (Counter(answer for answer in side if answer is not None) for side in (student, teacher))
    total = mine.total() + theirs.total()
    score = answers_score(student, teacher)
    assert score.value == pytest.approx(2 * (mine & theirs).total() / total if total else 0.0)
    assert all(student[i] == teacher[j] is not None for i, j in score.matches)
    assert all(len(set(places)) == len(score.matches) for places in zip(*score.matches, strict=True))
    assert [i for i, _ in score.matches] == sorted(i for i, _ in score.matches)


@given(ANSWERS, ANSWERS, st.randoms(use_true_random=False))
def test_the_order_of_the_steps_is_nothing_to_the_answers_score(student, teacher, random):
    mixed = random.sample(student, len(student))
    assert answers_score(mixed, teacher).value == answers_score(student, teacher).value


def test_a_number_said_over_and_over_counts_as_often_as_the_teacher_says_it():
    assert answers_score([5] * 4, [5, 7]).value == pytest.approx(2 / 6)


@given(st.data(), st.sampled_from(NORMS), st.integers(0, 4), st.integers(0, 4))
def test_under_every_norm_the_value_is_the_sum_of_the_steps_over_the_divisor(data, norm, n_student, n_teacher):
    table = data.draw(tables(n_student, n_teacher))
    if norm == "ordered":
        score = ordered_score(table, n_student, n_teacher)
    elif norm == "answers":
        score = answers_score(range(n_student), range(n_teacher))
    else:
        score = structure_score([table[i][i] for i in range(min(n_student, n_teacher))], n_student, n_teacher, norm)
    assert score.divisor >= 1
    assert score.value == sum(score.steps) / score.divisor
    assert len(score.steps) == (min(n_student, n_teacher) if score.matches is None else len(score.matches))
    assert (score.matches is None) == (norm in CASCADES)
