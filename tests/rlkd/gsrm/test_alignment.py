from collections import Counter
from itertools import combinations, pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlkd.gsrm.alignment import (
    BUILT_IN,
    F1,
    Alignment,
    Answers,
    BranchScore,
    Ordered,
    Sum,
    Teacher,
    Verdict,
    best_branch,
    step_scores,
)
from rlkd.gsrm.alignment.contract import explain_plainly
from rlkd.gsrm.factory import make
from rlkd.registry import SpecError
from rlkd.structure import Step, Structure

ALL_VERDICTS = [Verdict(*fields) for fields in product((True, False), (True, False, None), (True, False, None))]
CASCADES = [Teacher(), Sum(), F1()]
YES, NO = Verdict(True, True, True), Verdict(False, False, False)


def steps(n):
    return Structure([Step(f"What is number {i}?", f"{i} + 1", str(i + 1)) for i in range(n)])


def answers(values):
    return Structure([Step("What?", None, None if value is None else str(value)) for value in values])


def cascade(rule, verdicts, n_student, n_teacher, n_longest=None):
    return rule.score(steps(n_student), steps(n_teacher), [verdicts], n_longest or n_teacher)


def ordered(table, n_student, n_teacher):
    verdicts = [[verdict] for row in table for verdict in row]
    return Ordered().score(steps(n_student), steps(n_teacher), verdicts, n_teacher)


def by_answers(student, teacher):
    return Answers().score(answers(student), answers(teacher), [], len(teacher))


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


def reference_value(verdicts, n_student, n_teacher, rule, n_longest):
    if n_student == 0 or n_teacher == 0:
        return 0.0
    if rule == "sum":
        return sum(reference_steps(verdicts, False))
    total = sum(reference_steps(verdicts, True))
    if rule == "teacher":
        return total / n_longest
    return total / n_teacher * total / n_student * 2 / (total / n_teacher + total / n_student) if total else 0.0


@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_every_combination_of_verdicts_scores_as_the_slow_reference_says(length):
    for verdicts in product(ALL_VERDICTS, repeat=length):
        for missing in (False, True):
            assert step_scores(verdicts, missing_is_mismatch=missing) == reference_steps(verdicts, missing)


@pytest.mark.parametrize("rule", CASCADES)
@pytest.mark.parametrize(("n_student", "n_teacher"), list(product(range(4), repeat=2)))
def test_the_cascades_agree_with_the_reference_for_all_short_lengths(rule, n_student, n_teacher):
    for verdicts in product(ALL_VERDICTS, repeat=min(n_student, n_teacher, 2)):
        verdicts += (Verdict(True, True, None),) * (min(n_student, n_teacher) - len(verdicts))
        for n_longest in (n_teacher, n_teacher + 2):
            score = cascade(rule, verdicts, n_student, n_teacher, n_longest)
            expected = reference_value(verdicts, n_student, n_teacher, rule.name, n_longest)
            assert score.value == pytest.approx(expected, rel=1e-12)
            assert score.steps == tuple(reference_steps(verdicts, rule.name != "sum"))


def test_the_example_of_the_paper_comes_out():
    verdicts = [Verdict(True, True, False), Verdict(True, False, True), Verdict(False, True, True)]
    score = cascade(Sum(), verdicts, 3, 4)
    assert (score.value, score.steps, score.divisor, score.matches) == (1.0, (0.5, 0.5, 0.0), 1.0, None)
    assert cascade(Teacher(), verdicts, 3, 4).value == 0.25
    assert cascade(F1(), verdicts, 3, 4).value == pytest.approx(2 / 7)


@pytest.mark.parametrize("rule", CASCADES)
def test_judging_may_stop_at_the_first_meta_mismatch(rule):
    judged = [YES, Verdict(False, None, None)]
    whole = cascade(rule, [*judged, YES], 3, 3)
    assert (whole.value, whole.steps) == (cascade(rule, judged, 3, 3).value, (1.0, 0.0, 0.0))


@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_number_of_verdicts_that_does_not_fit_is_refused_with_both_numbers(count):
    with pytest.raises(ValueError, match=rf"{count} verdicts .*n_student=3, n_teacher=5\) = 3"):
        cascade(Teacher(), [YES] * count, 3, 5)


