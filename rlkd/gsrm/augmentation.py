"""Training pairs of a structure model: (question, trace) -> structure, with many variants of each trace.

A model trained on GSM8K's own layout, one step per line, would only learn to look for newlines, so each row gives
several pairs in other layouts. And it must report, not solve: in some pairs a number is wrong, in the trace and in its
structure alike, and in a few the trace belongs to another question. All of this is our choice:
RLKD (arXiv 2505.16142) trains on unchanged traces.

    >>> from rlkd.data.samples import sample_rows
    >>> pair = training_pairs(sample_rows("gsrm")[:1], copies=1, seed=0)[0]
    >>> sorted(pair)
    ['completion', 'id', 'prompt', 'variant']
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlkd.gsrm.calculations import canonical_calculation
from rlkd.gsrm.lines import render_lines
from rlkd.gsrm.prompts import fine_tuned_request
from rlkd.gsrm.traces import question_in
from rlkd.steps import strip_calculator_marks
from rlkd.structure import Step, Structure

# Share of pairs with each change; a pair may have several.
SWAPPED = 0.06
WRONG_NUMBER = 0.3
LEFT_OUT = 0.08
EXCHANGED = 0.05
MERGED = 0.12
TRUNCATED = 0.12
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
_FILLER = (
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
    """A sentence of a solution, and the step that it states."""

    text: str
    step: Step


def has_structure(row: dict[str, Any]) -> bool:
    """Whether a row can be trained on: it has a rationale, and a structure of it with a step."""
    rationales, structures = row.get("rationales") or (), row.get("structures") or ()
    return bool(rationales and rationales[0].strip() and structures and structures[0])


def training_pairs(rows: Sequence[dict[str, Any]], *, copies: int, seed: int) -> list[dict[str, Any]]:
    """`copies` pairs of each row: `prompt` (messages), `completion` (one message), `id` and `variant`, shuffled.

    Rows have `question` or `prompt`, `rationales` and `structures` (`has_structure`), where line i of a rationale is
    step i of its structure; where it is not (a structure made by a teacher), the trace stays unchanged. Deterministic
    by seed. Every pair draws from a stream of its own, so more rows or copies leave existing pairs unchanged, except
    which trace a swapped pair receives.
    """
    solutions = [_sentences(row) for row in rows]
    pairs = []
    for copy in range(copies):
        for i, row in enumerate(rows):
            rng = random.Random(f"{seed}/{copy}/{row['id']}")
            swapped = rng.random() < SWAPPED and len(rows) > 1
            # Drawn from a stream of its own, as it depends on how many rows there are.
            other = (i + random.Random(f"other/{seed}/{copy}/{row['id']}").randrange(1, max(2, len(rows)))) % len(rows)
            chosen, source = (solutions[other], rows[other]) if swapped else (solutions[i], row)
            if isinstance(chosen, str):
                trace, structure, variant = chosen, Structure.from_list(source["structures"][0]), "whole"
            else:
                trace, structure, variant = augmented(chosen, question_in(row), source.get("answer"), rng)
            pairs.append(
                {
                    "id": f"{row['id']}/{copy}",
                    "variant": f"swapped {variant}" if swapped else variant,
                    "prompt": fine_tuned_request(question_in(row), trace),
                    "completion": [{"role": "assistant", "content": render_lines(structure)}],
                }
            )
    random.Random(seed).shuffle(pairs)
    return pairs


def augmented(
    sentences: Sequence[Sentence], question: str, answer: str | None, rng: random.Random
) -> tuple[str, Structure, str]:
    """A variant of the trace with these steps, its structure, and the name of the variant."""
    steps = list(sentences)
    changes = []
    for name, share, change in _CHANGES:
        if rng.random() < share and (changed := change(steps, rng)) is not None:
            steps = changed
            changes.append(name)
    layout = rng.choices(list(LAYOUTS), list(LAYOUTS.values()))[0]
    tail = ""
    if rng.random() < TRUNCATED and len(steps) > 1:
        # Truncated inside a sentence before its result: without it, this is no step.
        kept = rng.randrange(1, len(steps))
        unfinished = steps[kept].text.split("=")[0].split()
        if layout in ("paragraph", "lines"):
            tail = " ".join(unfinished[: rng.randint(1, max(1, len(unfinished) - 1))])
        steps = steps[:kept]
        answer = None
        changes.append("truncated")
    trace = _laid_out(steps, layout, question, rng)
    if tail:
        trace += (" " if layout == "paragraph" else "\n") + tail
    elif answer is not None and rng.random() < 0.6:
        # A wrong number leads to a wrong answer, where there is one.
        final = steps[-1].step.answer or answer
        ending = rng.choice(_ENDINGS).format(final)
        trace += ending.replace("\n", " ") if layout == "paragraph" and rng.random() < 0.5 else ending
    return trace, Structure(sentence.step for sentence in steps), " + ".join([layout, *changes])


def _sentences(row: dict[str, Any]) -> list[Sentence] | str:
    """The row's solution by sentences, or the whole text where its lines are not its steps."""
    text, steps = row["rationales"][0], Structure.from_list(row["structures"][0]).steps
    lines = [line.strip() for line in text.split("\n") if line.strip() and not line.startswith("####")]
    if len(lines) != len(steps):
        return strip_calculator_marks(text)
    return [
        Sentence(strip_calculator_marks(line), replace(step, question=canonical_calculation(step.question)))
        for line, step in zip(lines, steps, strict=True)
    ]


