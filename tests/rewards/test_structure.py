import asyncio
import random

import pytest

import rlkd.engines.pool
from rewards import Failed, Outcome, Scored, build_reward
from rewards.structure import StructureReward
from rlkd.data.rows import build_prompt
from rlkd.data.samples import sample_rows
from rlkd.engines.base import Completion, Engine, EngineError
from rlkd.gsrm.lines import render_lines
from rlkd.gsrm.prompts import INSTRUCTION
from rlkd.steps import strip_calculator_marks
from rlkd.structure import Step, Structure, render

ROWS = sample_rows("gsrm")[:12]
TEACHER = "She sold 48/2 = 24 clips in May. In all she sold 48+24 = 72 clips."
OTHER_WAY = "In all she sold 48*1.5 = 72 clips."
STEPS = Structure([Step("How many clips did she sell in May?", "48/2", "24"), Step("How many in all?", "48+24", "72")])


class InMemoryEngine(Engine):
    """Decomposes a trace into `STEPS`, or not at all where it says so, and answers every question with yes.

    In the form in which it is asked: tags, or the lines of a fine-tuned structure model.
    """

    name = "in memory"
    guided = False

    def __init__(self):
        self.generated = []
        self.chosen = []

    async def generate(self, prompts, sampling, *, deadline=None):
        texts = [prompt[-1]["content"] for prompt in prompts]
        self.generated.append(texts)
        error = EngineError(self.name, "connection refused")
        form = render_lines if prompts[0][0]["content"] == INSTRUCTION else render

        def reply(text):
            return Completion("I cannot tell." if "unreadable" in text else form(STEPS), "stop", 9)

        return [error if "unreachable" in t else reply(t) for t in texts]

    async def choose(self, prompts, choices, *, deadline=None):
        texts = [prompt[-1]["content"] for prompt in prompts]
        self.chosen.append(texts)
        error = EngineError(self.name, "connection refused")
        return [error if "unjudgeable" in t else (-0.1, -3.0) for t in texts]


@pytest.fixture
def engine(monkeypatch, tmp_path):
    """Stands in for whatever an engine spec names; stored structures go to a folder of the test."""
    made = InMemoryEngine()
    monkeypatch.setattr(rlkd.engines.pool, "open_engine", lambda spec, **options: made)
    monkeypatch.setenv("RLKD_CACHE", str(tmp_path))
    return made


def score(reward, completions, **columns):
    """Call on one problem, a completion each."""
    n = len(completions)
    prompts = [build_prompt("How many clips?")] * n
    chats = [[{"role": "assistant", "content": text}] for text in completions]
    return asyncio.run(reward(prompts=prompts, completions=chats, **{k: [v] * n for k, v in columns.items()}))


def values(results):
    return [result.value if isinstance(result, Scored) else result for result in results]


# Scores


@pytest.mark.parametrize("rule", ["teacher", "f1"])
def test_a_student_that_writes_what_the_teacher_wrote_scores_one(rule):
    reward = StructureReward(alignment=rule)
    for row in ROWS:
        assert values(score(reward, row["rationales"], rationales=row["rationales"])) == [1.0], row["id"]


def test_under_the_sum_rule_identical_traces_score_the_number_of_steps():
    assert values(score(StructureReward(alignment="sum"), [TEACHER], rationales=[TEACHER])) == [2.0]


def test_the_default_rule_compares_in_order_unless_every_verdict_is_a_models(engine):
    by_rules = StructureReward().describe()
    assert by_rules == "decomposer rules, judge deterministic, alignment ordered (our choice, not the paper's rule)"
    assert "alignment teacher (the paper's cascade" in StructureReward(judge="model", engine="any").describe()
    assert "(the paper's rule, arXiv 2505.16142)" in StructureReward(alignment="sum").describe()


def test_a_worse_path_earns_less_and_none_at_all_earns_nothing():
    wrong_result = TEACHER.replace("72", "96")
    scores = values(score(StructureReward(), [TEACHER, wrong_result, TEACHER[:33], "No idea."], rationales=[TEACHER]))
    assert scores == sorted(scores, reverse=True)
    assert (scores[0], scores[-1]) == (1.0, 0.0)
    assert scores[1] < 1.0
    assert scores[2] == 2 / 3  # one step of two: 2 x 1 / (1 + 2)


def test_an_answer_after_the_thinking_changes_nothing():
    completions = [TEACHER, f"<think>{TEACHER}</think>So 1 + 1 = 2.", f"{TEACHER}<answer>1 + 1 = 2</answer>"]
    assert values(score(StructureReward(), completions, rationales=[TEACHER])) == [1.0] * 3


