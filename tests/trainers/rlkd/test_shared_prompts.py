"""Packed rows: what each token sees, and when packing is worth it."""

import torch

from trainers.rlkd.shared_prompts import pack

PROMPT = list(range(10, 40))


def rows(*pairs, width):
    longest = max(len(prompt) for prompt, _ in pairs)
    ids = [[0] * (longest - len(p)) + p + c + [0] * (width - len(c)) for p, c in pairs]
    mask = [[0] * (longest - len(p)) + [1] * (len(p) + len(c)) + [0] * (width - len(c)) for p, c in pairs]
    return torch.tensor(ids), torch.tensor(mask)


def test_each_completion_follows_its_prompt_and_sees_nothing_of_the_others() -> None:
    ids, mask = rows((PROMPT, [1, 2, 3]), (PROMPT, [4, 5]), (PROMPT[5:], [6]), (PROMPT, []), width=4)
    packed = pack(ids, mask, 4, hidden=64)
    assert packed is not None
    assert packed.input_ids.shape == (2, 29 + 4 + 3)
    assert packed.input_ids[0].tolist() == [*PROMPT[:-1], 39, 1, 2, 3, 39, 4, 5]
    assert packed.position_ids[0].tolist() == [*range(29), 29, 30, 31, 32, 29, 30, 31]
    assert packed.sources.tolist() == [29, 30, 31, 33, 34, 36 + 24]
    assert packed.tokens.tolist() == [1, 2, 3, 4, 5, 6]
    assert packed.visible[0, 35].nonzero()[:, 0].tolist() == [*range(29), 33, 34, 35]
    assert packed.visible[0, 28].nonzero()[:, 0].tolist() == list(range(29))
    assert packed.visible.any(dim=-1).all()  # padding, too: attention to nothing has no value
    values = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    shown = packed.per_row(values).mul(10).round().tolist()
    assert shown == [[1, 2, 3, 0], [4, 5, 0, 0], [6, 0, 0, 0], [0, 0, 0, 0]]


def test_short_groups_share_a_sequence() -> None:
    long = [(PROMPT, [1] * 9), (PROMPT, [2] * 9)]
    short = [(prompt, [3]) for prompt in ([5, 6, 7], [5, 6, 7], [8, 9], [8, 9])]
    packed = pack(*rows(*long, *short, width=9), 9, hidden=64)
    assert packed is not None
    assert packed.input_ids.shape == (2, 29 + 10 + 10)
    assert packed.input_ids[1, :11].tolist() == [5, 6, 7, 3, 7, 3, 8, 9, 3, 9, 3]
    assert packed.visible[1, 10].nonzero()[:, 0].tolist() == [6, 9, 10]
    assert packed.position_ids[1, 6:11].tolist() == [0, 1, 2, 1, 2]


def test_rows_are_not_packed_where_that_saves_nothing() -> None:
    one_each = [([row, *PROMPT], [1, 2]) for row in range(4)]
    assert pack(*rows(*one_each, width=2), 2, hidden=64) is None
    # Attention to a sequence of many long completions costs more than the prompt saves.
    assert pack(*rows(*[([5, 6], [1] * 400)] * 4, width=400), 400, hidden=16) is None
