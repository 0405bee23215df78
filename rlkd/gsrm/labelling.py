"""Labels for structure models: an instruct model decomposes rationales, and its structures are checked.

A label with a number that is not in the trace, or whose last result is not the trace's answer, is retried once; then
the row is left out, with the reason. The checks are our choice: RLKD (arXiv 2505.16142) uses unchecked labels.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlkd.answers import extract_answer, number, numbers
from rlkd.engines import Engine, run
from rlkd.gsrm.decomposers import PromptedDecomposer
from rlkd.gsrm.judges import DeterministicJudge, same_answer
from rlkd.gsrm.model import GSRM
from rlkd.gsrm.prompts import Domain, domain_of
from rlkd.gsrm.traces import ReasoningTrace, question_in, reasoning_part
from rlkd.structure import Structure

# Traces per call of the engine; each batch is stored before the next one starts.
BATCH = 32


def label(
    rows: Sequence[dict[str, Any]],
    engine: Engine,
    *,
    store: Path,
    max_new_tokens: int = 1024,
    deadline: float | None = 600.0,
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Rows with `structures`, one per rationale, made by `engine`; and the number of rows left out, by reason.

    A row that has structures keeps them. Of a row's rationales those stay whose structure passed `fault`. The examples
    in the prompt are those of the row's `domain` (`rlkd.gsrm.prompts.domain_of`). Structures are stored in `store`
    (SQLite) batch by batch, so that an interrupted labelling can be resumed.
    """
    from rich.progress import Progress

    by_domain: dict[Domain, list[ReasoningTrace]] = {}
    for row in rows:
        if not row.get("structures"):
            traces = by_domain.setdefault(domain_of(row.get("domain")), [])
            traces += [ReasoningTrace(question_in(row), text, teacher=True) for text in row.get("rationales") or ()]
    found: dict[ReasoningTrace, Any] = {}
    with Progress(transient=True) as progress:
        task = progress.add_task(f"structures by {engine.name}", total=sum(map(len, by_domain.values())))
        for domain, traces in by_domain.items():
            decomposer = PromptedDecomposer(
                engine, max_new_tokens=max_new_tokens, deadline=deadline, check=fault, domain=domain
            )
            gsrm = GSRM(decomposer, DeterministicJudge(), store=store)
            for start in range(0, len(traces), BATCH):
                batch = traces[start : start + BATCH]
                found.update(zip(batch, run(gsrm.structure(batch)), strict=True))
                progress.advance(task, len(batch))
    labelled, left_out = [], Counter[str]()
    for row in rows:
        if row.get("structures"):
            labelled.append(row)
            continue
        texts = list(row.get("rationales") or ())
        results = [found[ReasoningTrace(question_in(row), text, teacher=True)] for text in texts]
        good = [(text, result) for text, result in zip(texts, results, strict=True) if isinstance(result, Structure)]
        if good:
            structures = [structure.to_list() for _, structure in good]
            labelled.append({**row, "rationales": [text for text, _ in good], "structures": structures})
        else:
            left_out[_reason(results)] += 1
    return labelled, left_out


def fault(trace: ReasoningTrace, structure: Structure) -> str | None:
    """The fault of a structure as a report of its trace; None for a good one.

    >>> from rlkd.structure import Step
    >>> fault(ReasoningTrace("?", "6 * 7 = 42"), Structure([Step("What is it?", "6*7", "43")]))
    'the number 43 is not in the trace'
    """
    if not len(structure):
        return "no steps"
    text = reasoning_part(trace.text)
    shown = set(numbers(text))
    given = shown | set(numbers(trace.question))
    for step in structure:
        if not step.meta or not any(character.isalpha() for character in step.meta):
            return "a step without a sub-question"
        # A result must be in the trace; a calculation may also use the numbers of the problem.
        for field, known in ((step.answer, shown), (step.question, given)):
            for value in numbers(field or ""):
                if value not in known:
                    return f"the number {float(value):g} is not in the trace"
    final, last = extract_answer(trace.text), structure[len(structure) - 1].answer
    if final is not None and number(final) is not None and (last is None or not same_answer(last, final)):
        return f"the last result is {last}, the answer of the trace is {final}"
    return None


def _reason(results: Sequence[Any]) -> str:
    if not results:
        return "no rationale"
    # Without the values, so that equal causes are counted together.
    return re.sub(r"\d[\d.,]*|'.*'", "...", str(results[0]))
