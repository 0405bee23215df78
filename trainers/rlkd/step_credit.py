"""Step credit: the advantage of a completion, divided among its steps by what each of them earned.

For token t of step s(t), with r_s the score of step s (its share of the structure reward), and r the token-weighted
mean of r_s(t) over the tokens of steps in the loss:

    local:  A_t = A + lambda * (r_s(t) - r)
    to_go:  A_t = A + lambda * (r_s(t) + r_s(t)+1 + ... - r)

`lambda` is what one unit of that reward adds to A: its weight, divided by the deviation that TRL divides by. Tokens
outside steps keep A. With `local` the advantages of a completion's tokens sum up to those of plain GRPO; with `to_go`
they do not: a step is also paid for what comes after it. Our choice; the paper has no credit of steps.

>>> scores, owners = torch.tensor([[0.5, 0.0, 0.25]]), torch.tensor([[0, 0, 1, 2, -1]])
>>> token_credit(scores, owners, "local").tolist()
[[0.1875, 0.1875, -0.3125, -0.0625, 0.0]]
>>> token_credit(scores, owners, "to_go").tolist()
[[0.4375, 0.4375, -0.0625, -0.0625, 0.0]]
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from torch import Tensor

from rewards import Reward, RewardError, StepScore
from rewards.arithmetic import fill_missing, gate_factors
from rewards.batch import ScoredBatch
from trainers.common.token_spans import Place, token_owners, token_spans

if TYPE_CHECKING:
    from trainers.rlkd.config import RLKDConfig

logger = logging.getLogger(__name__)

# What TRL adds to a standard deviation before it divides by it. Rewards that differ by less have no spread.
EPSILON = 1e-4
# The log has a warning where a smaller share of scored steps has tokens.
LEAST_ALIGNED = 0.5


def token_credit(scores_BS: Tensor, owners_BC: Tensor, kind: str) -> Tensor:
    """What each token gets beside the advantage of its completion, (B, C), in the units of the scores.

    Args:
        scores_BS: the scores of the steps, in order, with 0 behind the last.
        owners_BC: the step of each token in the loss, from 0; -1 for the others, which get 0.
        kind: `local` or `to_go`.
    """
    inside_BC, index_BC = owners_BC >= 0, owners_BC.clamp(min=0)
    own_BC = scores_BS.gather(1, index_BC).masked_fill(~inside_BC, 0.0)
    mean_B1 = own_BC.sum(dim=1, keepdim=True) / inside_BC.sum(dim=1, keepdim=True).clamp(min=1)
    if kind == "to_go":
        own_BC = scores_BS.flip(1).cumsum(dim=1).flip(1).gather(1, index_BC)
    return (own_BC - mean_B1).masked_fill(~inside_BC, 0.0)


def advantage_scales(
    settled_NF: Tensor, weights_F: Tensor, group_size: int, *, scale_rewards: str, aggregation: str
) -> Tensor:
    """What one unit of each reward adds to the advantage of its completion at a given mean and deviation, (N, F).

    `settled_NF`: the rewards that TRL adds up, NaN where missing. 0 where the rewards that TRL normalises do not
    differ: there is no deviation to divide by, and TRL's advantages are 0.
    """
    scales_NF = weights_F.to(settled_NF).expand(settled_NF.shape)
    values_NF, window = settled_NF, group_size if scale_rewards == "group" else len(settled_NF)
    if aggregation == "normalize_then_sum":
        groups_MGF, window = settled_NF.view(-1, group_size, settled_NF.shape[1]), len(settled_NF)
        values_NF = (groups_MGF - groups_MGF.nanmean(dim=1, keepdim=True)).view_as(settled_NF)
        scales_NF = scales_NF * _inverse(_deviation(groups_MGF)).repeat_interleave(group_size, dim=0)
    elif scale_rewards == "none":
        return scales_NF
    totals_N = (values_NF * scales_NF).nansum(dim=1).masked_fill(settled_NF.isnan().all(dim=1), torch.nan)
    return scales_NF * _inverse(_deviation(totals_N.view(-1, window))).repeat_interleave(window)[:, None]


def _deviation(groups: Tensor) -> Tensor:
    """The sample's standard deviation over the second dimension, of what is not NaN; 0 of less than two values."""
    squares = (groups - groups.nanmean(dim=1, keepdim=True)) ** 2
    return (squares.nansum(dim=1) / ((~groups.isnan()).sum(dim=1) - 1).clamp(min=1)).sqrt()


