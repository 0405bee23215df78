"""Rewards as the metrics of an evaluation: each completion is scored with the columns of its row, as in training.

The metric `accuracy` is the reward for the kind of answers that the rows have: `accuracy` for exact ones,
`multiple_choice`, or `boolean`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rewards.build import build_rewards
from rewards.choices import announced_truth, chosen_option
from rewards.runner import Reward
from rewards.testing.runner import trl_extras
from rlkd.answers import Fallback, extract_answer
from rlkd.data.benchmarks import AnswerKind
from rlkd.evaluation.folder import RecordedCompletion

ACCURACY = "accuracy"
_REWARDS: dict[AnswerKind, str] = {"exact": "accuracy", "choice": "multiple_choice", "boolean": "boolean"}

# Completions per call of a reward, or those of one row: few enough for the progress to show.
BATCH = 64


def metric_rewards(
    metrics: Sequence[str],
    answers: AnswerKind,
    arguments: Mapping[str, Mapping[str, Any]] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    cache: Path | bool = True,
) -> list[Reward]:
    """The rewards that specs name, with `accuracy` for this kind of answers; raises `RewardError`."""
    specs = [f"{ACCURACY}={_REWARDS[answers]}" if spec == ACCURACY else spec for spec in metrics]
    return build_rewards(specs, arguments, options, cache=cache)


def announced_answer(
    kind: AnswerKind, row: Mapping[str, Any], text: str, prefilled: bool = False, fallback: Fallback = "none"
) -> str | None:
    """The answer that a completion announces, in a form in which it can be counted; None without one.

    `fallback`: of exact answers, as in the reward `accuracy`.
    """
    if kind == "boolean":
        return announced_truth(text, prefilled)
    if kind == "choice":
        return chosen_option(text, row.get("choices") or row.get("options"), prefilled)
    return extract_answer(text, fallback, prefilled=prefilled)


def scored_completions(
    rewards: Sequence[Reward],
    rows: Mapping[str, Mapping[str, Any]],
    completions: Sequence[RecordedCompletion],
    *,
    answers: AnswerKind = "exact",
    prefilled: bool = False,
    encode: Callable[[str], list[int]] | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> list[RecordedCompletion]:
    """The completions with their announced answers and the outcome of each reward, in order.

    `rows`: by id, with `prompt`. A call of a reward has all samples of a row, as rewards of a whole group expect.
    `encode`: the tokenizer, for rewards that read `completion_ids`. Answers are read as `accuracy` reads them, so that
    what counts as right has a vote.
    """
    found = []
    fallback: Any = next(
        (getattr(each.function, "fallback", "none") for each in rewards if each.__name__ == ACCURACY), "none"
    )
    for batch in _batches(completions):
        own = [rows[each.id] for each in batch]
        chats = [not isinstance(row["prompt"], str) for row in own]
        texts = [
            [{"role": "assistant", "content": each.completion}] if chat else each.completion
            for each, chat in zip(batch, chats, strict=True)
        ]
        columns = {name: [row.get(name) for row in own] for name in own[0] if name != "prompt"}
        ids = None if encode is None else [encode(each.completion) for each in batch]
        outcomes = {
            reward.__name__: reward.score(
                prompts=[row["prompt"] for row in own],
                completions=texts,
                completion_ids=ids,
                **columns,
                **trl_extras(),
            )
            for reward in rewards
        }
        for i, (each, row) in enumerate(zip(batch, own, strict=True)):
            # Neither duration nor origin of a score: the same evaluation has the same file.
            scores = {name: _record(values[i]) for name, values in outcomes.items()}
            answer = announced_answer(answers, row, each.completion, prefilled, fallback)
            found.append(replace(each, answer=answer, scores=scores))
        advance(len(batch))
    return found


def _record(outcome: Any) -> dict[str, Any]:
    return {name: value for name, value in outcome.record().items() if name in ("status", "value", "cause")}


def _batches(completions: Sequence[RecordedCompletion]) -> Iterator[list[RecordedCompletion]]:
    """Greedy completions by `BATCH`, samples in as many whole rows as `BATCH` has room for."""
    batch: list[RecordedCompletion] = []
    for i, each in enumerate(completions):
        begins = i == 0 or each.id != completions[i - 1].id or each.sample == 0
        if batch and begins and (len(batch) >= BATCH or (batch[-1].sample == 0) != (each.sample == 0)):
            yield batch
            batch = []
        batch.append(each)
    if batch:
        yield batch
