"""The model card of a trainer: its facts, and the mixin that writes it with each saved model."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from rlkd.files import read_records
from rlkd.models import public_name
from trainers.common.model_card import CARD, CardFacts, RunOrigin, compose, license_of

logger = logging.getLogger(__name__)

# Keys of the trainers' configs that a card lists where the config has them.
_SETTINGS = (
    "teacher",
    "teachers",
    "teacher_column",
    "validity",
    "validity_kwargs",
    "lmbda",
    "divergence",
    "divergence_off_policy",
    "tau",
    "num_generations",
    "max_completion_length",
    "max_length",
    "temperature",
    "beta",
    "reward_gates",
    "multi_objective_aggregation",
    "learning_rate",
    "lr_scheduler_type",
    "seed",
    "data_seed",
)


class ModelCards:
    """Mixin for a TRL trainer, before it among the bases: each saved model has a card with the facts of the run.

    `student_name` is the student as the user named it, None for a model given as an object. `origin` has the command
    and the data, which recipes know.
    """

    args: Any
    accelerator: Any
    student_name: str | None = None
    origin: RunOrigin = RunOrigin()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, as `Trainer.save_model` does, with its card."""
        super().save_model(output_dir, _internal_call)  # type: ignore[misc]
        if not self.accelerator.is_main_process:
            return
        folder, own = Path(output_dir or self.args.output_dir), Path(self.args.output_dir)
        self.create_model_card()  # not all of TRL's trainers write one with each checkpoint
        if folder.resolve() != own.resolve() and (own / CARD).exists():  # PEFT has written a card of its own there
            shutil.copyfile(own / CARD, folder / CARD)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write TRL's model card to the output folder, and the facts of the run into it."""
        super().create_model_card(*args, **kwargs)  # type: ignore[misc]
        if not self.accelerator.is_main_process:
            return
        try:
            compose(Path(self.args.output_dir) / CARD, facts_of(self, kwargs.get("model_name")))
        except Exception as error:  # no run ends for its card
            logger.warning("the model card has no facts of the run: %s: %s", type(error).__name__, error)

    def reward_names(self) -> list[str]:
        """The names of the rewards, in order; none by default."""
        return []


def facts_of(trainer: Any, name: str | None = None) -> CardFacts:
    """The facts of a run so far; `name`: the model's, by default that of the output folder."""
    args, model, origin = trainer.args, trainer.model, trainer.origin
    output = Path(args.output_dir or ".")
    base = _base(trainer)
    evaluations = output / "eval.jsonl"
    return CardFacts(
        name=name or (getattr(args, "hub_model_id", None) or output.resolve().name).rpartition("/")[2],
        method=trainer._name,
        base=base,
        license=license_of(base),
        is_adapter=bool(getattr(model, "peft_config", None)),
        quantized=_quantized(model.config),
        settings=_settings(trainer),
        rewards=_rewards(trainer),
        origin=RunOrigin(origin.command, origin.data, {**origin.controls, **_controls(trainer)}, origin.settings),
        evaluations=list(read_records(evaluations)) if evaluations.exists() else [],
    )


def _base(trainer: Any) -> str | None:
    """The student's name; for an adapter that was trained further, that of the model under it."""
    name: str | None = trainer.student_name
    for adapter in (getattr(trainer.model, "peft_config", None) or {}).values():
        if name is not None and adapter.base_model_name_or_path != public_name(name):
            return str(adapter.base_model_name_or_path)
    return name


def _controls(trainer: Any) -> dict[str, Any]:
    """The controls that a trainer itself has, as far as they are set."""
    args = trainer.args
    controls = {
        "control": getattr(args, "control", "none"),
        "shuffle_rewards": getattr(args, "shuffle_rewards", None) or None,
        "shuffle_credit": getattr(args, "shuffle_credit", None),
        "shuffle_weights": getattr(trainer, "shuffle_weights", False) or None,
    }
    return {name: value for name, value in controls.items() if value not in (None, "none")}


def _settings(trainer: Any) -> dict[str, Any]:
    args, state = trainer.args, trainer.state
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    settings: dict[str, Any] = {
        "weights trained": _trained(trainer.model),
        "trained further from": trainer.student_name if trainer.student_name != _base(trainer) else None,
        "weights loaded in": _quantized(trainer.model.config),
        "optimizer steps": state.global_step,
        ("completions per step" if hasattr(args, "num_generations") else "rows per step"): rows,
    }
    found = {key: getattr(args, key, None) for key in _SETTINGS}
    found["lr_scheduler_type"] = getattr(found["lr_scheduler_type"], "value", found["lr_scheduler_type"])
    settings |= {key: value for key, value in found.items() if value is not None}
    if getattr(args, "step_credit", "none") != "none":
        settings["step_credit"] = args.step_credit
    if hasattr(args, "teacher_kl"):  # the structure reward has a teacher, too
        named = [settings.pop(name, None) for name in ("teacher", "teachers", "teacher_column")]
        if args.teacher_kl:
            clip = "" if args.teacher_kl_clip is None else f", clipped at {args.teacher_kl_clip:g} nats"
            teacher = named[0] or f"{named[1]} by the column {named[2]}"
            settings["teacher_kl"] = f"{args.teacher_kl:g} to {teacher}{clip}"
        if args.validity is None:
            settings.pop("tau", None)
    for reward in getattr(trainer, "rewards", ()):
        settings |= getattr(getattr(reward, "function", None), "card_settings", {})
    return settings | dict(trainer.origin.settings)


def _trained(model: Any) -> str:
    adapters = getattr(model, "peft_config", None)
    if not adapters:
        return "all"
    adapter = next(iter(adapters.values()))
    kind = str(getattr(adapter.peft_type, "value", adapter.peft_type))
    rank, alpha = getattr(adapter, "r", None), getattr(adapter, "lora_alpha", None)
    return f"an adapter ({kind}" + (f", rank {rank}, alpha {alpha})" if rank is not None else ")")


def _rewards(trainer: Any) -> list[tuple[str, float, dict[str, Any]]]:
    """Name, weight and parameters of each reward; parameters are those that the config sets."""
    rewards = getattr(trainer, "rewards", ())
    weights = getattr(trainer.args, "reward_weights", None) or [1.0] * len(rewards)
    names = trainer.reward_names()
    origins = [getattr(reward, "origin", None) for reward in rewards]
    return [
        (name, float(weight), dict(origin[1]) if origin else {})
        for name, weight, origin in zip(names, weights, origins, strict=True)
    ]


def _quantized(config: Any) -> str | None:
    """How the weights of a model are quantised, from its configuration; None where they are not."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    values = found if isinstance(found, dict) else found.to_dict()
    for bits in (4, 8):
        if values.get(f"load_in_{bits}bit"):
            return f"{bits} bit"
    method = values.get("quant_method")
    return str(getattr(method, "value", method))
