"""What a structure model learns from: pairs (question, trace) -> structure, the trace in many guises.

A structure is easy to read off GSM8K's own layout: one step stands in each line, and a newline is all that a model
would learn to look for. So each row gives several pairs, in which the same steps come as lines, as one paragraph, as a
numbered list, as bare calculations, with the sub-questions in between or as LaTeX; with talk before them and an answer
after them; with steps left out, exchanged, merged or cut off. And the model is to report, not to solve: in some pairs
a number is wrong, in the trace and in its structure alike, and in a few the trace belongs to another question.

All of this is our choice: RLKD (arXiv 2505.16142) trains on decompositions that a large model wrote of traces as they
were.

    >>> from rlkd.data.rows import sample_rows
    >>> pair = training_pairs(sample_rows("gsrm")[:1], copies=1, seed=0)[0]
    >>> sorted(pair)
    ['completion', 'guise', 'id', 'prompt']
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlkd.data.rows import question_of
from rlkd.gsrm.lines import render_lines
from rlkd.steps import strip_calculator_marks
from rlkd.structure import Step, Structure

INSTRUCTION = "List the steps of the reasoning, one a line: sub-question | calculation | result."

# How often each change is made; several may meet in one pair.
SWAPPED = 0.06
WRONG_NUMBER = 0.3
LEFT_OUT = 0.08
EXCHANGED = 0.05
MERGED = 0.12
CUT_OFF = 0.12
LAYOUTS = {
    "paragraph": 0.4,
    "lines": 0.14,
    "numbered": 0.1,
    "headed": 0.08,
    "bare": 0.16,
    "asked": 0.05,
    "latex": 0.07,
}

_NUMBER = r"(?<![\d.,]){}(?![\d]|[.,]\d)"
# A letter of its own or behind a number (6x), but not an `x` that multiplies what follows.
_VARIABLE = re.compile(r"(?<![A-Za-z\\])(?!a\b|[xX]\s*[\d($.])[A-Za-z](?![A-Za-z'’])")
# An operator that has lost what it stood between.
_DANGLING = re.compile(r"[-+*/^][+*/^]|[-+*/^]$|^[*/^]|\([*/^]|[-+*/^]\)|--")
_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
_OPERATORS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-"})
_TALK = (
    "Let's solve this step by step.",
    "Let's think step by step.",
    "Okay, let me work this out.",
    "First, what do we know?",
    "To find the answer, we need a few calculations.",
    "Here is the solution.",
    "Hmm, let me see.",
)
_CONNECTORS = ("So", "Then", "Next,", "Now", "Therefore,", "This means that", "After that,", "Thus,")
_ENDINGS = ("\n#### {}", "\n#### {}", " The answer is {}.", "\nThe final answer is {}.", "\nA: {}", "\n\\boxed{{{}}}")


@dataclass(frozen=True)
class Sentence:
    """One step of a solution: what is written, and what it is."""

    text: str
    step: Step


def request(question: str, trace: str) -> list[dict[str, str]]:
    """The messages that ask a fine-tuned structure model for the steps of a trace; the same in training and in use."""
    return [
        {"role": "system", "content": INSTRUCTION},
        {"role": "user", "content": f"Problem: {question.strip()}\n\nReasoning: {trace.strip()}"},
    ]


def has_structure(row: dict[str, Any]) -> bool:
    """Whether a row can be learnt from: a rationale, and a structure of it with a step."""
    rationales, structures = row.get("rationales") or (), row.get("structures") or ()
    return bool(rationales and rationales[0].strip() and structures and structures[0])


def training_pairs(rows: Sequence[dict[str, Any]], *, copies: int, seed: int) -> list[dict[str, Any]]:
    """`copies` pairs of each row: `prompt` (messages), `completion` (one message), `id` and `guise`, shuffled.

    Rows have `question` or `prompt`, `rationales` and `structures` (`has_structure`), where line i of a rationale is
    step i of its structure; for a row that is not so (a structure made by a teacher), the trace stays as it is.
    Deterministic by seed; every pair draws from a stream of its own, so that more rows or copies leave the others as
    they are, but for whose trace a swapped one gets.
    """
    solutions = [_sentences(row) for row in rows]
    pairs = []
    for copy in range(copies):
        for i, row in enumerate(rows):
            rng = random.Random(f"{seed}/{copy}/{row['id']}")
            swapped = rng.random() < SWAPPED and len(rows) > 1
            # Drawn from a stream of its own, as it depends on how many rows there are.
            other = (i + random.Random(f"other/{seed}/{copy}/{row['id']}").randrange(1, max(2, len(rows)))) % len(rows)
            chosen = solutions[other if swapped else i]
            if isinstance(chosen, str):
                trace, structure, guise = (
                    chosen,
                    Structure.from_list(rows[other if swapped else i]["structures"][0]),
                    "whole",
                )
            else:
                answer = rows[other if swapped else i].get("answer")
                trace, structure, guise = disguise(chosen, question_in(row), answer, rng)
            pairs.append(
                {
                    "id": f"{row['id']}/{copy}",
                    "guise": f"swapped {guise}" if swapped else guise,
                    "prompt": request(question_in(row), trace),
                    "completion": [{"role": "assistant", "content": render_lines(structure)}],
                }
            )
    random.Random(seed).shuffle(pairs)
    return pairs


def disguise(
    sentences: Sequence[Sentence], question: str, answer: str | None, rng: random.Random
) -> tuple[str, Structure, str]:
    """A trace of these steps in some guise, its structure, and the name of the guise."""
    steps = list(sentences)
    changes = []
    for name, share, change in _CHANGES:
        if rng.random() < share and (changed := change(steps, rng)) is not None:
            steps = changed
            changes.append(name)
    layout = rng.choices(list(LAYOUTS), list(LAYOUTS.values()))[0]
    tail = ""
    if rng.random() < CUT_OFF and len(steps) > 1:
        # Cut inside a sentence before its result: that step has no result, and is not one.
        kept = rng.randrange(1, len(steps))
        unfinished = steps[kept].text.split("=")[0].split()
        tail = (
            " ".join(unfinished[: rng.randint(1, max(1, len(unfinished) - 1))])
            if layout in ("paragraph", "lines")
            else ""
        )
        steps = steps[:kept]
        answer = None
        changes.append("cut off")
    trace = _laid_out(steps, layout, question, rng)
    if tail:
        trace += (" " if layout == "paragraph" else "\n") + tail
    elif answer is not None and rng.random() < 0.6:
        # A wrong number leads to a wrong answer, where there is one.
        final = steps[-1].step.answer or answer
        ending = rng.choice(_ENDINGS).format(final)
        trace += ending.replace("\n", " ") if layout == "paragraph" and rng.random() < 0.5 else ending
    return trace, Structure(sentence.step for sentence in steps), " + ".join([layout, *changes])


def canonical_calculation(text: str | None) -> str | None:
    """A calculation without spaces, currency, units and thousands commas: `14 pieces/house * 60 houses` is `14*60`.

    So the same calculation reads the same, however a student writes it. What is no arithmetic after that stays as it
    was.
    """
    if text is None:
        return None
    text = _FRACTION.sub(r"\1/\2", text)
    if _VARIABLE.search(text):
        return text.strip()
    plain = text.translate(_OPERATORS).replace("\\times", "*").replace("\\cdot", "*").replace("\\div", "/")
    plain = re.sub(r"(?<![A-Za-z])(?:[xX](?=\s*[\d($.])|of\b|times\b)", "*", plain)
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", plain)
    plain = re.sub(r"(?<=\d)-(?=[A-Za-z])", " ", plain)  # 8-hour
    # A unit goes together with a slash inside it ("pieces/house"), but not with the slash of a division.
    plain = re.sub(r"[A-Za-z][\w'’-]*(?:\s*/\s*[A-Za-z][\w'’-]*)*|/[A-Za-z][\w'’-]*|[$€£\\]", " ", plain)
    if re.search(r"[\d).]\s+[\d(.]", plain):
        return text.strip()
    plain = re.sub(r"\s", "", plain)
    # A bracket of the sentence around it.
    while plain.count("(") > plain.count(")") and plain.startswith("("):
        plain = plain[1:]
    while plain.count(")") > plain.count("(") and plain.endswith(")"):
        plain = plain[:-1]
    if _DANGLING.search(plain):
        return text.strip()
    is_arithmetic = re.fullmatch(r"[-+]?[(\d.][-+*/^().%\d]*", plain) and re.search(r"\d.*[-+*/^].*\d", plain)
    return plain if is_arithmetic else text.strip()


def question_in(row: dict[str, Any]) -> str:
    """The problem of a row that has it as `question`, or in its `prompt`."""
    return row.get("question") or question_of(row["prompt"])


def _sentences(row: dict[str, Any]) -> list[Sentence] | str:
    """The row's solution sentence by sentence, or the whole text where its lines are not its steps."""
    text, steps = row["rationales"][0], Structure.from_list(row["structures"][0]).steps
    lines = [line.strip() for line in text.split("\n") if line.strip() and not line.startswith("####")]
    if len(lines) != len(steps):
        return strip_calculator_marks(text)
    return [
        Sentence(strip_calculator_marks(line), replace(step, question=canonical_calculation(step.question)))
        for line, step in zip(lines, steps, strict=True)
    ]


