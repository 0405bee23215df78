"""Which metrics of a run stand together in a chart of its report, and what their curves are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ChartPlan:
    """A chart to make.

    `metrics`: pattern of the metric -> name of the curve, where * is a part of the metric; `least`: no value is below.
    """

    section: str
    title: str
    metrics: Mapping[str, str]
    note: str = ""
    share: bool = False
    least: float | None = None
    only_above_zero: bool = False


PLANS = (
    ChartPlan(
        "Learning", "Reward", {"reward": "all, weighted", "rewards/*/mean": "*"}, "Means of a step's completions."
    ),
    ChartPlan(
        "Learning",
        "Zero-std groups",
        {"frac_reward_zero_std": "all rewards", "rewards/*/frac_zero_std": "* alone"},
        "Shares of groups whose completions all get the same reward.",
        share=True,
        least=0.0,
    ),
    ChartPlan(
        "Learning",
        "Missing rewards",
        {"rewards/*/failed": "* failed", "rewards/*/not_applicable": "* not applicable"},
        "Shares of completions without a score.",
        share=True,
        least=0.0,
        only_above_zero=True,
    ),
    ChartPlan(
        "Learning",
        "Spread of rewards",
        {"reward_std": "all, weighted", "rewards/*/std": "*"},
        "Standard deviations over a step's completions.",
        least=0.0,
    ),
    ChartPlan(
        "Learning",
        "Right answers in training",
        {"kd/right": "the student's rollouts", "traces/right": "the teacher's traces"},
        share=True,
        least=0.0,
    ),
    ChartPlan("Learning", "Correlation of rewards", {"rewards/correlation/*": "*"}, "Pearson's r over a step."),
    ChartPlan(
        "Completions",
        "Length",
        {
            "completions/mean_length": "mean",
            "completions/min_length": "shortest",
            "completions/max_length": "longest",
            "traces/mean_length": "mean of teacher traces",
        },
        "Tokens per completion.",
        least=0.0,
    ),
    ChartPlan(
        "Completions",
        "Truncated",
        {"completions/clipped_ratio": "completions", "traces/clipped_ratio": "teacher traces"},
        "Share that reached the length limit before an end token.",
        share=True,
        least=0.0,
    ),
    ChartPlan("Policy", "Entropy", {"entropy": "student"}, "Nats per token.", least=0.0),
    ChartPlan(
        "Policy",
        "KL",
        {"kl": "to the reference model", "teacher_kl/mean": "to the teacher, on sampled tokens"},
        "Nats per token.",
    ),
    ChartPlan(
        "Policy",
        "Clipped ratios",
        {"clip_ratio/region_mean": "all", "clip_ratio/low_mean": "low", "clip_ratio/high_mean": "high"},
        "Share of tokens. 0 where a batch serves one optimizer step.",
        share=True,
        least=0.0,
    ),
    ChartPlan(
        "Policy",
        "Importance ratio of sampler and trainer",
        {
            "sampling/importance_sampling_ratio/mean": "mean",
            "sampling/importance_sampling_ratio/min": "smallest",
            "sampling/importance_sampling_ratio/max": "largest",
        },
        "Far below 1, hardly anything is learnt.",
    ),
    ChartPlan(
        "Policy",
        "Log-probabilities of sampler and trainer",
        {"sampling/sampling_logp_difference/mean": "mean", "sampling/sampling_logp_difference/max": "largest"},
        "Absolute differences per token, in nats.",
        least=0.0,
    ),
    ChartPlan(
        "Distillation",
        "Weights of steps",
        {
            "kd_weight/mean": "mean per token",
            "kd_weight/q10": "10 % quantile",
            "kd_weight/q50": "median",
            "kd_weight/q90": "90 % quantile",
        },
        "1 is plain distillation.",
        least=0.0,
    ),
    ChartPlan(
        "Distillation",
        "Weights by third of the trace",
        {"kd_weight/first_third": "first", "kd_weight/middle_third": "middle", "kd_weight/last_third": "last"},
    ),
    ChartPlan(
        "Distillation",
        "Margin of validities",
        {
            "validity/margin": "all steps",
            "validity/margin_right": "in right answers",
            "validity/margin_wrong": "in wrong answers",
        },
        "Validity of the teacher's step minus that of the student's.",
    ),
    ChartPlan(
        "Distillation",
        "tau",
        {"validity/tau": "on the student's rollouts", "traces/tau": "on the teacher's traces"},
        "The margin that counts as large.",
    ),
    ChartPlan(
        "Distillation",
        "Steps without trust or score",
        {"kd_weight/floored": "floored", "validity/failed": "failed"},
        "Shares of steps: unlikely under the teacher; not scored.",
        share=True,
        least=0.0,
    ),
    ChartPlan("Distillation", "Steps per trace", {"kd/steps_per_trace": "steps"}),
    ChartPlan("Optimization", "Loss", {"loss": "loss"}),
    ChartPlan("Optimization", "Gradient norm", {"grad_norm": "norm before clipping"}, least=0.0),
    ChartPlan("Optimization", "Learning rate", {"learning_rate": "learning rate"}),
    ChartPlan("Time", "Seconds per step", {"step_time": "step"}, least=0.0),
    ChartPlan(
        "Time",
        "Seconds per reward call",
        {"rewards/*/seconds_p50": "*, median", "rewards/*/seconds_p95": "*, 95 % quantile"},
        least=0.0,
    ),
    ChartPlan(
        "Time",
        "Reused rewards",
        {"rewards/*/reused_batch": "*, in the batch", "rewards/*/reused_cache": "*, from the cache"},
        share=True,
        least=0.0,
    ),
)
# Metrics that get no chart of their own either.
NO_CHART = {"step", "epoch", "num_tokens", "total_flos"}