def test_the_student_may_take_any_of_the_teachers_ways():
    taken = score(StructureReward(alignment="f1"), [TEACHER, OTHER_WAY], rationales=[TEACHER, OTHER_WAY])
    assert values(taken) == [1.0, 1.0]
    assert [result.detail["branch"] for result in taken] == [0, 1]


def test_with_path_steps_a_student_that_solves_it_directly_takes_all_steps_of_a_long_trace():
    tried = "In May she sold 48-2 = 46 clips. In all she sold 48+46 = 94 clips. Wait, that is not half."
    long = f"{tried} {TEACHER} Check: In May she sold 48/2 = 24 clips. In all she sold 48+24 = 72 clips."
    for rule in ("ordered", "teacher", "answers"):
        [whole] = values(score(StructureReward(alignment=rule), [TEACHER], rationales=[long]))
        [chosen] = score(StructureReward(alignment=rule, teacher_steps="path"), [TEACHER], rationales=[long])
        assert whole <= 0.5
        assert chosen.value == 1.0
        assert len(chosen.detail["teacher"]) == 2
    assert "path to the final result" in StructureReward(teacher_steps="path").describe()


def test_path_steps_also_choose_among_the_steps_of_the_rows():
    rows = Structure([Step("Eggs?", "3+4", "7"), *STEPS, Step("Check", "48/2", "24")])
    reward = StructureReward("native", teacher_steps="path", alignment="teacher")
    [found] = score(reward, [render(STEPS)], structures=[rows.to_list()])
    assert (found.value, len(found.detail["teacher"])) == (1.0, 2)


def test_with_path_steps_a_check_at_the_end_does_not_replace_the_answer_of_the_row():
    checked = f"{TEACHER} Check: If she had 3 more in May, she had 24+3 = 27 clips."
    reward = StructureReward(teacher_steps="path")
    [known], [unknown] = (score(reward, [TEACHER], rationales=[checked], answer=gold) for gold in ("72", None))
    assert [step["question"] for step in known.detail["teacher"]] == ["48/2", "48+24"]
    assert [step["question"] for step in unknown.detail["teacher"]] == ["48/2", "24+3"]
    assert known.value == 1.0 > unknown.value


def test_an_unknown_choice_of_the_teachers_steps_is_refused():
    with pytest.raises(ValueError, match="teacher_steps 'shortest': expected 'all' or 'path'"):
        StructureReward(teacher_steps="shortest")


def test_the_worth_of_further_branches_is_that_of_the_best_one_over_the_first() -> None:
    logged: dict[str, float] = {}
    half = OTHER_WAY.replace("= 72", "= 96")
    prompts = [build_prompt("How many clips?")] * 4
    values = asyncio.run(
        build_reward("structure")(
            prompts=prompts,
            completions=[[{"role": "assistant", "content": text}] for text in (TEACHER, OTHER_WAY, half, OTHER_WAY)],
            rationales=[[TEACHER, OTHER_WAY]] * 3 + [[OTHER_WAY]],
            log_metric=logged.__setitem__,
        )
    )
    first = [1.0, *(each.value for each in score(StructureReward(), [OTHER_WAY, half], rationales=[TEACHER]))]
    assert values[:2] == [1.0, 1.0]
    assert values[2] > first[2]
    assert logged["rewards/structure/other_branch"] == pytest.approx(2 / 3)  # of those with two branches
    assert logged["rewards/structure/branch_gain"] == pytest.approx((sum(values[:3]) - sum(first)) / 3)


def test_one_branch_has_no_metrics_of_branches() -> None:
    outcomes = [Outcome.of(each, "structure", 0) for each in score(StructureReward(), [TEACHER], rationales=[TEACHER])]
    assert StructureReward().batch_metrics(outcomes) == {}


@pytest.mark.parametrize("rule", ["teacher", "f1"])
def test_scores_of_any_pair_of_traces_lie_between_zero_and_one(rule):
    reward = StructureReward(alignment=rule)
    traces = [row["rationales"][0] for row in ROWS]
    for row in ROWS:
        assert all(0.0 <= value <= 1.0 for value in values(score(reward, traces, rationales=row["rationales"])))


def test_the_order_of_the_batch_changes_no_score():
    reward = StructureReward()
    order = list(range(len(ROWS)))
    random.Random(0).shuffle(order)

    def call(indices):
        rows = [ROWS[i] for i in indices]
        # Half of the students follow their own teacher, half that of the next row.
        texts = [ROWS[(i + i % 2) % len(ROWS)]["rationales"][0] for i in indices]
        return values(
            asyncio.run(
                reward(
                    prompts=[build_prompt(row["question"]) for row in rows],
                    completions=texts,
                    rationales=[row["rationales"] for row in rows],
                )
            )
        )

    plain = call(range(len(ROWS)))
    assert call(order) == [plain[i] for i in order]
    assert len(set(plain)) > 1


