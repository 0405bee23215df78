"""Alignment rules: which steps of student and teacher are compared, and how the verdicts become a score.

A rule is free of models: it names the pairs that it needs verdicts on, and scores the verdicts of a judge. A rule of
your own is a subclass of `Alignment` in a file, named in the config as `alignment: path/to/rule.py:Rule`
(`docs/structure.md` has an example, and compares the built-in rules).
"""

from rlkd.gsrm.alignment.answers import Answers
from rlkd.gsrm.alignment.cascade import F1, Cascade, Sum, Teacher, step_scores
from rlkd.gsrm.alignment.contract import Alignment, BranchScore, Explanation, Pair, Verdict, best_branch
from rlkd.gsrm.alignment.ordered import Ordered

BUILT_IN = {
    "teacher": "rlkd.gsrm.alignment.cascade.Teacher",
    "sum": "rlkd.gsrm.alignment.cascade.Sum",
    "f1": "rlkd.gsrm.alignment.cascade.F1",
    "ordered": "rlkd.gsrm.alignment.ordered.Ordered",
    "answers": "rlkd.gsrm.alignment.answers.Answers",
}

__all__ = [
    "BUILT_IN",
    "F1",
    "Alignment",
    "Answers",
    "BranchScore",
    "Cascade",
    "Explanation",
    "Ordered",
    "Pair",
    "Sum",
    "Teacher",
    "Verdict",
    "best_branch",
    "step_scores",
]
