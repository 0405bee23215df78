import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlkd.data.samples import sample_rows
from rlkd.engines.base import Completion, EngineError
from rlkd.gsrm import (
    DecompositionError,
    GenerativeDecomposer,
    NativeDecomposer,
    PromptedDecomposer,
    ReasoningTrace,
    RulesDecomposer,
    UnreadableReply,
    reasoning_part,
)
from rlkd.gsrm.prompts import fine_tuned_request
from rlkd.structure import JSON_SCHEMA, Step, Structure, parse, render

NATALIA = Structure(
    [
        Step("How many clips did Natalia sell in May?", "48/2", "24"),
        Step("How many clips did Natalia sell altogether?", "48+24", "72"),
    ]
)
ROWS = sample_rows("gsrm")


def decompose(decomposer, *texts, question="?"):
    return asyncio.run(decomposer.decompose([ReasoningTrace(question, text) for text in texts]))


# The reasoning of a completion


@pytest.mark.parametrize(
    ("text", "reasoning"),
    [
        ("just this", "just this"),
        ("<think>this</think>not this", "this"),
        ("\n<think>\nthis\n</think>\n<answer>72</answer>", "this"),
        ("this</think>not this", "this"),
        ("this <answer>72</answer>", "this"),
        ("<think>this, cut o", "this, cut o"),
        ("<think>see <answer>1</answer> so</think>72", "see <answer>1</answer> so"),
        ("</think>not this", ""),
        ("", ""),
    ],
)
def test_reasoning_ends_at_the_closing_think_tag_or_the_answer(text, reasoning):
    assert reasoning_part(text) == reasoning


# Rules


def test_rules_find_a_step_in_every_sentence_with_a_result():
    text = "She sold 48/2 = <<48/2=24>>24 clips in May. That is nice. In all she sold 48+24 = <<48+24=72>>72 clips."
    assert decompose(RulesDecomposer(), text) == [
        Structure(
            [
                Step("She sold 48/2 = 24 clips in May.", "48/2", "24"),
                Step("In all she sold 48+24 = 72 clips.", "48+24", "72"),
            ]
        )
    ]


def test_at_the_level_of_sentences_talk_is_a_step_too():
    [structure] = decompose(RulesDecomposer("sentence"), "That is nice. 1 + 1 = 2.")
    assert [step.answer for step in structure] == [None, "2"]


def test_rules_find_the_teachers_results_in_the_solutions_of_the_sample():
    # The exact structure has a step a line; rules must agree with it wherever the line has one calculator mark.
    structures = decompose(RulesDecomposer("calculation"), *[row["rationales"][0] for row in ROWS])
    checked = 0
    for row, found in zip(ROWS, structures, strict=True):
        lines = row["rationales"][0].splitlines()
        if all(line.count("<<") == 1 for line in lines) and len(found) == len(lines):
            expected = [step["answer"] for step in row["structures"][0]]
            assert [step.answer for step in found] == expected, row["id"]
            checked += 1
    assert checked > len(ROWS) / 2


def test_rules_see_nothing_in_prose_and_nothing_in_nothing():
    assert decompose(RulesDecomposer(), "I think it is blue.", "", "<think></think> 1 + 1 = 2") == [Structure()] * 3


def test_rules_decompose_the_thinking_and_not_the_answer():
    [structure] = decompose(RulesDecomposer(), "<think>1 + 1 = 2</think> so 2 + 2 = 4")
    assert [step.answer for step in structure] == ["2"]


def test_a_solution_truncated_after_a_line_gives_a_prefix_of_its_steps():
    for row in ROWS[:40]:
        lines = row["rationales"][0].splitlines()
        cuts = ["\n".join(lines[:i]) for i in range(len(lines) + 1)]
        *parts, whole = decompose(RulesDecomposer(), *cuts)
        assert len(whole) > 0
        assert all(part.steps == whole.steps[: len(part)] for part in parts), row["id"]


@given(st.sampled_from(ROWS[:40]), st.floats(0, 1))
def test_a_truncated_solution_differs_in_its_last_step_at_most(row, share):
    text = row["rationales"][0]
    whole, part = decompose(RulesDecomposer(), text, text[: int(share * len(text))])
    settled = part.steps[:-1]
    assert settled == whole.steps[: len(settled)]


@given(st.text())
@pytest.mark.slow
def test_rules_never_raise(text):
    [structure] = decompose(RulesDecomposer(), text)
    assert isinstance(structure, Structure)


def test_at_the_level_of_equations_every_calculation_is_a_step_without_a_sentence():
    text = "He has 2 * 3 = 6 apples and 6 + 1 = 7 pears. Nothing else."
    (found,) = decompose(RulesDecomposer("equation"), text)
    assert found == Structure([Step(None, "2*3", "6"), Step(None, "6+1", "7")])


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match="level 'word': expected 'calculation', 'sentence' or 'equation'"):
        RulesDecomposer("word")


