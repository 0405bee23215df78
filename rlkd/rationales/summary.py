"""The summary of a run: the counts of a selection, and the page that shows both stages."""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkd.files import write_atomically
from rlkd.rationales.records import Candidate, DroppedCandidate, Question
from rlkd.rationales.select.clean import NEAR_COPY

# Upper ends of the classes of log RD (nats per token of the answer); the last class is open.
RD_EDGES = (-4.0, -2.0, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 2.0)

_PAGE = """\
# Rationales
{% if write %}{% set counts = write.counts %}

## Written

{{ counts.questions }} questions, {{ counts.candidates.values() | sum }} candidates: {{ counts.candidates | listed }}.
{% if counts.right + counts.wrong %}
Of those with a gold answer {{ counts.right }} are right, {{ counts.wrong }} not \
({{ '{:.0%}'.format(counts.right / (counts.right + counts.wrong)) }}).
{% endif %}
{% if counts.discarded %}
Discarded: {{ counts.discarded | listed }}.
{% endif %}
{% if counts.requests %}

Teacher: `{{ write.teacher }}`

| stage | requests | failed | tokens written | characters of prompts |
| --- | --- | --- | --- | --- |
{% for stage, requests in counts.requests.items() %}
| {{ stage }} | {{ requests }} | {{ counts.failed.get(stage, 0) }} | {{ counts.tokens.get(stage, 0) }} \
| {{ counts.prompt_characters.get(stage, 0) }} |
{% endfor %}

Truncated at max_new_tokens: {{ counts.truncated }}. Not usable as JSON, kept as text: {{ counts.unusable }}.
{% endif %}
{% if write.paths %}{% set paths = write.paths %}

## Paths

{{ paths.distinct }} distinct paths in {{ paths.used }} step-keyed rationales; entropy \
{{ '{:.2f}'.format(paths.entropy_bits) }} bits.
{% if paths.offered_share is defined %}
The bank holds {{ paths.in_bank }} paths. {{ '{:.0%}'.format(paths.offered_share) }} of the questions were offered \
one; {{ counts.candidates.get('bank', 0) }} candidates follow one unchanged.
{% if paths.message %}

**{{ paths.message }}**
{% endif %}
{% endif %}
{% if counts.barred %}
Right, but kept out of the bank: {{ counts.barred | listed }}.
{% endif %}
{% endif %}
{% endif %}
{% if select %}

## Selected

| stage | candidates | questions | dropped, by reason |
| --- | --- | --- | --- |
{% for each in select.stages %}
| {{ each.stage | cell }} | {{ each.candidates }} | {{ each.questions }} | {{ each.dropped | listed | cell or '-' }} |
{% endfor %}

Kept: {{ select.kept }} rationales of {{ select.questions }} questions, {{ select.characters }} characters.
{% if select.near_copies %}

**{{ select.near_copies }}**
{% endif %}
{% if select.sources %}
Sources: {{ select.sources | listed }}.
{% endif %}
{% if select.further %}
Further examples: {{ select.further | listed }}.
{% endif %}
{% if select.rationale_difficulty %}{% set difficulty = select.rationale_difficulty %}

## Rationale difficulty

log RD, in nats per token of the answer; below 0 the rationale helps.

| log RD | measured | kept |
| --- | --- | --- |
{% for name, measured, kept in difficulty.classes %}
| {{ name }} | {{ measured }} | {{ kept }} |
{% endfor %}
{% if difficulty.leaks is not none %}

In {{ '{:.0%}'.format(difficulty.leaks) }} of the measured ones the scored text still contains the answer.
{% endif %}
{% endif %}
{% endif %}
"""


def update_summary(folder: Path, stage: str, part: Mapping[str, Any]) -> None:
    """Put a stage's part into `summary.json`, and write the page again.

    A new writing removes the part of an earlier selection, which no longer fits.
    """
    path = folder / "summary.json"
    summary: dict[str, Any] = json.loads(path.read_text()) if stage != "write" and path.is_file() else {}
    summary[stage] = dict(part)
    write_atomically(path, json.dumps(summary, indent=1) + "\n")
    write_atomically(folder / "summary.md", page(summary))


def page(summary: Mapping[str, Any]) -> str:
    """The summary as one page of Markdown."""
    from jinja2 import Environment

    environment = Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.filters |= {"listed": _listed, "cell": lambda text: text.replace("|", "/")}
    return environment.from_string(_PAGE).render(summary).rstrip() + "\n"


def _listed(counts: Mapping[str, int]) -> str:
    by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {name}" for name, count in by_count)