def _wrong_number(steps: list[Sentence], rng: random.Random) -> list[Sentence] | None:
    """One number is another from some step on, in the text and in the structure alike."""
    place = rng.randrange(len(steps))
    step = steps[place].step
    operands = re.findall(r"\d+(?:\.\d+)?", step.question or "")
    result = [step.answer] if step.answer and re.fullmatch(r"-?\d+(?:\.\d+)?", step.answer) else []
    # A wrong result is the commonest mistake, and spreads to the steps that use it.
    old = rng.choice([*operands, *result * max(1, len(operands))]) if operands or result else None
    if old is None:
        return None
    new = _another(old, rng)
    spreads = old in result
    changed = list(steps)
    for i in range(place, len(steps) if spreads else place + 1):
        only_result = i == place and spreads
        changed[i] = Sentence(
            _swap(steps[i].text, old, new, after_equals=only_result) or "",
            replace(
                steps[i].step,
                question=steps[i].step.question if only_result else _swap(steps[i].step.question, old, new),
                answer=steps[i].step.answer if i == place and not spreads else _swap(steps[i].step.answer, old, new),
            ),
        )
    # The text must show what the structure says, or the model would learn to guess.
    shown = re.search(_NUMBER.format(re.escape(new)), changed[place].text.replace(",", ""))
    return changed if shown else None


