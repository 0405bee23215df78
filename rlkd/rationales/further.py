"""Further examples from wrong rationales: to revise them (CoPeD), or to give the answer they lead to (SCOTT).

    >>> from rlkd.rationales.records import candidate
    >>> right = candidate("q1", "3 + 4 = 7\\n#### 7", "ready")
    >>> wrong = candidate("q1", "3 + 4 = 8\\n#### 8", "ready")
    >>> question = Question("q1", "How many are 3 and 4?", "7", (right,))
    >>> [example] = further_examples([question], {"q1": [wrong]}, {"revise": 1.0})
    >>> print(example.question, example.candidates[0].text, sep="\\n---\\n")
    How many are 3 and 4?
    <BLANKLINE>
    This solution is wrong:
    3 + 4 = 8
    #### 8
    <BLANKLINE>
    Correct it.
    ---
    3 + 4 = 7
    #### 7

Both kinds are rows like any other: the wrong rationale is part of the prompt, so that the loss on the completion never
teaches it. `docs/selection.md` names the sources and what differs from them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlkd.errors import UsageError
from rlkd.rationales.records import Candidate, Question, candidate
from rlkd.rationales.select.controls import draw
from rlkd.rationales.select.ngrams import jaccard, ngrams
from rlkd.rationales.select.stripping import strip_announcement
from rlkd.registry import suggestion

REVISE = "revise"
COUNTERFACTUAL = "counterfactual"
KINDS = (REVISE, COUNTERFACTUAL)

REVISE_PROMPT = "{question}\n\nThis solution is wrong:\n{rationale}\n\nCorrect it."
COUNTERFACTUAL_PROMPT = "{question}\n\nThese steps may be wrong:\n{steps}\n\nGive the answer that they lead to."


@dataclass(frozen=True)
class _Possible:
    """A wrong rationale of a question; `key`: its draw."""

    key: float
    question: Question
    wrong: Candidate


def check_shares(shares: Mapping[str, float]) -> None:
    """Raise `UsageError` for an unknown kind, or a share that is no number above 0."""
    for kind, share in shares.items():
        if kind not in KINDS:
            raise UsageError(
                f"further_examples: unknown kind {kind!r}; there are {', '.join(KINDS)}.{suggestion(kind, KINDS)}"
            )
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < math.inf:
            raise UsageError(
                f"further_examples: {kind}={share!r}: expected the number of these examples for each selected "
                "rationale, above 0, such as 0.3"
            )


def further_examples(
    questions: Sequence[Question], wrong: Mapping[str, Sequence[Candidate]], shares: Mapping[str, float], seed: int = 0
) -> list[Question]:
    """The further examples, each a question with one candidate, whose `question` is the whole prompt.

    `wrong`: wrong rationales by question id; those of questions that are not among the selected `questions` are not
    used. `shares`: for each kind its examples per selected rationale, as far as there are wrong ones; the seed and the
    ids draw them, so that a larger share keeps what a smaller one has.
    """
    check_shares(shares)
    rationales = sum(len(question.candidates) for question in questions)
    examples: list[Question] = []
    for kind, share in shares.items():
        possible = [
            _Possible(draw(seed, "\x1f".join((kind, question.id, each.id))), question, each)
            for question in questions
            for each in wrong.get(question.id, ())
            if kind == REVISE or _leads_somewhere(each)
        ]
        possible.sort(key=lambda each: (each.key, each.question.id, each.wrong.id))
        make = _revision if kind == REVISE else _counterfactual
        examples += [make(each.question, each.wrong) for each in possible[: round(share * rationales)]]
    return examples


def _revision(question: Question, wrong: Candidate) -> Question:
    """Question and wrong rationale; the right one that shares most 3-grams with it is the target."""
    grams = ngrams(wrong.text)
    target = max(question.candidates, key=lambda each: (jaccard(grams, ngrams(each.text)), each.id))
    prompt = REVISE_PROMPT.format(question=question.question, rationale=wrong.text.strip())
    return _example(REVISE, question, wrong, prompt, target.text, question.answer, [target])


def _counterfactual(question: Question, wrong: Candidate) -> Question:
    """Question and the steps of the wrong rationale; the answer that they lead to is the target.

    The steps are whole, so that no slip of theirs is in the target.
    """
    prompt = COUNTERFACTUAL_PROMPT.format(question=question.question, steps=strip_announcement(wrong.text))
    return _example(COUNTERFACTUAL, question, wrong, prompt, f"#### {wrong.answer}", wrong.answer, question.candidates)


def _leads_somewhere(wrong: Candidate) -> bool:
    return wrong.answer is not None and bool(strip_announcement(wrong.text).strip())


def _example(
    kind: str,
    question: Question,
    wrong: Candidate,
    prompt: str,
    text: str,
    answer: str | None,
    made_of: Sequence[Candidate],
) -> Question:
    """An example in the last stage, if there are stages, of the right rationales that it is made of."""
    name = f"{question.id}/{kind}/{wrong.id}"
    stages = [each.scores["stage"] for each in made_of if "stage" in each.scores]
    scores = {"stage": max(stages)} if stages else {}
    return Question(name, prompt, answer, (candidate(name, text, kind, scores=scores),), question.columns)