def test_other_settings_have_another_fingerprint(scripted):
    decomposers = [
        RulesDecomposer(),
        RulesDecomposer("sentence"),
        NativeDecomposer(),
        PromptedDecomposer(scripted(name="a")),
        PromptedDecomposer(scripted(name="b")),
        PromptedDecomposer(scripted(name="a"), max_new_tokens=7),
    ]
    assert len({decomposer.fingerprint for decomposer in decomposers}) == len(decomposers)


# Native


@pytest.mark.parametrize(
    "text",
    [
        render(NATALIA),
        f"{render(NATALIA)}\n#### 72",
        f"{render(NATALIA)}\n<answer>72</answer>",
        f"<think>{render(NATALIA)}</think>\n<answer>72</answer>",
        f"<think>{render(NATALIA)}</think>\n<step><meta>not thought</meta></step>",
        f"Let me see.\n{render(NATALIA)}\n<step><meta>What else",
    ],
)
def test_native_steps_are_read_with_and_without_think_and_answer_tags(text):
    assert decompose(NativeDecomposer(), text) == [NATALIA]


def test_a_student_that_writes_no_tags_has_no_steps():
    assert decompose(NativeDecomposer(), "She sold 48/2 = 24 clips.") == [Structure()]


# Prompted


def test_a_readable_reply_takes_one_greedy_request(scripted):
    engine = scripted(lambda text, call: f"Sure!\n{render(NATALIA)}")
    assert decompose(PromptedDecomposer(engine), "trace a", "trace b") == [NATALIA, NATALIA]
    assert [len(texts) for texts in engine.generated] == [2]
    assert engine.samplings[0].temperature == 0
    assert engine.samplings[0].json_schema is None


def test_the_prompt_holds_the_problem_and_the_reasoning_after_few_shot_examples_that_parse(scripted):
    engine = scripted(lambda text, call: render(NATALIA))
    decompose(PromptedDecomposer(engine), "<think>the trace</think> the answer", question="the problem")
    [[prompt]] = engine.prompts
    assert [message["role"] for message in prompt] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert "the problem" in prompt[-1]["content"]
    assert "the trace" in prompt[-1]["content"]
    assert "the answer" not in prompt[-1]["content"]
    for shown in (prompt[2]["content"], prompt[4]["content"]):
        parsed = parse(shown)
        assert len(parsed.structure) >= 2
        assert not parsed.dropped


def test_an_engine_that_can_guide_gets_the_schema_and_examples_in_json(scripted):
    engine = scripted(lambda text, call: json.dumps({"steps": NATALIA.to_list()}), guided=True)
    assert decompose(PromptedDecomposer(engine), "trace") == [NATALIA]
    assert engine.samplings[0].json_schema == JSON_SCHEMA
    [[prompt]] = engine.prompts
    assert set(json.loads(prompt[2]["content"])) == {"steps"}


def test_an_unreadable_reply_is_retried_once_with_some_randomness(scripted):
    def write(text, call):
        return "I cannot do that." if "trace b" in text and call == 1 else render(NATALIA)

    engine = scripted(write)
    assert decompose(PromptedDecomposer(engine), "trace a", "trace b") == [NATALIA, NATALIA]
    first, second = engine.generated
    assert len(first) == 2
    assert len(second) == 1
    assert "trace b" in second[0]
    assert engine.samplings[1].temperature > 0


def test_a_trace_whose_reply_is_unreadable_twice_has_failed(scripted):
    engine = scripted(lambda text, call: "I cannot." if "trace b" in text else render(NATALIA))
    good, bad = decompose(PromptedDecomposer(engine), "trace a", "trace b")
    assert good == NATALIA
    assert isinstance(bad, DecompositionError)
    assert "no complete step in the reply of scripted: 'I cannot.'" in str(bad)
    assert len(engine.generated) == 2


def test_a_request_that_the_engine_failed_is_repeated_as_it_was(scripted):
    down = EngineError("scripted", "it is down.")

    def write(text, call):
        return down if "luckless" in text and call == 1 else "what?" if "spoilt" in text else render(NATALIA)

    engine = scripted(write=write)
    luckless, spoilt = decompose(PromptedDecomposer(engine), "luckless", "spoilt")
    assert luckless == NATALIA
    assert isinstance(spoilt, UnreadableReply)
    repeated = {
        texts[0].split("Reasoning:\n")[1].split("\n")[0]: s.temperature
        for texts, s in zip(engine.generated[1:], engine.samplings[1:], strict=True)
    }
    assert repeated == {"spoilt": 0.7, "luckless": 0.0}


def test_an_engine_error_costs_its_own_trace_only(scripted):
    down = EngineError("scripted", "connection refused")
    engine = scripted(lambda text, call: down if "trace b" in text else render(NATALIA))
    good, bad, good_too = decompose(PromptedDecomposer(engine), "trace a", "trace b", "trace c")
    assert good == good_too == NATALIA
    assert isinstance(bad, DecompositionError)
    assert "connection refused" in str(bad)