def _another(number: str, rng: random.Random) -> str:
    if "." in number:
        return f"{float(number) + rng.choice([-0.5, 0.5, 1, 2, 10]):g}"
    value = int(number)
    choices = {
        value + 1,
        value - 1,
        value + 10,
        value * 2,
        value + rng.randint(2, 9),
        rng.randint(2, max(9, 2 * value)),
    }
    return str(rng.choice(sorted(c for c in choices if c > 0 and c != value)))


def _swap(text: str | None, old: str, new: str, *, after_equals: bool = False) -> str | None:
    if text is None:
        return None
    head, equals, tail = text.rpartition("=") if after_equals else ("", "", text)
    return head + equals + re.sub(_NUMBER.format(re.escape(old)), new, tail)


def _leave_out(steps: list[Sentence], rng: random.Random) -> list[Sentence] | None:
    if len(steps) < 3:
        return None
    gone = rng.randrange(len(steps) - 1)
    return steps[:gone] + steps[gone + 1 :]


def _exchange(steps: list[Sentence], rng: random.Random) -> list[Sentence] | None:
    if len(steps) < 2:
        return None
    first = rng.randrange(len(steps) - 1)
    return [*steps[:first], steps[first + 1], steps[first], *steps[first + 2 :]]


def _merge(steps: list[Sentence], rng: random.Random) -> list[Sentence] | None:
    """A step takes in the one before it, whose result it uses: 48/2 = 24 and 48+24 = 72 become 48+48/2 = 72."""
    possible = []
    for i in range(1, len(steps)):
        before, step = steps[i - 1].step, steps[i].step
        if before.answer and before.question and step.question:
            used = re.findall(_NUMBER.format(re.escape(before.answer)), step.question)
            if len(used) == 1 and len(re.findall(_NUMBER.format(re.escape(before.answer)), steps[i].text)) == 1:
                possible.append(i)
    if not possible:
        return None
    i = rng.choice(possible)
    inner = f"({steps[i - 1].step.question})"
    pattern = _NUMBER.format(re.escape(steps[i - 1].step.answer or ""))
    step = replace(steps[i].step, question=re.sub(pattern, lambda _: inner, steps[i].step.question or ""))
    merged = Sentence(re.sub(pattern, lambda _: inner, steps[i].text), step)
    return [*steps[: i - 1], merged, *steps[i + 1 :]]


