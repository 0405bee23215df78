"""Log-probabilities in the replies of servers: of choices, of a continuation, of the likeliest tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlkd.engines.base import TopTokens


def choice_logprobs(top: Sequence[tuple[str, float]], choices: Sequence[str]) -> tuple[float, ...]:
    """Return the log-probability of each choice, from the likeliest first tokens and their log-probabilities.

    A choice gets the probability of all tokens that equal it up to case and outer spaces. Where there is none, it gets
    that of the tokens it begins with, provided no other choice begins with them; else nothing, -inf.

    >>> choice_logprobs([("Yes", -0.5), ("uns", -1.5), ("maybe", -2.0)], ["yes", "unsure", "no"])
    (-0.5, -1.5, -inf)
    """
    tokens = [(token.strip().casefold(), logprob) for token, logprob in top if token.strip()]
    plain = [choice.strip().casefold() for choice in choices]
    values = []
    for choice in plain:
        found = [logprob for token, logprob in tokens if token == choice]
        if not found:
            begun = [(logprob, [each for each in plain if each.startswith(token)]) for token, logprob in tokens]
            found = [logprob for logprob, begins in begun if begins == [choice]]
        values.append(_log_sum_exp(found))
    return tuple(values)


def continuation_start(tokens: Sequence[str], prompt: str, continuation: str) -> int:
    """Return the index of the first token of the continuation among the echoed tokens of prompt + continuation.

    Tokens before the text (a begin token) are allowed. Raises `ValueError` where the tokens do not spell the text, and
    where one token covers the end of the prompt and the start of the continuation.

    >>> continuation_start(["<s>", "2 +", " 2 =", " 4"], "2 + 2 =", " 4")
    3
    """
    spelt = "".join(tokens)
    if not spelt.endswith(prompt + continuation):
        raise ValueError(f"the {len(tokens)} echoed tokens do not spell prompt and continuation")
    boundary = len(spelt) - len(continuation)
    offset = 0
    for index, token in enumerate(tokens):
        if offset == boundary:
            return index
        offset += len(token)
        if offset > boundary:
            raise ValueError(f"the token {token!r} covers the end of the prompt and the start of the continuation")
    raise ValueError("the echo ends before the continuation")


def _log_sum_exp(values: Sequence[float]) -> float:
    if not values:
        return -math.inf
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))


def top_tokens(table: Sequence[Mapping[str, Any]], ids: Sequence[int], k: int) -> TopTokens:
    """Read the k likeliest tokens from vLLM's `prompt_logprobs` at the positions of `ids`.

    Each entry maps ids, as strings, to log-probabilities: of the k likeliest tokens and of the token at the position
    itself, which may or may not be among them. Raises `ValueError` where that is not so.
    """
    tokens, logprobs, taken = [], [], []
    for token, entry in zip(ids, table, strict=True):
        known = sorted(((float(item["logprob"]), int(key)) for key, item in entry.items()), key=lambda x: -x[0])
        if len(known) < k or str(token) not in entry:
            missing = "" if str(token) in entry else ", without the token at the position itself"
            raise ValueError(
                f"{len(known)} tokens came back at a position, of k = {k} expected{missing}. Start it with "
                f"--max-logprobs {k} (or -1)."
            )
        tokens.append([key for _, key in known[:k]])
        logprobs.append([value for value, _ in known[:k]])
        taken.append(float(entry[str(token)]["logprob"]))
        if (mass := math.fsum(map(math.exp, logprobs[-1]))) > 1.01:
            raise ValueError(
                f"these are no log-probabilities: those of {k} tokens come to a probability of {mass:.4g}. Start it "
                f"with --logprobs-mode raw_logprobs or processed_logprobs."
            )
    return TopTokens(tokens, logprobs, taken)