def _inverse(deviation: Tensor) -> Tensor:
    return torch.where(deviation > EPSILON, 1 / (deviation + EPSILON), 0.0)


def scores_steps(reward: Any) -> bool:
    """Whether a reward scores steps (`rewards.contract`)."""
    return callable(getattr(getattr(reward, "function", None), "step_scores", None))


@dataclass(frozen=True)
class CreditedBatch:
    """The advantages of a batch's tokens (B, C), and for each completion the credit of its steps, for the rollouts.

    `counts`, of this process: step scores, those of them that have tokens, tokens in the loss, those of them in a
    step, and the sum of what the latter get beside A, without sign.
    """

    advantages: Tensor
    records: list[list[dict[str, Any]]]
    counts: Tensor


class StepCredit:
    """Turns the advantages of completions into those of tokens.

    For each batch, `read_scales` comes first, with the rewards of all processes. A reward gives credit where it has a
    score that counts.

    Args:
        args: the run's config, whose `step_credit` is not `none`.
        rewards: the rewards that score steps, by their column in the tensors of rewards.
        tokenizer: the student's.
    """

    def __init__(self, args: RLKDConfig, rewards: Mapping[int, Reward], tokenizer: Any):
        self.args = args
        self.rewards = dict(rewards)
        self.tokenizer = tokenizer
        self._scales_NF = torch.empty(0)
        self._warned = False

    @classmethod
    def of(cls, args: RLKDConfig, rewards: Mapping[str, Any], reader: Any) -> StepCredit | None:
        """The step credit of a run, if any; `rewards`: all by name, in order; `reader`: the processing class."""
        if args.step_credit == "none":
            return None
        scoring = {column: one for column, one in enumerate(rewards.values()) if scores_steps(one)}
        return cls(args, scoring, getattr(reader, "tokenizer", reader))

    def read_scales(
        self,
        rewards_NF: Tensor,
        settled_NF: Tensor,
        weights_F: Tensor,
        gates: Mapping[int, int],
        group_size: int,
    ) -> None:
        """Work out lambda for each completion and reward, from the rewards before and after `settle`."""
        scales_NF = advantage_scales(
            settled_NF,
            weights_F,
            group_size,
            scale_rewards=str(self.args.scale_rewards),
            aggregation=self.args.multi_objective_aggregation,
        )
        scales_NF = scales_NF * gate_factors(fill_missing(rewards_NF, group_size), gates)
        self._scales_NF = scales_NF.masked_fill(settled_NF.isnan(), 0.0).nan_to_num(0.0).double().cpu()

    def metrics(self, counts: Tensor) -> dict[str, float]:
        """The metrics of the counts of all processes; warns once where most steps have no tokens."""
        steps, aligned, tokens, inside, size = counts.tolist()
        found = {"aligned": (aligned, steps), "tokens": (inside, tokens), "size": (size, inside)}
        metrics = {f"step_credit/{name}": value / of for name, (value, of) in found.items() if of}
        if metrics.get("step_credit/aligned", 1.0) < LEAST_ALIGNED and not self._warned:
            self._warned = True
            if not self.args.process_index:
                logger.warning(
                    "step_credit %s: only %d of %d scored steps were found in their completions "
                    "(step_credit/aligned); the others get no credit. Take a decomposer whose steps stand in the text "
                    "(rules, native, generative), or set step_credit: none.",
                    *(self.args.step_credit, aligned, steps),
                )
        return metrics

    def __call__(self, batch: ScoredBatch, output: Mapping[str, Any]) -> CreditedBatch:
        """The advantages of the tokens of `output`, TRL's scored batch of this process.

        Raises `RewardError` for a reward whose `step_scores` breaks the contract.
        """
        start = PartialState().process_index * len(batch.rows)
        scales_BF = self._scales_NF[start : start + len(batch.rows)]
        ids, mask = output["completion_ids"].cpu(), output["completion_mask"].bool().cpu()
        loss = mask & output["tool_mask"].bool().cpu() if "tool_mask" in output else mask
        texts = [token_spans(self.tokenizer, row[kept].tolist()) for row, kept in zip(ids, mask, strict=True)]
        added = torch.zeros(ids.shape, dtype=torch.float64)
        inside = torch.zeros_like(loss)
        records: list[list[dict[str, Any]]] = [[] for _ in batch.rows]
        for column, reward in self.rewards.items():
            scores = [self._scores(reward, batch, row) if kept.any() else [] for row, kept in enumerate(loss)]
            owners = torch.full(ids.shape, -1)
            for row, own in enumerate(scores):
                if own:
                    owners[row, mask[row]] = torch.tensor(_owners(*texts[row], batch.texts[row], own))
            owners = owners.masked_fill(~loss, -1)
            width = max(1, *map(len, scores))
            values = added.new_tensor([[one.value for one in own] + [0.0] * (width - len(own)) for own in scores])
            credit = scales_BF[:, column, None] * token_credit(values, owners, self.args.step_credit)
            added += credit
            inside |= owners >= 0
            for record, own, tokens, gains in zip(records, scores, owners.tolist(), credit.tolist(), strict=True):
                record += _records(reward.__name__, own, tokens, gains)
        if self.args.step_credit_clip is not None:
            added = _limited(added, records, self.args.step_credit_clip)
        steps = [step for record in records for step in record]
        aligned = sum(step["tokens"] > 0 for step in steps)
        counts = [len(steps), aligned, int(loss.sum()), int(inside.sum()), float(added.abs().sum())]
        advantages = output["advantages"]
        advantages = (advantages[:, None] if advantages.dim() == 1 else advantages) + added.to(advantages)
        return CreditedBatch(advantages, records, torch.tensor(counts, device=advantages.device))

    def _scores(self, reward: Reward, batch: ScoredBatch, row: int) -> list[StepScore]:
        """The step scores of a completion, in the order of the control if there is one."""
        outcome, text = batch.outcomes[reward.__name__][row], batch.texts[row]
        if outcome.status != "score":
            return []
        function: Any = reward.function
        try:
            scores = list(function.step_scores(text, outcome.detail or {}))
            edges = [edge for one in scores if one.place is not None for edge in one.place]
            if edges != sorted(edges) or (edges and not 0 <= edges[0] <= edges[-1] <= len(text)):
                raise ValueError(f"places {edges} in {len(text)} characters; expected ascending ones within the text")
        except Exception as error:
            raise RewardError(
                f"reward {reward.__name__!r}: step_scores on a completion of row {batch.rows[row].get('id')!r}: "
                f"{type(error).__name__}: {error}. Correct it, or set step_credit: none"
            ) from error
        if self.args.shuffle_credit is None:
            return scores
        values = [one.value for one in scores]
        # Of seed and text alone, so that a resumed run repeats it.
        random.Random(f"{self.args.shuffle_credit} {text}").shuffle(values)
        return [StepScore(value, one.place) for value, one in zip(values, scores, strict=True)]