def test_too_many_verdicts_are_refused_even_after_a_mismatch():
    with pytest.raises(ValueError, match="2 verdicts"):
        cascade(Teacher(), [NO] * 2, 1, 1)


@pytest.mark.parametrize(
    ("verdict", "free", "penalised"),
    [
        (Verdict(True, None, True), 1.0, 0.5),
        (Verdict(True, None, None), 1.0, 0.25),
        (Verdict(True, False, None), 0.5, 0.25),
        (YES, 1.0, 1.0),
    ],
)
def test_a_field_that_one_side_lacks_costs_nothing_under_sum_and_half_a_step_otherwise(verdict, free, penalised):
    assert [cascade(rule, [verdict], 1, 1).value for rule in (Sum(), Teacher(), F1())] == [free, penalised, penalised]


@pytest.mark.parametrize("rule", [Sum(), Teacher()])
def test_a_truncated_structure_never_earns_more_than_the_whole_one(rule):
    for verdicts in product(ALL_VERDICTS, repeat=3):
        values = [cascade(rule, verdicts[:n], n, 3).value for n in range(4)]
        assert values == sorted(values)


def test_surplus_student_steps_cost_something_under_f1_only():
    assert [cascade(rule, [YES] * 2, 2, 2).value for rule in CASCADES] == [1, 2, 1]
    assert [cascade(rule, [YES] * 2, 6, 2).value for rule in CASCADES] == [1.0, 2.0, 0.5]


def test_dividing_by_the_longest_branch_does_not_favour_the_shortest():
    assert cascade(Teacher(), [YES], 1, 1, n_longest=4).value == 0.25
    assert cascade(Teacher(), [YES] * 4, 4, 4, n_longest=4).value == 1.0


def test_the_best_branch_is_the_maximum_and_the_first_wins_a_tie():
    scores = [BranchScore(steps(2), steps(2), "teacher", (value,), 1.0) for value in (0.25, 0.5, 0.5, 0.0)]
    assert best_branch(scores) is scores[1]


def test_a_score_shows_its_steps_to_a_reader():
    shown = str(cascade(Teacher(), [Verdict(True, True, False), Verdict(False, True, True)], 2, 4))
    assert shown == "0.125 (teacher, branch 0, 2 student steps, 4 teacher steps; per step: 0.5 0)"


# Without the cascade


def tables(rows, columns):
    verdict = st.builds(Verdict, st.booleans(), st.sampled_from([True, False, None]), st.booleans())
    return st.lists(st.lists(verdict, min_size=columns, max_size=columns), min_size=rows, max_size=rows)


def slow_ordered(table, n_student, n_teacher):
    """The largest sum, by trying every choice of steps on both sides."""
    best = 0.0
    for size in range(min(n_student, n_teacher) + 1):
        for rows, columns in product(combinations(range(n_student), size), combinations(range(n_teacher), size)):
            chosen = [table[i][j] for i, j in zip(rows, columns, strict=True)]
            best = max(best, sum(reference_steps([v], True)[0] for v in chosen))
    return best


@given(st.data(), st.integers(0, 4), st.integers(0, 4))
def test_the_ordered_score_is_the_best_of_all_choices_of_steps_in_order(data, n_student, n_teacher):
    table = data.draw(tables(n_student, n_teacher))
    score = ordered(table, n_student, n_teacher)
    assert sum(score.steps) == slow_ordered(table, n_student, n_teacher)
    assert all(i < k and j < m for (i, j), (k, m) in pairwise(score.matches))
    assert score.steps == tuple(reference_steps([table[i][j]], True)[0] for i, j in score.matches)
    assert score.verdicts == tuple(table[i][j] for i, j in score.matches)
    assert all(score.steps)


def test_a_surplus_first_step_loses_the_cascade_but_only_its_share_when_ordered():
    table = [[NO, NO], [YES, NO], [NO, YES]]
    assert cascade(F1(), [table[0][0], table[1][1]], 3, 2).value == 0.0
    score = ordered(table, 3, 2)
    assert (score.value, score.matches) == (pytest.approx(4 / 5), ((1, 0), (2, 1)))