_CHANGES: tuple[tuple[str, float, Callable[[list[Sentence], random.Random], list[Sentence] | None]], ...] = (
    ("step left out", LEFT_OUT, _leave_out),
    ("exchanged", EXCHANGED, _exchange),
    ("merged", MERGED, _merge),
    ("wrong number", WRONG_NUMBER, _wrong_number),
)


def _laid_out(steps: Sequence[Sentence], layout: str, question: str, rng: random.Random) -> str:
    spaced, times = rng.random() < 0.5, rng.random() < 0.2
    texts = [_written(sentence.text, spaced, times) for sentence in steps]
    talk = [rng.choice(_TALK)] if rng.random() < 0.25 else []
    if rng.random() < 0.15:
        # A fact of the problem, repeated: it is no step.
        facts = [part for part in re.split(r"(?<=[.!])\s+", question) if part and not part.endswith("?")]
        talk += [rng.choice(facts)] if facts else []
    if layout == "bare":
        bare = [
            f"{_written(s.step.question, spaced, times)} = {s.step.answer}"
            if s.step.question and s.step.answer
            else text
            for s, text in zip(steps, texts, strict=True)
        ]
        return "\n".join(bare) if rng.random() < 0.8 else ", ".join(bare)
    if layout == "asked":
        return "\n".join(
            f"{s.step.meta} {text}" if s.step.meta else text for s, text in zip(steps, texts, strict=True)
        )
    if layout == "numbered":
        return "\n".join([*talk, *(f"{i}. {text}" for i, text in enumerate(texts, 1))])
    if layout == "headed":
        form = rng.choice(("Step {}: ", "**Step {}:** ", "**Step {}**\n"))
        return "\n\n".join([*talk, *(form.format(i) + text for i, text in enumerate(texts, 1))])
    if layout == "latex":
        return "\n".join([*talk, *(_as_latex(sentence, text) for sentence, text in zip(steps, texts, strict=True))])
    if rng.random() < 0.3:
        texts = [
            f"{rng.choice(_CONNECTORS)} {_lowered(text)}" if i and rng.random() < 0.6 else text
            for i, text in enumerate(texts)
        ]
    if layout == "lines":
        return "\n".join([*talk, *texts])
    return " ".join([*talk, *(text if text[-1:] in ".!?" or rng.random() < 0.3 else f"{text}." for text in texts)])


def _written(text: str | None, spaced: bool, times: bool) -> str:
    text = text or ""
    if spaced:
        text = re.sub(r"(?<=[\d)%])\s*([-+*/=])\s*(?=[$(\d.])", r" \1 ", text)
    if times:
        text = re.sub(r"(?<=[\d)%])\s*\*\s*(?=[$(\d.])", " × " if spaced else "×", text)
    return text


def _as_latex(sentence: Sentence, text: str) -> str:
    step = sentence.step
    if not (step.question and step.answer):
        return text
    formula = step.question.replace("*", " \\times ").replace("%", "\\%")
    return f"{(step.meta or 'Next').rstrip('?')}:\n\\[ {formula} = {step.answer} \\]"


def _lowered(text: str) -> str:
    first, _, rest = text.partition(" ")
    return (
        f"{first.lower()} {rest}"
        if first in ("The", "She", "He", "They", "It", "In", "There", "So", "Then", "This")
        else text
    )
