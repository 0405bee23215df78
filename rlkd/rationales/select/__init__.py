"""Selectors: which of the candidate rationales of a question a student should be trained on.

    >>> import asyncio
    >>> from rlkd.rationales.records import Question, candidate
    >>> texts = ["3 + 4 = 7\\n#### 7", "3 + 4 = 8\\n#### 8"]
    >>> question = Question("q", "3 and 4?", "7", tuple(candidate("q", text, "ready") for text in texts))
    >>> kept, dropped = asyncio.run(apply(load_selector("correct"), [question]))
    >>> [each.answer for each in kept[0].candidates], [(each.candidate.answer, each.reason) for each in dropped]
    (['7'], [('8', 'wrong answer')])

| name             | keeps                                                          | needs |
| ---------------- | -------------------------------------------------------------- | ----- |
| `clean`          | what is no rubbish: empty, endless, foreign, leaked, copied    | nothing |
| `correct`        | right answers                                                  | nothing (or an engine) |
| `diverse`        | one of those that go the same way                              | nothing, or an embedder |
| `difficulty`     | those that help this student the most (MoRSD)                  | the student |
| `rank_surprisal` | those that surprise the student and still fit it (RSR)         | the student |
| `srd`            | all or the easiest, with the stage of a curriculum (SRD)       | the student |
| `judge`          | what a model approves of                                       | an engine |
| `random`, `longest`, `shortest` | controls                                        | nothing |

`contract.py` says how to bring one's own. Importing this loads no model library. `docs/selection.md` has the figures.
"""

from rlkd.rationales.select.contract import (
    NOT_MEASURED,
    Dropped,
    Judgement,
    Selector,
    SelectorError,
    apply,
    judges_whole_set,
    load_selector,
)

BUILT_IN = {
    "clean": "rlkd.rationales.select.clean.Clean",
    "correct": "rlkd.rationales.select.correct.Correct",
    "difficulty": "rlkd.rationales.select.difficulty.Difficulty",
    "diverse": "rlkd.rationales.select.diverse.Diverse",
    "judge": "rlkd.rationales.select.judge.Judge",
    "longest": "rlkd.rationales.select.controls.longest",
    "random": "rlkd.rationales.select.controls.random",
    "rank_surprisal": "rlkd.rationales.select.rank_surprisal.RankSurprisal",
    "shortest": "rlkd.rationales.select.controls.shortest",
    "srd": "rlkd.rationales.select.srd.SelectiveReflection",
}

__all__ = [
    "BUILT_IN",
    "NOT_MEASURED",
    "Dropped",
    "Judgement",
    "Selector",
    "SelectorError",
    "apply",
    "judges_whole_set",
    "load_selector",
]