def test_steps_in_the_wrong_order_do_not_all_count_when_ordered_and_do_as_answers():
    assert ordered([[NO, YES], [YES, NO]], 2, 2).value == 0.5
    assert by_answers([2, 1], [1, 2]).value == 1.0


ANSWERS = st.lists(st.sampled_from([None, 1, 2, 3]), max_size=6)


@given(ANSWERS, ANSWERS)
def test_the_answers_score_is_the_f1_of_two_multisets(student, teacher):
    own, gold = (Counter(answer for answer in side if answer is not None) for side in (student, teacher))
    total = own.total() + gold.total()
    score = by_answers(student, teacher)
    assert score.value == pytest.approx(2 * (own & gold).total() / total if total else 0.0)
    assert all(student[i] == teacher[j] is not None for i, j in score.matches)
    assert all(len(set(indices)) == len(score.matches) for indices in zip(*score.matches, strict=True))
    assert [i for i, _ in score.matches] == sorted(i for i, _ in score.matches)


@given(ANSWERS, ANSWERS, st.randoms(use_true_random=False))
def test_the_answers_score_does_not_depend_on_the_order_of_the_steps(student, teacher, random):
    shuffled = random.sample(student, len(student))
    assert by_answers(shuffled, teacher).value == by_answers(student, teacher).value


def test_a_repeated_answer_counts_as_often_as_the_teacher_has_it():
    assert by_answers([5] * 4, [5, 7]).value == pytest.approx(2 / 6)


# Rules as objects


@given(st.data(), st.sampled_from(list(BUILT_IN)), st.integers(0, 4), st.integers(0, 4))
def test_under_every_rule_the_value_is_the_sum_of_the_steps_over_the_divisor(data, name, n_student, n_teacher):
    rule = make("alignment", name)
    student, teacher = steps(n_student), steps(n_teacher)
    table = data.draw(tables(n_student, n_teacher))
    pairs = rule.pairs(student, teacher)
    diagonal = [table[i][i] for i in range(min(n_student, n_teacher))]
    flat = [[verdict] for row in table for verdict in row]
    score = rule.score(student, teacher, flat if rule.every_pair else [diagonal] * len(pairs), n_teacher)
    assert score.divisor >= 1
    assert score.value == sum(score.steps) / score.divisor
    assert len(score.steps) == (min(n_student, n_teacher) if score.matches is None else len(score.matches))
    assert (score.matches is None) == (name in ("teacher", "sum", "f1"))
    assert BranchScore.from_dict(score.to_dict()) == score
    why = rule.explain(score)
    assert len(why.verdicts) == len(why.steps) == len(score.steps)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_rule_has_the_name_that_the_config_uses_and_equals_itself(name):
    rule = make("alignment", name)
    assert (rule.name, rule) == (name, make("alignment", name))
    with pytest.raises(AttributeError):
        rule.name = "other"


def test_a_rule_needs_pairs_and_score_only():
    class First(Alignment):
        def pairs(self, student, branch):
            return [(student, branch)]

        def score(self, student, branch, verdicts, n_longest):
            return BranchScore(student, branch, self.name, (1.0, 0.0), 2.0, verdicts=(YES,))

    rule = First()
    assert rule.name == "First"
    assert rule.comparable(steps(1))
    assert not rule.comparable(Structure())
    why = rule.explain(rule.score(steps(2), steps(2), [[YES]], 2))
    assert why == explain_plainly(rule.score(steps(2), steps(2), [[YES]], 2))
    assert why.steps == ("yes / yes / yes -> 1", "not compared -> 0")


def test_an_unknown_rule_is_refused_with_the_known_ones():
    with pytest.raises(SpecError, match=r"'mean'.*Known: answers, f1, ordered, sum, teacher"):
        make("alignment", "mean")


def test_an_object_that_is_no_rule_is_refused_with_what_it_lacks(tmp_path):
    (tmp_path / "rule.py").write_text("class Rule:\n    name = 'rule'\n")
    with pytest.raises(SpecError, match=r"lacks every_pair, pairs, score, comparable, explain"):
        make("alignment", f"{tmp_path / 'rule.py'}:Rule")