def _limited(added_BC: Tensor, records: Sequence[Sequence[dict[str, Any]]], clip: float) -> Tensor:
    """The credit, made smaller in each completion by the factor that brings its largest size to `clip`; records, too.

    One factor per completion keeps the sum of its tokens.
    """
    factors_B = clip / added_BC.abs().amax(dim=1).clamp(min=clip)
    for record, factor in zip(records, factors_B.tolist(), strict=True):
        for step in record:
            if step["credit"] is not None:
                step["credit"] *= factor
    return added_BC * factors_B[:, None]


def _owners(decoded: str, spans: Sequence[Place], text: str, scores: Sequence[StepScore]) -> list[int]:
    """The step of each token, -1 for none. `text`: what the reward has read, a part of the decoded tokens."""
    offset = decoded.find(text)
    if offset < 0:
        return [-1] * len(spans)
    places = [one.place and (one.place[0] + offset, one.place[1] + offset) for one in scores]
    return [-1 if owner is None else owner for owner in token_owners(decoded, spans, places)]


def _records(
    reward: str, scores: Sequence[StepScore], owners: Sequence[int], gains: Sequence[float]
) -> list[dict[str, Any]]:
    """A record per step: its score, its characters, its number of tokens, and what each of them gets beside A."""
    records = []
    for index, one in enumerate(scores):
        tokens = owners.count(index)
        credit = gains[owners.index(index)] if tokens else None
        records.append({"reward": reward, "score": one.value, "place": one.place, "tokens": tokens, "credit": credit})
    return records
