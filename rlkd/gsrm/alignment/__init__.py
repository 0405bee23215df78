"""Alignment rules: which steps of student and teacher are compared, and how the verdicts become a score.

| rule      | which steps are compared                     | divided by             | source        |
| --------- | -------------------------------------------- | ---------------------- | ------------- |
| `teacher` | the i-th with the i-th, until a meta differs | steps of the teacher   | ours, default |
| `sum`     | the same                                     | nothing                | the paper     |
| `f1`      | the same                                     | mean number of steps   | ours          |
| `ordered` | the best matching in both sides' order       | mean number of steps   | ours          |
| `answers` | those with equal answers, in any order       | mean number of answers | ours          |

A rule is free of models: it names the pairs that it needs verdicts on, and scores the verdicts of a judge. A rule of
your own is a subclass of `Alignment` in a file, named in the config as `alignment: path/to/rule.py:Rule`
(`docs/structure.md` has an example).

The cascade ends where a student takes one surplus step at the start. `ordered` and `answers` forgive that; they tell
right from wrong solutions far better (`rlkd gsrm evaluate` measures by how much).
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
