"""Do our trainers compute what TRL's compute, in float32 on this device?"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpu.day import GpuDay
from gpu.models import SHAPES, save_model, sums
from rlkd.files import read_records
from tiny import letters, training_arguments

# Parameters differ by at most this share of what training changed.
RLKD_LIMIT, KD_LIMIT = 1e-5, 1e-3


def equality(day: GpuDay) -> Iterator[dict[str, Any]]:
    """Two SGD steps of all weights by our trainer and by TRL's: loss, gradient norm, parameters after them.

    With SGD, what training changed is the gradient. Kernels that add in no fixed order are switched off where PyTorch
    can; TRL's trainer runs twice, and ours may be ten times as far from it as it is from itself. Raises
    `AssertionError` where it is further off, or where failed rewards and gates do not work.
    """
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)
    with tempfile.TemporaryDirectory(prefix="rlkd-gpu-") as name:
        folder = Path(name)
        shape = SHAPES[day.pick("small", "tiny")]
        student = save_model(shape, folder / "student", "cpu", "float32")
        teacher = save_model(shape, folder / "teacher", "cpu", "float32", seed=1)
        found = {}
        for kind, trainers, limit in (
            ("rlkd", rlkd_trainers(day, student, folder), RLKD_LIMIT),
            ("kd", kd_trainers(day, student, teacher, folder), KD_LIMIT),
        ):
            found[kind] = compare(*trainers)
            yield {kind: found[kind]}
            if not found[kind]["parameter_gap"] <= max(limit, 10 * found[kind]["stock_gap"]):
                raise AssertionError(f"{kind}: our trainer differs from TRL's: {found[kind]}")
        yield {"failed_rewards": failed_rewards(day, student, folder)}


def rlkd_trainers(day: GpuDay, model: str, folder: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """GRPOTrainer and RLKDTrainer on the same rows."""
    from trl import GRPOConfig, GRPOTrainer

    from trainers import RLKDConfig, RLKDTrainer

    def build(trainer: Any, config: Any, **own: Any) -> Any:
        args = config(**settings(day, folder, num_generations=4), **own)
        return trainer(model, reward_funcs=letters, args=args, train_dataset=sums())

    return lambda: build(GRPOTrainer, GRPOConfig), lambda: build(RLKDTrainer, RLKDConfig, fast_path="never")


def kd_trainers(day: GpuDay, model: str, teacher: str, folder: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """DistillationTrainer and ValidityKDTrainer with all weights 1, on rollouts."""
    from trl import DistillationConfig, DistillationTrainer

    from trainers import ValidityKDConfig, ValidityKDTrainer

    def build(trainer: Any, config: Any, **own: Any) -> Any:
        args = config(**settings(day, folder, beta=0.5), **own)
        return trainer(model, teacher, args=args, train_dataset=sums())

    ours = {"lmbda": 1.0, "control": "uniform", "fast_path": "never"}
    return lambda: build(DistillationTrainer, DistillationConfig), lambda: build(
        ValidityKDTrainer, ValidityKDConfig, **ours
    )


def settings(day: GpuDay, folder: Path, **changes: Any) -> dict[str, Any]:
    """The arguments of a config: two SGD steps in float32, into a folder of their own."""
    values = {
        "use_cpu": day.smoke,
        "per_device_train_batch_size": 8,
        "max_completion_length": day.pick(64, 12),
        "max_steps": 2,
        "learning_rate": 0.1,
        "optim": "sgd",
    }
    return training_arguments(tempfile.mkdtemp(dir=folder), **values | changes)


def compare(stock: Callable[[], Any], ours: Callable[[], Any]) -> dict[str, Any]:
    """Train TRL's trainer twice and ours once, each built anew."""
    import torch

    def trained(build: Callable[[], Any]) -> tuple[list[dict[str, float]], list[torch.Tensor], list[torch.Tensor]]:
        trainer = build()
        before = [parameter.detach().cpu().clone() for parameter in trainer.model.parameters()]
        trainer.train()
        logs = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
        return logs, before, [parameter.detach().cpu().clone() for parameter in trainer.model.parameters()]

    logs, before, after = trained(stock)
    _, _, again = trained(stock)
    our_logs, _, our_after = trained(ours)
    learnt = distance(before, after)
    first, our_first = logs[0], our_logs[0]
    return {
        "loss": first["loss"],
        "our_loss": our_first["loss"],
        "grad_norm": first["grad_norm"],
        "our_grad_norm": our_first["grad_norm"],
        "learnt": learnt,
        "stock_gap": distance(after, again) / learnt,
        "parameter_gap": distance(after, our_after) / learnt,
    }


def distance(one: list[Any], other: list[Any]) -> float:
    """The Euclidean distance of two lists of tensors."""
    return math.sqrt(sum(float((a - b).double().square().sum()) for a, b in zip(one, other, strict=True)))


def failed_rewards(day: GpuDay, model: str, folder: Path) -> dict[str, int]:
    """Whether rewards that fail, and a gate, work on this device: the rollouts, and how many carry a failed reward."""
    from rewards import Failed
    from trainers import RLKDConfig, RLKDTrainer

    def flaky(completions: list[Any], **columns: Any) -> list[Any]:
        return [Failed("every third fails") if i % 3 == 0 else float(i % 2) for i in range(len(completions))]

    args = RLKDConfig(**settings(day, folder, num_generations=4), reward_gates={"letters": "flaky"})
    trainer = RLKDTrainer(model, reward_funcs=[letters, flaky], args=args, train_dataset=sums())
    trainer.train()
    records = list(read_records(trainer.rollouts_path))
    failed = sum(record["rewards"]["flaky"]["status"] == "failed" for record in records)
    if not 0 < failed < len(records):
        raise AssertionError(f"expected some of {len(records)} rollouts to carry a failed reward, not {failed}")
    return {"rollouts": len(records), "failed": failed}
