"""Rationale difficulty: how much easier a rationale makes the right answer for one student.

    log RD(r) = NLL(a | x, r) - NLL(a | x)            NLL: mean surprisal of the answer's tokens, in nats

Below 0 the rationale r of the question x helps this student to the answer a, above 0 it confuses it. The name is
MoRSD's (arXiv 2509.23574), whose text we know from its abstract; the formula is our choice, the natural reading of
"the student's ability to generate the correct answer under a given rationale". The student is the one before training.

The answer is taken out of r first (`strip_answer`): else the rationale that says it most plainly would win. Only its
announcement and the result of the last calculation go, since answers are often small numbers which the question holds
too; how often the answer still stands there is measured (`leaks`).

What is asked is `score` of any engine, for texts of this form, the second without the rationale, once a question:

    Question: <x>
    Answer: <r, stripped>
    #### <a>

Requests of one question follow each other, so that an engine can read x once (the transformers engine does).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rlkd.answers import extract_answer, number, numbers
from rlkd.cache import Cache, cache_key
from rlkd.engines.base import Engine, EngineError
from rlkd.rationales.records import Question
from rlkd.steps import strip_calculator_marks

TEMPLATE = "Question: {question}\nAnswer: "
CUE = "\n####"

# Requests of one call of the engine: what has been measured is kept after each.
_REQUESTS = 1024

# Each run of signs is tried once, at its beginning, and given up as a whole: linear.
_SENTENCE_END = re.compile(r"(?<![.!?])[.!?]++[\"'’”)\]*]*+(?=\s|\Z)")
_ANNOUNCEMENT = re.compile(r"####|\\boxed\{|</?answer>|\banswer is\b|\banswer:", re.IGNORECASE)
# A line that is an answer and nothing else: `A: 18`, `A: $1.50 a day.`; not a step of a text in parts, `A: 5 + 3 = 8`.
_LABELLED_ANSWER = re.compile(r"\s*+A:\s*+[^\s=]*+(?>(?:\s++[^\W\d_]++){0,2})[\s.!]*+", re.IGNORECASE)
_ANSWER_BLOCK = re.compile(r"<answer>(?:(?!<answer>).)*?</answer>", re.IGNORECASE | re.DOTALL)
# An equals sign; not of <=, >=, != or ==.
_EQUALS = re.compile(r"(?<![<>=!:])=(?!=)|≈|\\approx\b|\bequals\b")
_LETTER_OR_DIGIT = re.compile(r"[^\W_]")


def strip_answer(text: str) -> str:
    """A rationale without its answer: without the sentences that announce it and the last equation's right side.

    An announcement is what `rlkd.answers.extract_answer` reads (`#### 72`, a box, an answer tag, "the answer is"), and
    `Answer:`, and a last line of `A:` with nothing but an answer behind it. The right side of an equation ends with
    its sentence. Calculator marks go too. What else is said after the last equation stays, and may hold the answer:
    `leaks`. Takes time linear in the text.

    >>> strip_answer("48/2 = <<48/2=24>>24 in May.\\nSo 48 + 24 = 72 clips in all.\\n#### 72")
    '48/2 = 24 in May.\\nSo 48 + 24 ='
    """
    text = strip_calculator_marks(text).rpartition("</think>")[2]
    text = _ANSWER_BLOCK.sub("", text)
    lines = []
    for line in text.split("\n"):
        said = _sentences(line)
        left = [sentence for sentence in said if not _ANNOUNCEMENT.search(sentence)]
        if left or not line.strip():
            lines.append(line if len(left) == len(said) else "".join(left).rstrip())
    text = "\n".join(lines).strip()
    before, _, last = text.rpartition("\n")
    text = before.rstrip() if _LABELLED_ANSWER.fullmatch(last) else text
    right_side = _last_right_side(text)
    if right_side is None:
        return text
    line_end = text.find("\n", right_side)
    line_end = len(text) if line_end < 0 else line_end
    sentence_end = _SENTENCE_END.search(text, right_side, line_end)
    after = text[sentence_end.end() if sentence_end else line_end :]
    return (text[:right_side] + after).strip()


def leaks(stripped: str, answer: str) -> bool:
    """Whether an answer still stands in a text: as a number where it is one, else as a word.

    Signs, currency, units and thousands commas do not matter for a number, nor case for a word of several letters.
    """
    value = number(answer)
    if value is not None:
        return abs(value) in numbers(stripped)
    answer = answer.strip()
    flags = re.IGNORECASE if len(answer) > 1 else 0
    return bool(answer) and re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", stripped, flags) is not None


@dataclass(frozen=True, slots=True)
class Difficulty:
    """What was measured of one rationale, in nats a token of the answer. `leaks`: of `leaks`, after stripping."""

    nll: float
    nll_without: float
    leaks: bool

    @property
    def log_rd(self) -> float:
        """The logarithm of the rationale difficulty; lower is easier."""
        return self.nll - self.nll_without


class DifficultyMeter:
    """Measures rationales under one student.

    Args:
        student: an engine.
        template: the text before a rationale, with `{question}` in it. For an instruct model, write its chat markup
            out here: an engine cannot go on in the middle of a message.
        cue: what stands between rationale and answer; a space and the answer follow.
        cache: where what was measured is kept, under the engine's name and the exact text.
        deadline: seconds for one call of the engine, of about a thousand requests.
    """

    def __init__(
        self,
        student: Engine,
        *,
        template: str = TEMPLATE,
        cue: str = CUE,
        cache: Cache | None = None,
        deadline: float | None = None,
    ) -> None:
        check_template(template)
        self.student = student
        self.template = template
        self.cue = cue
        self.cache = cache
        self.deadline = deadline

    async def measure(self, questions: Sequence[Question]) -> list[list[Difficulty | EngineError | None]]:
        """The difficulty of every candidate, one list a question; the error where the engine failed.

        None where there is nothing to measure: a question without a right answer.
        """
        found: list[list[Difficulty | EngineError | None]] = []
        for some in _portions(questions):
            found += await self._measure(some)
        return found

    def requests(self, question: Question) -> list[tuple[str, str]]:
        """What is asked about a question: (context, answer), first without a rationale, then for each candidate.

        Empty for a question without a right answer.
        """
        answer = _gold(question)
        if answer is None:
            return []
        before = self.template.replace("{question}", question.question)
        rationales = ["", *(strip_answer(each.text) for each in question.candidates)]
        return [((before + rationale).rstrip() + self.cue, f" {answer}") for rationale in rationales]

    async def _measure(self, questions: Sequence[Question]) -> list[list[Difficulty | EngineError | None]]:
        asked = [self.requests(question) for question in questions]
        known = await nlls(self.student, [request for some in asked for request in some], self.cache, self.deadline)
        return [_read(question, requests, known) for question, requests in zip(questions, asked, strict=True)]


async def nlls(
    student: Engine, requests: Sequence[tuple[str, str]], cache: Cache | None, deadline: float | None
) -> Mapping[tuple[str, str], float | EngineError]:
    """The mean surprisal of each continuation after its context, in nats a token, from the cache where it is known.

    Equal requests are asked once. A continuation of no tokens is an error in its place.
    """
    wanted = list(dict.fromkeys(requests))
    known: dict[tuple[str, str], float | EngineError] = {}
    keys = {request: cache_key("mean surprisal", 1, student.name, *request) for request in wanted}
    if cache is not None:
        kept = cache.get(list(keys.values()))
        known |= {request: kept[key] for request, key in keys.items() if key in kept}
    missing = [request for request in wanted if request not in known]
    scored = await student.score(list(missing), deadline=deadline) if missing else []
    for request, reply in zip(missing, scored, strict=True):
        if isinstance(reply, EngineError):
            known[request] = reply
        elif not reply.n_tokens:
            known[request] = EngineError(student.name, f"the text {request[1][:80]!r} has no tokens.")
        else:
            known[request] = -reply.total / reply.n_tokens
    if cache is not None:
        cache.put({keys[r]: value for r in missing if not isinstance(value := known[r], EngineError)})
    return known


def check_template(template: str) -> None:
    """Raise ValueError for a template that has no place for the question."""
    if "{question}" not in template:
        raise ValueError(f"template={template!r}: expected a text with {{question}} in it, such as {TEMPLATE!r}")


def _portions(questions: Sequence[Question]) -> list[Sequence[Question]]:
    """The questions in runs of about `_REQUESTS` candidates."""
    portions: list[Sequence[Question]] = []
    start = size = 0
    for place, question in enumerate(questions):
        size += 1 + len(question.candidates)
        if size >= _REQUESTS:
            portions.append(questions[start : place + 1])
            start, size = place + 1, 0
    return [*portions, questions[start:]] if start < len(questions) else portions


def _read(
    question: Question, requests: Sequence[tuple[str, str]], known: Mapping[tuple[str, str], float | EngineError]
) -> list[Difficulty | EngineError | None]:
    if not requests:
        return [None] * len(question.candidates)
    without, *found = (known[request] for request in requests)
    if isinstance(without, EngineError):
        return [without] * len(question.candidates)
    results: list[Difficulty | EngineError | None] = []
    for each, nll in zip(question.candidates, found, strict=True):
        if isinstance(nll, EngineError):
            results.append(nll)
        else:
            results.append(Difficulty(nll, without, leaks(strip_answer(each.text), _gold(question) or "")))
    return results


def _gold(question: Question) -> str | None:
    """The right answer itself, without what announces it; None where there is none."""
    if question.answer is None or not question.answer.strip():
        return None
    return extract_answer(question.answer) or question.answer.strip()


def _last_right_side(text: str) -> int | None:
    """Where the right side of the last equation begins: behind an equals sign with something after it on its line."""
    end = len(text)
    for line in reversed(text.split("\n")):
        said = max((match.start() for match in _LETTER_OR_DIGIT.finditer(line)), default=-1)
        signs = [match.end() for match in _EQUALS.finditer(line) if match.end() <= said]
        if signs:
            return end - len(line) + signs[-1]
        end -= len(line) + 1
    return None


def _sentences(line: str) -> tuple[str, ...]:
    """A line cut after its sentences; joined, they are the line."""
    ends = [match.end() for match in _SENTENCE_END.finditer(line)]
    cuts = [0, *ends, len(line)]
    return tuple(line[start:stop] for start, stop in pairwise(cuts) if stop > start)
