"""The two files that `rlkd rewards new` writes: a reward to change, and its test."""

from __future__ import annotations

import keyword
from pathlib import Path

from rlkd.errors import UsageError
from rlkd.registry import registry

PER_SAMPLE = '''\
"""The reward NAME."""

from rewards import RewardOptions
from rlkd.data.rows import completion_text


def NAME(completions, answer, *, limit=400, **columns):
    """Pay for a short completion that holds the gold answer: 1 for no length at all, down to 0 at `limit`.

    Columns: `answer`, the gold answer. Rows without one are not applicable.

    Args:
        limit: characters from which on nothing is paid.
    """
    # Parameters without a default (`answer`) are columns of the data: one value a completion. Those with a default
    # (`limit`) are set in the config, under reward_kwargs. `columns` takes what is not asked for.
    scores = []
    for completion, gold in zip(completions, answer, strict=True):
        text = completion_text(completion)  # of a text, and of a conversation
        # For each completion, in order, one of three:
        # 1. None: there is nothing to judge. In training it counts neither for nor against the completion.
        if gold is None:
            scores.append(None)
        # 2. rewards.Failed("why"), or an exception: judging broke down, as where a server is down. It is counted with
        #    its cause, never as 0.
        # 3. A number.
        else:
            scores.append(max(0.0, 1 - len(text) / limit) if gold in text else 0.0)
    return scores


# per_sample: a score rests on its sample alone and is the same every time, so equal samples are scored once, scores
# are kept across runs, and each sample has `timeout` seconds to itself before it is killed and counted as failed.
NAME.reward_options = RewardOptions(per_sample=True, timeout=10.0)
'''

BATCH = '''\
"""The reward NAME."""

from rewards import RewardOptions
from rlkd.data.rows import completion_text


def NAME(completions, id, *, tie=0.5, **columns):
    """Compare the completions of a question: the share of the others that are longer.

    Columns: `id`, which row a completion belongs to. A completion that is alone is not applicable.

    Args:
        tie: what another completion of the same length counts.
    """
    # Parameters without a default (`id`) are columns of the data: one value a completion. Those with a default
    # (`tie`) are set in the config, under reward_kwargs. `columns` takes what is not asked for.
    lengths = [len(completion_text(completion)) for completion in completions]  # of texts, and of conversations
    scores = []
    for i, length in enumerate(lengths):
        others = [lengths[j] for j in range(len(lengths)) if id[j] == id[i] and j != i]
        # For each completion, in order, one of three:
        # 1. None: there is nothing to judge. In training it counts neither for nor against the completion.
        # 2. rewards.Failed("why"), or an exception for the whole batch: judging broke down, as where a server
        #    is down. It is counted with its cause, never as 0.
        # 3. A number.
        if not others:
            scores.append(None)
        else:
            scores.append(sum(1.0 if other > length else tie * (other == length) for other in others) / len(others))
    return scores


# per_sample=False: a score rests on the other completions of the batch too. The whole batch is one call, with
# `timeout` seconds before it is killed and counted as failed.
NAME.reward_options = RewardOptions(per_sample=False, timeout=60.0)
'''

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

PER_SAMPLE_TEST = """
@pytest.mark.parametrize(
    ("completion", "gold", "score"),
    [
        ("So it is 72.", "72", 0.5),  # 12 of 24 characters
        ("So it is 73.", "72", 0.0),  # another answer
        ("So it is 72, and that is all.", "72", 0.0),  # too long
        ("So it is 72.", None, None),  # nothing to judge
    ],
)
def test_a_score_worked_out_by_hand(completion, gold, score):
    reward = build_reward(SPEC, {"limit": 24}, cache=False)
    [outcome] = reward.judge(completions=[completion], answer=[gold])
    assert outcome.value == (None if score is None else pytest.approx(score))
"""

BATCH_TEST = """
def test_scores_worked_out_by_hand():
    reward = build_reward(SPEC, {"tie": 0.5}, cache=False)
    outcomes = reward.judge(completions=["a", "bb", "cc", "d"], id=["first", "first", "first", "second"])
    # Two of two are longer; one of two is as long, counted half; and there is nothing to compare the last one with.
    assert [outcome.value for outcome in outcomes] == [pytest.approx(1.0), 0.25, 0.25, None]
"""


def write_starter(name: str, folder: Path, *, per_sample: bool = True) -> tuple[Path, Path]:
    """Write `NAME.py` and `test_NAME.py`; return their paths.

    Raises `UsageError` for a name that is no identifier or that a reward has, and for files that are there already.
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        raise UsageError(f"{name!r} cannot name a function of Python: letters, digits and _, and no digit first")
    if (known := registry("reward").names()).get(name) is not None:
        raise UsageError(f"a reward {name!r} exists: {known[name]}. Give another name.")
    paths = folder / f"{name}.py", folder / f"test_{name}.py"
    for path in paths:
        if path.exists():
            raise UsageError(f"{path} exists, and nothing is overwritten; give another name or another --folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        texts = (PER_SAMPLE if per_sample else BATCH), TEST + (PER_SAMPLE_TEST if per_sample else BATCH_TEST)
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text.replace("NAME", name), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{folder} cannot be written to: {error}") from error
    return paths


def how_to_use(name: str, reward: Path, test: Path, *, per_sample: bool = True) -> str:
    """The lines of a config that use the reward, and the commands that try it."""
    parameter = "limit: 400" if per_sample else "tie: 0.5"
    return f"""\
Wrote {reward} and {test}.

In a config:

  reward_funcs: [accuracy, {reward}:{name}]
  reward_weights: [1.0, 0.2]
  reward_kwargs:
    {name}: {{{parameter}}}

Try it:

  rlkd rewards test {reward}:{name}
  python -m pytest {test}"""
