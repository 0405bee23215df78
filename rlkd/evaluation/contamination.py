"""Test questions that the training rows contain: runs of 13 words in common, shorter questions as a whole.

Words are compared in lower case and one form of Unicode, without punctuation. Numbers are words too (`1,000` as 1000),
so a question with other numbers is another one; in a short question the signs of arithmetic also count, so that 2 + 3
is not 2 * 3.
Thirteen is the length of GPT-3's overlap analysis (Brown et al. 2020, appendix C).

>>> [each.test for each in overlaps([("t1", "Ann has 3 eggs.")], [("a", ["Q: ann HAS 3 eggs! How many?"])])]
['t1']
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rlkd.data.rows import question_of

SIZE = 13
_WORD = re.compile(r"[^\W_]+")
# A minus between letters is a hyphen.
_WORD_OR_SIGN = re.compile(r"[^\W_]+|[+*/^=<>×÷]|(?<![^\W\d_])-|-(?![^\W\d_])")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


@dataclass(frozen=True)
class Overlap:
    """A test question and a training row that share runs of words: `share` of the question's runs, one in `text`."""

    test: str
    train: str
    share: float
    text: str


@dataclass(frozen=True)
class Contamination:
    """The overlap of two sources: test rows, training rows, and every pair with a run in common."""

    train_source: str
    test_rows: int
    train_rows: int
    pairs: Sequence[Overlap]

    @property
    def test_ids(self) -> list[str]:
        """The test rows with an overlap, in order."""
        return list(dict.fromkeys(pair.test for pair in self.pairs))

    @property
    def share(self) -> float:
        """The share of test rows with an overlap."""
        return len(self.test_ids) / self.test_rows if self.test_rows else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        counts = {"train_source": self.train_source, "test_rows": self.test_rows, "train_rows": self.train_rows}
        found = {"contaminated": len(self.test_ids), "share": self.share}
        return counts | found | {"pairs": [asdict(pair) for pair in self.pairs]}


def row_texts(row: Mapping[str, Any]) -> list[str]:
    """The texts of a training row: its question, the messages of its prompt, and its rationales."""
    prompt = row.get("prompt")
    messages = prompt if isinstance(prompt, list) else []
    said = [str(message.get("content") or "") for message in messages]
    texts = [row.get("question"), prompt if isinstance(prompt, str) else None, *said, *(row.get("rationales") or [])]
    return [text for text in texts if text]


def check_contamination(
    test_rows: Sequence[Mapping[str, Any]], train_rows: Sequence[Mapping[str, Any]], train_source: str
) -> Contamination:
    """The overlap of test questions with the questions, prompts and rationales of training rows."""
    tests = [(row["id"], row.get("question") or question_of(row["prompt"])) for row in test_rows]
    pairs = overlaps(tests, ((row["id"], row_texts(row)) for row in train_rows))
    return Contamination(train_source, len(test_rows), len(train_rows), pairs)


def overlaps(
    tests: Sequence[tuple[str, str]], trainings: Iterable[tuple[str, Sequence[str]]], size: int = SIZE
) -> list[Overlap]:
    """Every pair of a test question and a training row with a run in common, by test question and then by share.

    Memory grows with the test questions only.
    """
    runs_of = {name: _runs(question, size) for name, question in tests}
    where: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for name, runs in runs_of.items():
        for run in runs:
            where[run].add(name)
    short = {len(run) for name, runs in runs_of.items() if len(runs) == 1 for run in runs}
    found = []
    for train, texts in trainings:
        shared: dict[str, dict[tuple[str, ...], None]] = defaultdict(dict)
        for text in texts:
            for own, lengths in ((words(text), {size}), (words(text, signs=True), short)):
                for length in lengths:
                    for start in range(len(own) - length + 1):
                        run = tuple(own[start : start + length])
                        for name in where.get(run, ()):
                            shared[name][run] = None
        for name, common in shared.items():
            found.append(Overlap(name, train, len(common) / len(set(runs_of[name])), " ".join(next(iter(common)))))
    order = {name: place for place, (name, _) in enumerate(tests)}
    return sorted(found, key=lambda pair: (order[pair.test], -pair.share))


def words(text: str, *, signs: bool = False) -> list[str]:
    """The words and numbers of a text in lower case; with the `signs` of arithmetic too.

    >>> words("Café No. 1,250: 3 - 2?", signs=True)
    ['café', 'no', '1250', '3', '-', '2']
    """
    plain = _THOUSANDS.sub("", unicodedata.normalize("NFKC", text).replace("\u2212", "-"))
    return (_WORD_OR_SIGN if signs else _WORD).findall(plain.casefold())


def _runs(question: str, size: int) -> list[tuple[str, ...]]:
    """Each `size` neighbouring words of a question; of a question with fewer, all of it."""
    own = words(question)
    if len(own) < size:
        whole = tuple(words(question, signs=True))
        return [whole] if own else []
    return [tuple(own[start : start + size]) for start in range(len(own) - size + 1)]
