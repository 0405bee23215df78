r"""Find the final answer of a text: the announcements, and which of them counts.

`docs/answers.md` has the rule as a table. In short: behind all thoughts, the last announcement counts.

>>> extract_answer("The answer is 71. No, wait.\n**Final Answer:** 72 clips")
'72 clips'
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from rlkd.answers.boxes import boxes, distinct, last_boxes
from rlkd.answers.marks import last_mark
from rlkd.answers.remarks import without_remark
from rlkd.answers.sentences import first_sentence, last_plain_result, last_sentence, unmarked
from rlkd.answers.thoughts import after_thought

_SPECIAL_TOKEN = re.compile(
    r"<[|｜][^<>|｜\s]{1,40}[|｜]>|</?s>|<(?:eos|bos|pad|end_of_turn|start_of_turn|end_of_utterance)>|\[/?INST\]"
)
_LATEX_LABEL = re.compile(
    r"\\(?:text(?:bf|it|rm|tt|sf)?|mathbf|mathrm|emph|underline)\s?\{([^{}\n]{0,40}answer[^{}\n]{0,200})\}", re.I
)
_HTML = re.compile(r"</?(?:b|strong|em|u)>", re.IGNORECASE)
_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_END_TAG = re.compile(r"</answer>", re.IGNORECASE)
_NUMBER = re.compile(r"-?\$?(?:\d+(?:,\d+)*(?:\.\d+)?|\.\d+)(?:/\d+)?%?")

Fallback = Literal["none", "last_number"]


@dataclass(frozen=True)
class Announcement:
    """An announced answer; in a sentence (also after a label or mark), `text` is the rest of its line.

    A box or a tag may hold an announcement in turn: `\\boxed{Answer: 72}`, `<answer>#### 72</answer>`.
    """

    start: int
    text: str
    in_sentence: bool = False


def extract_answer(text: str, fallback: Fallback = "none", *, prefilled: bool = False) -> str | None:
    """Return the last explicitly announced answer of a text, or None.

    Announced means `#### ...`, `\\boxed{...}`, `<answer>...</answer>`, "the answer is ..." or "Answer: ...". The last
    announcement counts; a truncated one does not, nor does a thought (see `after_thought`, also for `prefilled`).
    `fallback="last_number"` takes the last number of a text without an announcement; that also rewards a truncated
    text that happens to stop at the right number.
    """
    said = announcement(text, prefilled=prefilled)
    if said is not None:
        answer = without_remark(first_sentence(said.text)) if said.in_sentence else said.text
        return unmarked(answer) or None
    if fallback == "last_number" and (numbers := _NUMBER.findall(after_thought(text, prefilled))):
        return numbers[-1]
    return None


def announcement(text: str, *, prefilled: bool = False) -> Announcement | None:
    """The last announcement of a text, or None. Takes time linear in the text."""
    text = _HTML.sub("", _SPECIAL_TOKEN.sub("\n", after_thought(text, prefilled)))
    text = _LATEX_LABEL.sub(r"\1", text)
    found = [Announcement(*each) for each in (last_boxes(text), _last_tag(text)) if each]
    found += [Announcement(*each, in_sentence=True) for each in (last_mark(text), last_sentence(text)) if each]
    if not found and (last := last_plain_result(text) or last_sentence(text, remarks=True)):
        return Announcement(*last, in_sentence=True)
    said = max(found, key=lambda each: each.start, default=None)
    around = max((each for each in found if not each.in_sentence), key=lambda each: each.start, default=None)
    if said is None or around is None:
        return said
    place = text.find(around.text, around.start)
    if said is around or 0 <= place <= said.start < place + len(around.text):
        inside = [each for each in (last_mark(around.text), last_sentence(around.text)) if each]
        return Announcement(around.start, max(inside)[1], in_sentence=True) if inside else around
    return said


def answer_and_gold(text: str, gold: str, fallback: Fallback = "none", *, prefilled: bool = False) -> tuple[str, str]:
    r"""The answer that a text announces, or "", and the gold answer, in a form to compare.

    A gold answer with several boxes needs all of their values: it is compared with the last boxes of the text.

    >>> answer_and_gold(r"\boxed{3}, and for the other root \boxed{4}", r"\boxed{3} or \boxed{4}")
    ('3, 4', '3, 4')
    """
    needed = _boxed(gold)
    given = _boxed(after_thought(text, prefilled)) if len(needed) > 1 else []
    if len(needed) > 1 and len(given) >= len(needed):
        return ", ".join(given[-len(needed) :]), ", ".join(needed)
    right = ", ".join(needed) if len(needed) > 1 else extract_answer(gold) or gold.strip()
    return extract_answer(text, fallback, prefilled=prefilled) or "", right


def _boxed(text: str) -> list[str]:
    return distinct([content for _, _, content in boxes(text)])


def _last_tag(text: str) -> tuple[int, str] | None:
    # After the last closing tag, the search from each opening tag would go to the end of the text.
    end = max((match.end() for match in _END_TAG.finditer(text)), default=0)
    found = [match for match in _TAG.finditer(text, 0, end) if unmarked(match[1])]
    return (found[-1].start(), found[-1][1]) if found else None
