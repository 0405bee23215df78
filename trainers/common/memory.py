"""What the estimates of memory of all trainers share: the student, its generation, the phases of a training step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from rlkd.errors import UsageError, first_line
from rlkd.memory.plan import MemoryPhase
from rlkd.models import base_of_adapter, is_adapter, resolve_model
from trainers.common.sharding import sharding_of
from trainers.common.student import model_sources, reading_options

if TYPE_CHECKING:
    from rlkd.engines.local import ModelUse
    from rlkd.memory.models import WeightlessModel

# Bytes per entry of the logits while a token is drawn: the scores in float32, a copy at the sampling temperature,
# their softmax, and its cumulated sum in float64 (`trainers/common/fast_generation.py`; transformers needs no more).
DRAWING = 4 + 4 + 4 + 8


@dataclass(frozen=True)
class StudentMemory:
    """A run's student without weights, and how it is trained.

    `device`: `cpu` or `cuda`. `fixed`: the roles that take memory in every phase. `setting`: the run in a few words.
    """

    model: WeightlessModel
    device: str
    fixed: Mapping[str, int]
    setting: str
    notes: tuple[str, ...]


def read_student(args: Any, model: Any, peft_config: Any, device: str | None) -> StudentMemory:
    """The student of a run; nothing but its configuration is read. `device`: default, that of the run.

    Raises `UsageError` for a run whose memory is not estimated: weights sharded over processes, unknown optimizers.
    """
    from rlkd.memory.models import WeightlessModel

    device = device or str(args.device.type)
    if device not in ("cpu", "cuda"):
        raise UsageError(f"device {device!r}: memory is estimated for 'cpu' and 'cuda'")
    if sharding_of(args) is not None or getattr(args, "deepspeed", None):
        raise UsageError(
            "memory is estimated for whole models per process; this run shares weights (fsdp or deepspeed). Remove "
            "these keys for an estimate without sharing"
        )
    given = dict(args.model_init_kwargs or {})
    if isinstance(model, str):
        base, _ = model_sources(model)
        config = _config(base, **reading_options(args))
        dtype = str(given.get("dtype") or "float32").removeprefix("torch.")
        if is_adapter(model) and peft_config is not None:
            from peft import PeftConfig

            peft_config = PeftConfig.from_pretrained(str(Path(model).expanduser()))
    else:
        config, dtype = model.config, str(model.dtype).removeprefix("torch.")
        peft_config = peft_config or next(iter(getattr(model, "peft_config", {}).values()), None)
    bits, double = quantisation(given)
    student = WeightlessModel(
        config,
        dtype=dtype,
        adapter=peft_config,
        bits=bits,
        double_quantised=double,
        checkpointing=args.gradient_checkpointing,
        autocast="bfloat16" if args.bf16 else "float16" if args.fp16 else None,
        masked="flash" not in str(given.get("attn_implementation") or ""),
    )
    notes = []
    fixed = {"student weights": student.base_weights, "adapter": student.adapter_weights}
    if device == "cpu":
        fixed = {"process": resident_bytes(), **fixed, "file of full weights": file_bytes(student, device)}
        notes.append("process is this interpreter with its libraries now; worker processes of rewards are not counted")
    else:
        notes.append(
            "formulas, not measured on a GPU; the CUDA context and what its allocator leaves unused come on top"
        )
    fixed["optimizer"] = student.optimizer(getattr(args.optim, "value", args.optim))
    trained = "all weights" if peft_config is None else f"LoRA r={getattr(peft_config, 'r', '?')}"
    setting = f"{dtype if bits is None else f'{bits} bit'}, {trained}"
    return StudentMemory(student, device, fixed, setting, tuple(notes))


def read_frozen(
    name: str, *, dtype: str, device: str, settings: Mapping[str, Any] | None = None, **options: Any
) -> WeightlessModel:
    """A model that is not trained, by name; on a CPU `auto` is float32, as everywhere here.

    `settings`: the arguments of `from_pretrained` that may say how its weights are quantised.
    """
    from rlkd.memory.models import WeightlessModel

    path = resolve_model(base_of_adapter(Path(name).expanduser())) if is_adapter(name) else resolve_model(name)
    chosen = "float32" if dtype == "auto" and device == "cpu" else dtype
    bits, double = quantisation(settings or {})
    config = _config(path, **options)
    return WeightlessModel(config, dtype=chosen, bits=bits, double_quantised=double, trains=False)


def file_bytes(model: WeightlessModel, device: str) -> int:
    """Bytes of a quantised model's file in full precision that are resident besides its weights.

    On a CPU the embedding stays where the file is mapped, and keeps the pages from which the other weights were read.
    (The system may take them back. A file of another dtype than the model's is closed.)
    """
    return model.quantised_from if device == "cpu" else 0


def quantisation(settings: Mapping[str, Any]) -> tuple[int | None, bool]:
    """The bits of quantised weights and whether 4-bit scales are quantised too, from `model_init_kwargs`."""
    given = settings.get("quantization_config") or settings
    read = given.get if isinstance(given, Mapping) else lambda name: getattr(given, name, None)
    bits = 4 if read("load_in_4bit") else 8 if read("load_in_8bit") else None
    return bits, bool(read("bnb_4bit_use_double_quant"))


def resident_bytes() -> int:
    """The memory of this process now: the interpreter with the libraries that it has loaded."""
    return int(psutil.Process().memory_info().rss)


def generating(
    student: StudentMemory,
    args: Any,
    fixed: dict[str, int],
    notes: list[str],
    *,
    shape: tuple[int, int, int, int],
    gpu_bytes: int | None,
) -> MemoryPhase:
    """The phase of generation, in this process or by vLLM on its GPU, which `fixed` gets where vLLM keeps its memory.

    `shape`: completions, distinct prompts, tokens of a prompt and of a completion. `gpu_bytes`: see `memory_plan`.
    """
    if not args.use_vllm:
        return MemoryPhase("generating", {**fixed, **_generation_roles(student, args, *shape)})
    taken = _vllm_bytes(args, student.device, gpu_bytes)
    if taken is None:
        notes.append("vLLM takes vllm_gpu_memory_utilization of the GPU, whose size is not known here")
    elif taken and not args.vllm_enable_sleep_mode:
        fixed["vLLM"] = taken
    return MemoryPhase("generating", {**fixed, "vLLM": taken or 0})


def _generation_roles(
    student: StudentMemory, args: Any, rows: int, groups: int, prompt: int, completion: int
) -> dict[str, int]:
    from rlkd.decoding import keeps_every_state
    from rlkd.memory.passes import cache_bytes, reading_pass

    model = student.model
    fast = takes_fast_path_on(args, student.device) and keeps_every_state(model.config)
    states = cache_bytes(model, rows, prompt + completion)
    # A layer's states are copied when they grow; on the fast path those of the distinct prompts stay, too.
    states += states // model.config.get_text_config().num_hidden_layers
    copies = 0
    if fast:
        states += cache_bytes(model, groups, prompt)
        if model.dtype == "float32" and model.bits is None:
            # Merged adapters; on a CPU all matrices may be stored by columns (`trainers/common/decoding_weights.py`).
            copies = model.matrices(only_adapted=student.device != "cpu")
    return {
        "decoding copies": copies,
        "KV cache": states,
        "logits": rows * model.vocabulary * DRAWING,
        "activations": reading_pass(model, groups if fast else rows, prompt).most,
    }


def _vllm_bytes(args: Any, device: str, gpu_bytes: int | None) -> int | None:
    """Bytes that vLLM takes of this process's GPU: 0 for a server, None where the size of the GPU is unknown."""
    if args.vllm_mode != "colocate" or device != "cuda":
        return 0
    if gpu_bytes is None:
        import torch

        if not torch.cuda.is_available():
            return None
        gpu_bytes = int(torch.cuda.get_device_properties(0).total_memory)
    return int(args.vllm_gpu_memory_utilization * gpu_bytes)


def takes_fast_path_on(args: Any, device: str) -> bool:
    """Whether a run on this device takes the fast path; see `trainers.common.fast_path`."""
    return bool(args.fast_path == "always" or (args.fast_path == "auto" and device == "cpu"))


def training_phases(
    student: StudentMemory,
    fixed: Mapping[str, int],
    *,
    shape: tuple[int, int],
    accumulated: bool,
    loss_logits: int,
) -> list[MemoryPhase]:
    """The phases of an optimizer step: the loss, the backward pass, the update.

    `shape`: rows and tokens of a micro-batch. `accumulated`: whether a step has several. `loss_logits`: bytes that the
    loss takes at the head. While a backward pass goes on, activations make room for gradients, so that the most is
    needed at its beginning (backward) or at its end (update).
    """
    from rlkd.memory.passes import training_pass

    model, gradients = student.model, student.model.gradients
    made = training_pass(model, *shape, resident=student.device == "cpu")
    head = model.head.numel() * model.head.element_size() if model.is_trained(model.head) else 0
    first = gradients if accumulated else head
    # A gradient that is there already gets another one added to it, of the embedding as large as the embedding.
    twice = accumulated or model.head is model.embedding
    last = model.embedding.numel() * model.embedding.element_size() if model.is_trained(model.embedding) else 0
    summed = 4 * model.head.numel() if head else 0  # the head's gradient, in float32
    return [
        MemoryPhase(
            "loss",
            {
                **fixed,
                "gradients": gradients if accumulated else 0,
                "activations": made.kept,
                "logits": loss_logits + summed,
            },
        ),
        MemoryPhase("backward", {**fixed, "gradients": first, "activations": made.most}),
        MemoryPhase("update", {**fixed, "gradients": gradients, "activations": last if twice else 0}),
    ]


def logprob_logits(model: WeightlessModel, positions: int, device: str, *, trains: bool) -> int:
    """Bytes of TRL's chunked log-probabilities at the head, `positions` tokens at once (TRL 1.16, `chunked_logprob`).

    A tile has at most 4,096 x 32,768 logits. On a GPU a kernel reads it in place. On a CPU whole tiles come besides
    it: three in the forward pass (scaled logits twice, exponentials), eight in the backward pass (scaled logits twice,
    log-probabilities, probabilities, the gradient, and three of its terms). The gradient of the hidden states is
    summed in float32.
    """
    rows, columns = min(positions, TILE_ROWS), min(model.vocabulary, TILE_COLUMNS)
    hidden = 4 * positions * model.width if trains else 0
    if device != "cpu":
        return rows * TILE_COLUMNS * model.number + hidden
    return rows * columns * (model.number + 4 * (8 if trains else 3)) + hidden


# Of TRL's chunked log-probabilities: tokens and columns of a tile.
TILE_ROWS, TILE_COLUMNS = 4096, 32768


def reward_model_bytes(names: Sequence[str], args: Any, device: str) -> int:
    """Bytes of the weights of reward models, which TRL loads with the student's options."""
    given = dict(args.model_init_kwargs or {})
    dtype = str(given.get("dtype") or "auto").removeprefix("torch.")
    return sum(read_frozen(name, dtype=dtype, device=device, **reading_options(args)).weights for name in names)


def joined(fixed: Mapping[str, int], further: Mapping[str, int]) -> dict[str, int]:
    """The bytes by role of both; a role that is in both counts twice."""
    return {role: fixed.get(role, 0) + further.get(role, 0) for role in {**fixed, **further}}


def used_model_bytes(
    uses: Iterable[ModelUse], device: str, *, rows: int, tokens: int
) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of the weights of models that rewards or scorers hold on this device, and of their caches, by role.

    `rows`: completions that are scored at a time. `tokens`: of a prompt with its completion, which is what a request
    is taken to hold.
    """
    from rlkd.memory.passes import cache_bytes

    weights: dict[str, int] = {}
    caches: dict[str, int] = {}
    for use in uses:
        held, cache = use.model, f"{use.role}'s cache"
        if (held.device or device).partition(":")[0] != device:
            continue
        # A classifier counts with the head of a language model, which is at least as large as its own.
        frozen = read_frozen(held.model, dtype=held.dtype, device=device)
        # On a CPU in float32 matrices are stored anew for generation, and the pages of the file stay mapped.
        copies = 2 if held.column_major and device == "cpu" and held.dtype in ("auto", "float32") else 1
        weights[use.role] = weights.get(use.role, 0) + copies * frozen.weights
        if use.new_tokens:
            whole = tokens + use.new_tokens
            # A batch fits batch_tokens; the states of its prompts are there twice, as read and as they are continued.
            batch = max(1, held.batch_tokens // whole)
            batch = batch if use.requests is None else min(batch, rows * use.requests)
            states = cache_bytes(frozen, batch, whole) + cache_bytes(frozen, batch, tokens)
            caches[cache] = caches.get(cache, 0) + states
    return weights, caches


def _config(source: str, **options: Any) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source, **options)
    except Exception as error:  # OSError, ValueError, and whatever the hub's client raises
        raise UsageError(f"the model {source!r} cannot be read: {first_line(error)}") from error