def test_a_score_has_its_steps_and_verdicts():
    [result] = score(StructureReward(), [TEACHER], rationales=[TEACHER])
    assert [step["question"] for step in result.detail["student"]] == ["48/2", "48+24"]
    assert len(result.detail["verdicts"]) == 2


def test_a_student_that_leaves_out_the_calculator_marks_loses_little():
    reward = StructureReward()
    scores = []
    for row in sample_rows("gsrm"):
        plain = strip_calculator_marks(row["rationales"][0])
        scores += values(score(reward, [plain], rationales=row["rationales"]))
    assert sum(scores) / len(scores) > 0.95
    assert sum(value == 1.0 for value in scores) / len(scores) > 0.8


# Where it does not apply, and where it fails


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"rationales": []},
        {"rationales": None},
        {"rationales": [], "structures": []},
        {"rationales": ["No calculation."]},
    ],
)
def test_without_teacher_steps_the_reward_does_not_apply(columns):
    assert score(StructureReward(), [TEACHER, ""], **columns) == [None, None]


def test_rows_with_and_without_a_teacher_stand_side_by_side():
    found = asyncio.run(
        StructureReward()(
            prompts=["a?", "b?", "c?"], completions=[TEACHER] * 3, rationales=[[TEACHER], [], ["No calculation."]]
        )
    )
    assert values(found) == [1.0, None, None]


def test_a_student_trace_that_the_decomposer_fails_on_has_failed(engine):
    reward = StructureReward("prompted", engine="any")
    good, bad = score(reward, ["fine", "unreachable"], structures=[STEPS.to_list()])
    assert good.value == 1.0
    assert isinstance(bad, Failed)
    assert bad.cause.startswith("student trace: ")
    assert "connection refused" in bad.cause


def test_a_teacher_trace_that_the_decomposer_fails_on_has_failed_for_the_group(engine):
    reward = StructureReward("prompted", engine="any")
    found = score(reward, ["fine", "fine too"], rationales=["unreachable"])
    assert all(isinstance(result, Failed) and result.cause.startswith("teacher trace: ") for result in found)


def test_a_teacher_trace_whose_structure_cannot_be_read_makes_the_reward_not_applicable(engine, caplog):
    for decomposer in ("prompted", "generative"):
        reward = StructureReward(decomposer, engine="any")
        for _ in range(2):
            assert score(reward, ["fine", "fine too"], rationales=["unreadable"]) == [None, None]
    assert caplog.text.count("No structure reward for the question 'How many clips?'") == 2


def test_a_student_trace_with_an_unreadable_structure_earns_nothing(engine):
    for decomposer in ("prompted", "generative"):
        reward = StructureReward(decomposer, engine="any")
        good, bad = score(reward, [TEACHER, "unreadable"], rationales=[TEACHER])
        assert good.value == 1.0
        assert bad.value == 0.0
        assert "no complete step" in bad.detail["unreadable"]


def test_a_teacher_that_is_left_with_one_readable_trace_is_followed_there(engine):
    reward = StructureReward("prompted", engine="any")
    assert values(score(reward, ["fine"], rationales=["unreachable", "readable"])) == [1.0]


def test_a_judge_without_a_reply_has_failed_for_that_student_only(engine):
    reward = StructureReward("native", "model", engine="any")
    unjudgeable = render(Structure([Step("unjudgeable", "1+1", "2")]))
    good, bad = score(reward, [render(STEPS), unjudgeable], structures=[STEPS.to_list()])
    assert good.value == 1.0
    assert isinstance(bad, Failed)
    assert "connection refused" in bad.cause


def test_failures_reach_the_trainer_as_missing_and_are_counted(engine):
    logged = {}
    reward = build_reward("structure", {"decomposer": "prompted", "engine": "any"})
    found = score(reward, ["fine", "unreachable", "fine"], structures=[STEPS.to_list()])
    assert found == [1.0, None, 1.0]
    asyncio.run(
        reward(
            prompts=["?"] * 2,
            completions=["unreachable", ""],
            structures=[[STEPS.to_list()]] * 2,
            log_metric=logged.__setitem__,
        )
    )
    assert logged["rewards/structure/failed"] == 0.5
    assert logged["rewards/structure/not_applicable"] == 0.0


# Where the teacher's steps come from


def test_native_students_are_compared_with_the_steps_in_the_rows():
    reward = StructureReward("native")
    half = render(Structure(STEPS.steps[:1]))
    found = score(reward, [render(STEPS), half, TEACHER], structures=[STEPS.to_list()], rationales=[TEACHER])
    assert values(found) == [1.0, 2 / 3, 0.0]


