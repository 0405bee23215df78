"""The two files that `rlkd rewards new` writes: a reward to edit, and its test."""

from __future__ import annotations

import keyword
from pathlib import Path

from rlkd.errors import UsageError
from rlkd.registry import registry

HEAD = '''\
"""The reward NAME."""

from rewards import RewardOptions
from rlkd.data.rows import completion_text


'''

# What both templates say about parameters and return values.
COMMENTS = """\
    # Parameters without a default (`COLUMN`) are columns of the data, with one value per completion. Those with a
    # default (`PARAMETER`) are set in the config, under reward_kwargs. `columns` receives all other columns.
    # Return one of three for each completion, in order:
    # 1. None: there is nothing to judge. In training this counts neither for nor against the completion.
    # 2. rewards.Failed("why"), or raise an exception: the reward broke down, for example because a server is down.
    #    Failures are counted with their cause, never as 0.
    # 3. A number.
"""

PER_SAMPLE = (
    '''\
def NAME(completions, answer, *, limit=400, **columns):
    """Reward a short completion that contains the gold answer: from 1 at length 0 down to 0 at `limit`.

    Columns: `answer`, the gold answer. Not applicable to rows without one.

    Args:
        limit: length in characters at which the reward reaches 0.
    """
'''
    + COMMENTS.replace("COLUMN", "answer").replace("PARAMETER", "limit")
    + """\
    scores = []
    for completion, gold in zip(completions, answer, strict=True):
        text = completion_text(completion)  # of a plain text or a conversation
        if gold is None:
            scores.append(None)
        else:
            scores.append(max(0.0, 1 - len(text) / limit) if gold in text else 0.0)
    return scores


# per_sample: a score depends on its sample alone and is always the same. So equal samples are scored once, scores are
# cached across runs, and each sample has its own limit of `timeout` seconds, after which it counts as failed.
NAME.reward_options = RewardOptions(per_sample=True, timeout=10.0)
"""
)

BATCH = (
    '''\
def NAME(completions, id, *, tie=0.5, **columns):
    """Compare the completions of a question: the share of the other ones that are longer.

    Columns: `id`, the row of a completion. Not applicable to the only completion of a row.

    Args:
        tie: value of another completion of the same length.
    """
'''
    + COMMENTS.replace("COLUMN", "id").replace("PARAMETER", "tie")
    + """\
    lengths = [len(completion_text(completion)) for completion in completions]  # of plain texts or conversations
    scores = []
    for i, length in enumerate(lengths):
        others = [lengths[j] for j in range(len(lengths)) if id[j] == id[i] and j != i]
        if not others:
            scores.append(None)
        else:
            scores.append(sum(1.0 if other > length else tie * (other == length) for other in others) / len(others))
    return scores


# per_sample=False: a score depends on the other completions of the batch. The whole batch is one call, with a limit of
# `timeout` seconds, after which it counts as failed.
NAME.reward_options = RewardOptions(per_sample=False, timeout=60.0)
"""
)

TEST = '''\
"""Tests of the reward NAME."""

from pathlib import Path

import pytest

from rewards import build_reward
from rewards.testing.contract import check_contract, violations

SPEC = f"{Path(__file__).with_name('NAME.py')}:NAME"


def test_it_keeps_the_contract():
    assert violations(check_contract(build_reward(SPEC, cache=False))) == []


'''

PER_SAMPLE_TEST = """\
@pytest.mark.parametrize(
    ("completion", "gold", "score"),
    [
        ("So it is 72.", "72", 0.5),  # 12 of 24 characters
        ("So it is 73.", "72", 0.0),  # wrong answer
        ("So it is 72, and that is all.", "72", 0.0),  # too long
        ("So it is 72.", None, None),  # nothing to judge
    ],
)
def test_scores_equal_those_computed_by_hand(completion, gold, score):
    reward = build_reward(SPEC, {"limit": 24}, cache=False)
    [outcome] = reward.score(completions=[completion], answer=[gold])
    assert outcome.value == (None if score is None else pytest.approx(score))
"""

BATCH_TEST = """\
def test_scores_equal_those_computed_by_hand():
    reward = build_reward(SPEC, {"tie": 0.5}, cache=False)
    outcomes = reward.score(completions=["a", "bb", "cc", "d"], id=["first", "first", "first", "second"])
    # Both others are longer; one other is as long, which counts half; and the last one has nothing to compare with.
    assert [outcome.value for outcome in outcomes] == [pytest.approx(1.0), 0.25, 0.25, None]
"""


def write_reward(name: str, folder: Path, *, per_sample: bool = True) -> tuple[Path, Path]:
    """Write `NAME.py` and `test_NAME.py`; return their paths.

    Raises `UsageError` for a name that is not an identifier or already registered, and for existing files.
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        raise UsageError(f"{name!r} cannot name a Python function: use letters, digits and _, and no digit first")
    if (known := registry("reward").names()).get(name) is not None:
        raise UsageError(f"a reward {name!r} exists: {known[name]}. Choose another name.")
    paths = folder / f"{name}.py", folder / f"test_{name}.py"
    for path in paths:
        if path.exists():
            raise UsageError(f"{path} exists and is not overwritten; choose another name or another --folder")
    texts = HEAD + (PER_SAMPLE if per_sample else BATCH), TEST + (PER_SAMPLE_TEST if per_sample else BATCH_TEST)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text.replace("NAME", name), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{folder} is not writable: {error}") from error
    return paths


def usage(name: str, reward: Path, test: Path, *, per_sample: bool = True) -> str:
    """The config lines that use a new reward, and the commands that test it."""
    parameter = "limit: 400" if per_sample else "tie: 0.5"
    return f"""\
Wrote {reward} and {test}.

In a config:

  reward_funcs: [accuracy, {reward}:{name}]
  reward_weights: [1.0, 0.2]
  reward_kwargs:
    {name}: {{{parameter}}}

Test it:

  rlkd rewards test {reward}:{name}
  python -m pytest {test}"""