def rd_histogram(values: Iterable[float]) -> list[tuple[str, int]]:
    """The number of log RD in each class, as (name, count).

    >>> [(name, count) for name, count in rd_histogram([-3.0, -0.1, 7.0]) if count]
    [('-4 to -2', 1), ('-0.25 to 0', 1), ('above 2', 1)]
    """
    counts = Counter(sum(value > edge for edge in RD_EDGES) for value in values)
    names = [f"up to {RD_EDGES[0]:g}"]
    names += [f"{low:g} to {high:g}" for low, high in itertools.pairwise(RD_EDGES)]
    return [(name, counts[index]) for index, name in enumerate([*names, f"above {RD_EDGES[-1]:g}"])]


class SelectionTally:
    """Counts of a selection: input and drops of each stage, and the RD of the measured candidates."""

    def __init__(self) -> None:
        self.dropped: dict[str, Counter[str]] = defaultdict(Counter)
        self.entered: dict[str, Counter[str]] = defaultdict(Counter)
        self.kept = Counter[str]()
        self.sources = Counter[str]()
        self.copied: dict[str, Counter[str]] = defaultdict(Counter)
        """Of each stage: questions with several candidates, and those that near copies leave one (`one left`)."""
        self.further = Counter[str]()
        """Further examples by kind."""
        self.score_names: set[str] = set()
        """Of the kept candidates."""
        self.log_rds: dict[bool, list[float]] = {True: [], False: []}  # of the kept and of the dropped candidates
        self.leaks: list[float] = []

    def enter(self, stage: str, questions: Sequence[Question]) -> None:
        """Count questions that enter a stage."""
        self.entered[stage]["questions"] += len(questions)
        self.entered[stage]["candidates"] += sum(len(question.candidates) for question in questions)

    def drop(self, each: DroppedCandidate) -> None:
        """Count a candidate that a stage dropped."""
        self.dropped[each.stage][each.reason] += 1
        self._measure(each.candidate, kept=False)

    def compare(
        self, stage: str, before: Sequence[Question], after: Sequence[Question], dropped: Sequence[DroppedCandidate]
    ) -> None:
        """Count the questions that enter a stage with several candidates, and those that near copies leave one."""
        copied = {each.question_id for each in dropped if each.reason == NEAR_COPY}
        self.copied[stage]["several"] += sum(len(question.candidates) > 1 for question in before)
        self.copied[stage]["one left"] += sum(len(each.candidates) == 1 and each.id in copied for each in after)

    def near_copies(self) -> str | None:
        """A warning where near copies leave one rationale to most questions that had several; else None."""
        for stage, counts in self.copied.items():
            left, several = counts["one left"], counts["several"]
            if 2 * left > several:
                return (
                    f"{stage}: {left} of {several} questions with several rationales keep one, "
                    f"since the others are near copies of it, such as the same steps in another order. To keep these, "
                    f"as branches for example: selector_kwargs: {{clean: {{near_copy: 1.0}}}}"
                )
        return None

    def keep(self, question: Question) -> None:
        """Count a question of the result."""
        self.kept["questions"] += 1
        for each in question.candidates:
            self.kept["rationales"] += 1
            self.kept["characters"] += len(each.text)
            self.score_names.update(each.scores)
            self.sources[each.source] += 1
            self._measure(each, kept=True)

    def _measure(self, candidate: Candidate, *, kept: bool) -> None:
        if "log_rd" in candidate.scores:
            self.log_rds[kept].append(candidate.scores["log_rd"])
        if "leaks" in candidate.scores:
            self.leaks.append(candidate.scores["leaks"])

    def to_json(self) -> dict[str, Any]:
        """The part `select` of the summary."""
        difficulty = None
        if any(self.log_rds.values()):
            measured, kept = rd_histogram(itertools.chain(*self.log_rds.values())), rd_histogram(self.log_rds[True])
            classes = [(*pair, count) for pair, (_, count) in zip(measured, kept, strict=True)]
            leaks = sum(self.leaks) / len(self.leaks) if self.leaks else None
            difficulty = {"classes": classes, "leaks": leaks}
        return {
            "stages": [
                {"stage": stage, **entered, "dropped": dict(sorted(self.dropped[stage].items()))}
                for stage, entered in self.entered.items()
            ],
            "questions": self.kept["questions"],
            "kept": self.kept["rationales"],
            "characters": self.kept["characters"],
            "sources": dict(sorted(self.sources.items())),
            **({"near_copies": message} if (message := self.near_copies()) else {}),
            **({"further": dict(sorted(self.further.items()))} if self.further else {}),
            "rationale_difficulty": difficulty,
        }