def _wrong_number(steps: list[Sentence], rng: random.Random) -> list[Sentence] | None:
    """A wrong number from some step on, in the text and in the structure alike."""
    first = rng.randrange(len(steps))
    step = steps[first].step
    operands = re.findall(r"\d+(?:\.\d+)?", step.question or "")
    result = [step.answer] if step.answer and re.fullmatch(r"-?\d+(?:\.\d+)?", step.answer) else []
    # A wrong result is the commonest mistake, and spreads to the steps that use it.
    old = rng.choice([*operands, *result * max(1, len(operands))]) if operands or result else None
    if old is None:
        return None
    new = _another(old, rng)
    spreads = old in result
    changed = list(steps)
    for i in range(first, len(steps) if spreads else first + 1):
        only_result = i == first and spreads
        changed[i] = Sentence(
            _swap(steps[i].text, old, new, after_equals=only_result) or "",
            replace(
                steps[i].step,
                question=steps[i].step.question if only_result else _swap(steps[i].step.question, old, new),
                answer=steps[i].step.answer if i == first and not spreads else _swap(steps[i].step.answer, old, new),
            ),
        )
    # The text must show what the structure says, or the model would learn to guess.
    shown = re.search(_NUMBER.format(re.escape(new)), changed[first].text.replace(",", ""))
    return changed if shown else None


def _another(number: str, rng: random.Random) -> str:
    if "." in number:
        return f"{float(number) + rng.choice([-0.5, 0.5, 1, 2, 10]):g}"
    value = int(number)
    near = {value + 1, value - 1, value + 10, value * 2}
    choices = near | {value + rng.randint(2, 9), rng.randint(2, max(9, 2 * value))}
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
    """Merges a step with the one before it, whose result it uses: 48/2 = 24 and 48+24 = 72 become 48+(48/2) = 72."""
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
    filler = [rng.choice(_FILLER)] if rng.random() < 0.25 else []
    if rng.random() < 0.15:
        # A repeated fact of the problem is no step.
        facts = [part for part in re.split(r"(?<=[.!])\s+", question) if part and not part.endswith("?")]
        filler += [rng.choice(facts)] if facts else []
    if layout == "bare":
        for i, step in enumerate(sentence.step for sentence in steps):
            if step.question and step.answer:
                texts[i] = f"{_written(step.question, spaced, times)} = {step.answer}"
        return ("\n" if rng.random() < 0.8 else ", ").join(texts)
    if layout == "asked":
        asked = [sentence.step.meta for sentence in steps]
        return "\n".join(f"{meta} {text}" if meta else text for meta, text in zip(asked, texts, strict=True))
    if layout == "numbered":
        return "\n".join([*filler, *(f"{i}. {text}" for i, text in enumerate(texts, 1))])
    if layout == "headed":
        form = rng.choice(("Step {}: ", "**Step {}:** ", "**Step {}**\n"))
        return "\n\n".join([*filler, *(form.format(i) + text for i, text in enumerate(texts, 1))])
    if layout == "latex":
        return "\n".join([*filler, *(_as_latex(sentence, text) for sentence, text in zip(steps, texts, strict=True))])
    if rng.random() < 0.3:
        texts = [
            f"{rng.choice(_CONNECTORS)} {_lowered(text)}" if i and rng.random() < 0.6 else text
            for i, text in enumerate(texts)
        ]
    if layout == "lines":
        return "\n".join([*filler, *texts])
    return " ".join([*filler, *(text if text[-1:] in ".!?" or rng.random() < 0.3 else f"{text}." for text in texts)])


def _written(text: str, spaced: bool, times: bool) -> str:
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
    return re.sub(r"^(The|She|He|They|It|In|There|So|Then|This) ", lambda found: found[0].lower(), text)
