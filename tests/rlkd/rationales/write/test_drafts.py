"""What becomes of the replies."""

from rlkd.engines import EngineError
from rlkd.rationales.records import Question
from rlkd.rationales.write.writing import Writing
from tests.helpers.scripted_writing import STEPS, Scripted, number_of, question, questions, reply


def test_a_step_keyed_reply_becomes_a_line_a_step_with_its_structure(written) -> None:
    _, [one], _ = written(Scripted(lambda prompt, place: reply(prompt)), [question(3)], STEPS)
    [made] = one.candidates
    assert made.text == "FindUnitPrice: 0 + 3 = 3\nMultiplyByQuantity: 1 + 3 = 4\n#### 7003"
    assert made.path == ("FindUnitPrice", "MultiplyByQuantity")
    assert [step.meta for step in made.structure] == ["Find Unit Price", "Multiply By Quantity"]
    assert [step.answer for step in made.structure] == ["3", "4"]
    assert made.tokens > 0


def test_unusable_json_stays_as_text_and_is_counted(written) -> None:
    engine = Scripted(lambda prompt, place: "So it is 7003.\n#### 7003" if number_of(prompt) == 3 else reply(prompt))
    writer, found, _ = written(engine, [question(n) for n in range(5)], STEPS)
    assert writer.counts.unusable == 1
    assert [c.text for c in found[3].candidates] == ["So it is 7003.\n#### 7003"]
    assert found[3].candidates[0].path == ()
    assert writer.counts.right == 5


def test_a_request_that_fails_leaves_its_question_with_what_else_there_is(written) -> None:
    def answer(prompt, place):
        return EngineError("scripted", "no.") if number_of(prompt) == 2 else reply(prompt)

    writer, found, _ = written(Scripted(answer), [question(n) for n in range(30)], STEPS)
    assert [len(each.candidates) for each in found] == [1, 1, 0] + [1] * 27
    assert writer.counts.failed == {"steps": 1}


def test_a_prompt_of_halved_characters_does_not_reach_the_files(written) -> None:
    _, [one], _ = written(Scripted(lambda prompt, place: "half \ud83d\n#### 3"), [question(3)], STEPS)
    assert one.candidates[0].text == "half ?\n#### 3"


def test_one_late_answer_costs_one_request_however_requests_are_put_together(written) -> None:
    fails = {"on": True}

    def answer(prompt, place):
        if number_of(prompt) == 0 and fails["on"]:
            return EngineError("scripted", "no.")
        return reply(prompt, right="result is known" in prompt[-1]["content"])

    setting = Writing(("steps",), candidates=1, hinted_retry=True, wave=24)
    written(Scripted(answer), questions(24), setting)
    fails["on"] = False
    engine = Scripted(answer)
    written(engine, questions(24), setting)
    assert [number_of(prompt) for prompt in engine.prompts] == [0, 0]


def test_an_answer_of_endless_length_is_wrong_and_not_compared(written, monkeypatch) -> None:
    from rlkd.rationales.write import drafts

    compared = []
    monkeypatch.setattr(
        drafts, "equal_pairs", lambda pairs: compared.extend(pairs) or [left == right for left, right in pairs]
    )
    engine = Scripted(lambda prompt, place: "#### " + "1" * (100_000 if number_of(prompt) == 2 else 1))
    wanted = [Question(f"q{n}", f"What, number {n}?", "1") for n in (1, 2)]
    writer, found, _ = written(engine, wanted, Writing(("free",)))
    assert (writer.counts.right, writer.counts.wrong) == (1, 1)
    assert max(len(left) for left, _ in compared) == 1
    assert all(each.candidates for each in found)


def test_a_program_is_written_without_the_words_around_it(written) -> None:
    engine = Scripted(lambda prompt, place: "Here it is:\n```py\nprint(3 * 4)\n\n```\nIt prints 12.")
    writer, found, _ = written(engine, questions(2), Writing(("program",), temperature=0.0))
    assert [[each.text for each in question.candidates] for question in found] == [
        ["```python\nprint(3 * 4)\n```"]
    ] * 2
    assert {each.source for question in found for each in question.candidates} == {"program"}
    assert (writer.counts.right, writer.counts.wrong) == (0, 0)
    assert "7000" not in engine.sent()