def test_by_rules_both_sides_are_decomposed_alike():
    other = [{"meta": "Something else altogether?", "question": "1+1", "answer": "2"}]
    assert values(score(StructureReward(), [TEACHER], structures=[other], rationales=[TEACHER])) == [1.0]
    by_rows = score(StructureReward(teacher="rows"), [TEACHER], structures=[other], rationales=[TEACHER])
    assert values(by_rows) == [0.0]


def test_a_generative_model_reads_both_sides_in_one_call(engine):
    other = [{"meta": "Something else altogether?", "question": "1+1", "answer": "2"}]
    student = "In May 48/2 = 24, in all 48+24 = 72."
    reward = StructureReward("generative", engine="any")
    assert values(score(reward, [student, "It is 24 and 72."], structures=[other], rationales=[TEACHER])) == [1.0, 1.0]
    assert [len(texts) for texts in engine.generated] == [3]
    by_rows = StructureReward("generative", engine="any", teacher="rows")
    assert values(score(by_rows, [student], structures=[other], rationales=[TEACHER])) == [0.0]


def test_made_up_steps_of_a_generative_model_earn_nothing(engine):
    assert values(score(StructureReward("generative", engine="any"), ["I do not know."], rationales=[TEACHER])) == [
        0.0
    ]


def test_the_shipped_structure_model_is_the_default_of_the_generative_decomposer(monkeypatch, tmp_path):
    opened = []
    monkeypatch.setattr(
        rlkd.engines.pool, "open_engine", lambda spec, **options: opened.append(spec) or InMemoryEngine()
    )
    StructureReward("generative", store=str(tmp_path))
    assert opened == ["transformers:embedded-gsrm"]


def test_rows_without_steps_have_their_rationale_decomposed(engine):
    reward = StructureReward("prompted", engine="any")
    assert values(score(reward, ["fine"], structures=[], rationales=["the teacher"])) == [1.0]
    assert len(engine.generated[0]) == 2


def test_a_group_costs_one_request_for_each_distinct_trace(engine):
    reward = StructureReward("prompted", engine="any")
    score(reward, ["a", "b", "a", "a"], rationales=["the teacher"])
    assert [len(texts) for texts in engine.generated] == [3]


def test_a_teacher_trace_is_decomposed_once_across_runs_and_a_students_every_time(engine):
    for _ in range(2):
        score(StructureReward("prompted", engine="any"), ["the student"], rationales=["the teacher"])
    first, second = engine.generated
    assert len(first) == 2
    assert len(second) == 1
    assert "the student" in second[0]


def test_decomposer_and_judge_share_an_engine_of_one_name(monkeypatch, tmp_path):
    opened = []

    def open_engine(spec, **options):
        opened.append(spec)
        return InMemoryEngine()

    monkeypatch.setattr(rlkd.engines.pool, "open_engine", open_engine)
    monkeypatch.setenv("RLKD_CACHE", str(tmp_path))
    StructureReward("prompted", "model", engine="one")
    StructureReward("prompted", "model", engine="one", judge_engine="two")
    assert opened == ["one", "one", "two"]


def test_the_decomposer_gets_the_question_of_the_row(engine):
    reward = StructureReward("prompted", engine="any")
    score(reward, ["a"], structures=[STEPS.to_list()], question="The question as it is in the row?")
    score(reward, ["a"], structures=[STEPS.to_list()])
    assert "The question as it is in the row?" in engine.generated[0][0]
    assert "How many clips?" in engine.generated[1][0]


def test_an_attempt_at_a_server_may_take_half_the_time_of_a_batch():
    made = StructureReward("prompted", engine="http://127.0.0.1:9/v1#m", max_new_tokens=10000, deadline=1500)
    assert made.gsrm.decomposer.engine.timeout == 750


def test_a_server_without_a_model_name_is_refused():
    with pytest.raises(ValueError, match="name the model"):
        StructureReward("prompted", engine="http://127.0.0.1:9/v1")


def test_the_scores_of_steps_sum_up_to_the_score_and_lie_where_the_steps_are() -> None:
    text = "I think. In May she sold 48/2 = 24 clips. Twice that is 24*2 = 48. In all she sold 48+24 = 72 clips."
    for alignment in ("teacher", "sum", "f1", "ordered", "answers"):
        reward = StructureReward(alignment=alignment)
        scored, nothing = score(reward, [text, "no steps"], rationales=[TEACHER])
        steps = reward.step_scores(text, scored.detail)
        assert sum(step.value for step in steps) == pytest.approx(scored.value)
        assert [text[slice(*step.place)][:5] for step in steps] == ["In Ma", "Twice", "In al"]
        assert reward.step_scores("no steps", nothing.detail) == []
    assert StructureReward().step_scores("no structure", {"unreadable": "no steps"}) == []