def test_a_truncated_reply_counts_up_to_its_last_complete_step(scripted):
    engine = scripted(lambda text, call: render(NATALIA)[:-20])
    assert decompose(PromptedDecomposer(engine), "trace") == [Structure(NATALIA.steps[:1])]


@pytest.mark.parametrize("text", ["", "  ", "<think></think> 72", "<answer>72</answer>"])
def test_a_trace_without_reasoning_is_not_sent(scripted, text):
    # It would solve the problem itself, and the student would earn the reward for it.
    engine = scripted(lambda text, call: render(NATALIA))
    assert decompose(PromptedDecomposer(engine), text) == [Structure()]
    assert engine.generated == []


def test_both_attempts_together_keep_to_the_deadline(scripted):
    engine = scripted(lambda text, call: "no")
    decompose(PromptedDecomposer(engine, deadline=10.0), "trace")
    assert sum(engine.deadlines) <= 10.0
    endless = scripted(lambda text, call: "no")
    decompose(PromptedDecomposer(endless, deadline=None), "trace")
    assert endless.deadlines == [None, None]


def test_a_truncated_structure_counts_for_a_student_and_is_an_error_for_a_teacher():
    class CutOff:
        name = "cut-off"
        guided = False

        async def generate(self, prompts, sampling, *, deadline=None):
            return [Completion(render(one) + "\n<step>\n<meta>And th", "length", 9) for _ in prompts]

    one = Structure((Step("How many?", "1 + 1", "2"),))
    traces = [ReasoningTrace("?", "1 + 1 = 2", teacher) for teacher in (False, True)]
    student, teacher = asyncio.run(PromptedDecomposer(CutOff()).decompose(traces))
    assert student == one
    assert isinstance(teacher, DecompositionError)
    assert "max_new_tokens" in str(teacher)


# The generative decomposer.


def test_a_fine_tuned_model_gets_its_training_prompt_and_replies_in_lines(scripted):
    engine = scripted(write=lambda text, call: "How many? | 1+1 | 2\nHow much? | 2*3 | 6")
    (found,) = decompose(GenerativeDecomposer(engine), "<think>1+1 = 2, 2*3 = 6</think>It is 6.", question="How?")
    assert found == Structure([Step("How many?", "1+1", "2"), Step("How much?", "2*3", "6")])
    assert engine.prompts == [[fine_tuned_request("How?", "1+1 = 2, 2*3 = 6")]]
    assert engine.samplings[0].temperature == 0.0


def test_a_fine_tuned_model_is_not_guided_even_where_the_engine_could(scripted):
    engine = scripted(write=lambda text, call: "How many? | 1+1 | 2", guided=True)
    decompose(GenerativeDecomposer(engine), "1+1 = 2")
    assert engine.samplings[0].json_schema is None


def test_all_traces_of_a_batch_go_out_in_one_call(scripted):
    engine = scripted(write=lambda text, call: "How many? | 1+1 | 2")
    decompose(GenerativeDecomposer(engine), *(f"{i}+1 = {i + 1}" for i in range(40)))
    assert [len(call) for call in engine.generated] == [40]


def test_a_reply_without_lines_has_failed_after_one_more_attempt(scripted):
    engine = scripted(write=lambda text, call: "I do not know.")
    (found,) = decompose(GenerativeDecomposer(engine), "1+1 = 2")
    assert isinstance(found, DecompositionError)
    assert [sampling.temperature > 0 for sampling in engine.samplings] == [False, True]


def test_a_line_that_comes_again_counts_once(scripted):
    engine = scripted(write=lambda text, call: "\n".join(["How many? | 1+1 | 2"] * 9))
    (found,) = decompose(GenerativeDecomposer(engine), "1+1 = 2")
    assert len(found) == 1


def test_truncated_lines_count_up_to_the_last_complete_one():
    class CutOff:
        name, guided = "cut off", False

        async def generate(self, prompts, sampling, *, deadline=None):
            return [Completion("How many? | 1+1 | 2\nHow much? | 70+2 | 7", "length", 9) for _ in prompts]

    (found,) = decompose(GenerativeDecomposer(CutOff()), "1+1 = 2")
    assert found == Structure([Step("How many?", "1+1", "2")])


def test_a_structure_with_a_fault_is_retried_and_then_an_error(scripted):
    def only_sevens(trace, structure):
        return None if structure[0].answer == "7" else f"{structure[0].answer} is no 7"

    tagged = "<step><meta>What?</meta><answer>{}</answer></step>"
    engine = scripted(write=lambda text, call: tagged.format("7" if "luck" in text and call == 2 else "6"))
    lucky, unlucky = decompose(PromptedDecomposer(engine, check=only_sevens), "luck", "none")
    assert lucky == Structure([Step("What?", None, "7")])
    assert str(unlucky) == "6 is no 7"
