"""Selectors: which of the candidate rationales of a question a student should be trained on.

    >>> import asyncio
    >>> from rlkd.rationales.records import Question, candidate
    >>> texts = ["3 + 4 = 7\\n#### 7", "3 + 4 = 8\\n#### 8"]
    >>> question = Question("q", "3 and 4?", "7", tuple(candidate("q", text, "ready") for text in texts))
    >>> kept, dropped = asyncio.run(apply(load_selector("correct"), [question]))
    >>> [each.answer for each in kept[0].candidates], [(each.candidate.answer, each.reason) for each in dropped]
    (['7'], [('8', 'wrong answer')])

`docs/selection.md` lists the built-in ones, `contract.py` describes how to write your own. Importing this loads no
model library.
"""

from rlkd.rationales.select.contract import (
    NOT_MEASURED,
    Selector,
    SelectorError,
    SelectorVerdict,
    apply,
    judges_whole_set,
    load_selector,
)

BUILT_IN = {
    "clean": "rlkd.rationales.select.clean.Clean",
    "correct": "rlkd.rationales.select.correct.Correct",
    "difficulty": "rlkd.rationales.select.rationale_difficulty.DifficultySelector",
    "diverse": "rlkd.rationales.select.diverse.Diverse",
    "judge": "rlkd.rationales.select.judge.JudgeSelector",
    "longest": "rlkd.rationales.select.controls.longest",
    "program": "rlkd.rationales.select.program.ProgramSelector",
    "random": "rlkd.rationales.select.controls.random",
    "rank_surprisal": "rlkd.rationales.select.rank_surprisal.RankSurprisal",
    "shortest": "rlkd.rationales.select.controls.shortest",
    "srd": "rlkd.rationales.select.srd.SelectiveReflection",
}

__all__ = [
    "BUILT_IN",
    "NOT_MEASURED",
    "Selector",
    "SelectorError",
    "SelectorVerdict",
    "apply",
    "judges_whole_set",
    "load_selector",
]
