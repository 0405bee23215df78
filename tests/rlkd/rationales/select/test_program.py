"""The selector `program`: what a program prints decides, in the sandbox only, and each failure has its cause."""

import asyncio

from rlkd.rationales.records import Question, candidate
from rlkd.rationales.select import NOT_MEASURED, apply, load_selector
from rlkd.rationales.select.selection import Selection
from rlkd.sandbox import SandboxError
from tests.helpers.sandbox import skip_without_sandbox

sandboxed = skip_without_sandbox(
    ("test_further_examples_may_come_from_programs", "test_a_broken_sandbox_blames_nobody")
)

PROGRAMS = {
    "bags = 4\nprint(bags * 9)": None,
    "print('The answer is $36.00.')": None,
    "print(6 + 3)\nprint(36.0)\n": None,
    "print(35)": "wrong answer",
    "print('many')": "wrong answer",
    "x = 36": "the program prints nothing",
    "print(1 / 0)": "the program raises ZeroDivisionError",
    "print(36": "the program raises SyntaxError",
    "class Odd(Exception): pass\nraise Odd": "the program ends with an error",
    "print(open('/etc/passwd').read())": "the program raises FileNotFoundError",
}


def question(*texts: str, answer: str | None = "36") -> Question:
    return Question("q", "How many?", answer, tuple(candidate("q", text, "program") for text in texts))


def fenced(program: str) -> str:
    return f"```python\n{program}\n```"


def reasons(asked: Question, **settings) -> dict[str, str]:
    _, dropped = asyncio.run(apply(load_selector("program", settings), [asked]))
    return {each.candidate.text: each.reason for each in dropped}


def test_a_program_stays_if_it_prints_the_right_answer() -> None:
    found = reasons(question(*map(fenced, PROGRAMS)))
    assert {program: found.get(fenced(program)) for program in PROGRAMS} == PROGRAMS


def test_an_endless_program_is_dropped_for_that() -> None:
    endless = fenced("while True: pass")
    assert reasons(question(endless), wall=0.5) == {endless: "the program runs out of time"}


def test_words_alone_are_no_program_and_an_unknown_answer_confirms_none() -> None:
    assert reasons(question("4 * 9 = 36\n#### 36")) == {"4 * 9 = 36\n#### 36": "no program"}
    assert list(reasons(question(fenced("print(36)"), answer=None)).values()) == ["the question has no right answer"]


def test_a_broken_sandbox_blames_nobody(monkeypatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise SandboxError("no memory")

    monkeypatch.setattr("rlkd.rationales.select.program.run_program", fails)
    assert list(reasons(question(fenced("print(36)"))).values()) == [NOT_MEASURED]


def test_further_examples_may_come_from_programs() -> None:
    assert Selection(("program",), further_examples={"revise": 0.5}).further_examples == {"revise": 0.5}
