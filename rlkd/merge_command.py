"""`rlkd merge`: merges an adapter into its base, checks that both compute the same, and writes an ordinary model."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlkd.chat import run_records
from rlkd.errors import UsageError, first_line
from rlkd.merging import TOLERANCE, MergeCheck, merge, tokenizer_source
from rlkd.models import ADAPTED, adapter_folder, base_of_adapter, is_adapter, resolve_model
from rlkd.rendering import prompt_ids

DESCRIPTION = """\
Merge an adapter into its base and write an ordinary model: safetensors, configs, tokenizer and chat template.

  rlkd merge runs/sft --out models/student
  rlkd merge runs/sft/checkpoint-30 --out models/student-30 --dtype bfloat16
  rlkd merge runs/qlora --out models/student --base Qwen/Qwen2.5-1.5B-Instruct

vLLM, llama.cpp and other tools load the result as they load any model. The logits of the written model are compared
with those of base and adapter; where they differ by more than rounding, nothing is written."""

_QUESTION = (
    "Anna has 12 apples and buys 30 more. She gives a third of them to Ben. How many apples does Anna have now?"
)
_PROBE_TOKENS = 64


def main(arguments: Sequence[str]) -> int:
    """Run `rlkd merge`; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="rlkd merge", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "adapter",
        metavar="ADAPTER",
        help="folder of an adapter: a run or a checkpoint; or a shipped one (embedded-warm)",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", required=True, help="new folder for the merged model")
    parser.add_argument("--base", metavar="MODEL", help="base model, in place of the one that the adapter names")
    parser.add_argument(
        "--dtype",
        choices=["auto", *TOLERANCE],
        default="auto",
        help="dtype of the merged weights (default: auto, the base's own)",
    )
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the base")
    given = parser.parse_args(arguments)
    # Deprecations between PEFT and transformers are not the user's; nor is a base that only rlkd knows by its name.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", message="Could not find a config file in", module="peft")
    for line in merge_adapter(
        adapter_folder(given.adapter) if given.adapter in ADAPTED else Path(given.adapter).expanduser(),
        given.out.expanduser(),
        base=given.base,
        dtype=given.dtype,
        trust_remote_code=given.trust_remote_code,
    ):
        print(line)
    return 0


def merge_adapter(
    adapter: Path,
    out: Path,
    *,
    base: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> list[str]:
    """Write the merged model to the new folder `out`; return what there is to say about it, line by line.

    Raises `UsageError` where `adapter` is none, its base is not there or quantised, `out` is in use, or the merged
    model computes something else; then nothing is written.
    """
    _check_folders(adapter, out)
    base = base or base_of_adapter(adapter)
    found = _base_folder(adapter, base, trust_remote_code)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
            made = Path(scratch) / "model"
            probe = _probe(tokenizer_source(adapter, found), trust_remote_code)
            comparison = merge(found, adapter, made, dtype=dtype, trust_remote_code=trust_remote_code, probe=probe)
            assert comparison is not None
            _check_same(adapter, comparison)
            _write_card(adapter, base, made)
            for record in run_records(adapter)[:1]:  # with the prompt of the run, for `rlkd chat`
                shutil.copyfile(record, made / record.name)
            if out.exists():  # an empty folder
                out.rmdir()
            made.rename(out)
    except UsageError:
        raise
    except Exception as error:  # a full disk, weights that do not fit: each library has its own errors
        raise UsageError(f"the adapter {adapter} cannot be merged into {base!r}, in {out}: {error}") from error
    size = sum(path.stat().st_size for path in out.glob("*.safetensors")) / 1e6
    return [
        *_warnings(adapter, base),
        f"logits:  equal to those of base and adapter up to {comparison.difference:.1e} (limit: "
        f"{TOLERANCE[comparison.dtype]:g} of the largest, {comparison.tolerance:.1e}); the adapter itself moves them "
        f"by up to {comparison.effect:.1e}",
        f"model:   {out} ({size:.0f} MB, {comparison.dtype})",
        f"ask it:  rlkd chat {out}",
    ]


def _check_folders(adapter: Path, out: Path) -> None:
    if not is_adapter(str(adapter)):
        if not adapter.is_dir():
            raise UsageError(
                f"there is no folder {adapter}. Give the folder of an adapter, as a run with LoRA saves it (download "
                f"one of the hub first: hf download ID --local-dir FOLDER)"
            )
        if (adapter / "config.json").is_file():
            raise UsageError(f"{adapter} is a whole model already: there is nothing to merge. Use it as it is")
        raise UsageError(f"{adapter} has no adapter_config.json. Give the folder of an adapter, or a checkpoint of it")
    if not (adapter / "adapter_model.safetensors").is_file():
        raise UsageError(
            f"{adapter} has no adapter_model.safetensors, and pickled weights are not read. Save the adapter again "
            f"with save_pretrained"
        )
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"--out {out} exists and is not empty; nothing is overwritten. Name a new folder")


def _base_folder(adapter: Path, base: str, trust_remote_code: bool) -> str:
    """What `from_pretrained` takes for the base; raises `UsageError` where it is not there, or quantised."""
    from transformers import AutoConfig

    try:
        found = resolve_model(base, trust_remote_code=trust_remote_code)
        config = AutoConfig.from_pretrained(found, trust_remote_code=trust_remote_code)
    except UsageError:
        raise
    except Exception as error:  # each library has its own errors
        raise UsageError(
            f"the base {base!r} of the adapter {adapter} cannot be read: {first_line(error)}. Name where it is here: "
            f"--base FOLDER_OR_HUB_ID"
        ) from error
    if (stored := getattr(config, "quantization_config", None)) is not None:
        method = stored.get("quant_method", "") if isinstance(stored, dict) else getattr(stored, "quant_method", "")
        raise UsageError(
            f"the base {base!r} is stored quantised ({getattr(method, 'value', method) or 'unknown method'}), and an "
            f"adapter merges into full precision only. Name the model that it was made from: --base FOLDER_OR_HUB_ID"
        )
    return found


def _probe(tokenizer_folder: str, trust_remote_code: bool) -> list[int]:
    """The ids of a question as the model reads it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, trust_remote_code=trust_remote_code)
    chats = bool(getattr(tokenizer, "chat_template", None))
    return prompt_ids(tokenizer, [{"role": "user", "content": _QUESTION}] if chats else _QUESTION)[-_PROBE_TOKENS:]


def _check_same(adapter: Path, found: MergeCheck) -> None:
    if not found.is_equal:
        raise UsageError(
            f"the merged model differs from base and adapter: a logit by {found.difference:.2g}, where rounding to "
            f"{found.dtype} explains {found.tolerance:.2g}. The adapter {adapter} cannot be merged (does it change a "
            f"head that is tied to the embedding?); nothing was written. Use it as an adapter"
        )


def _card_data(adapter: Path) -> dict[str, Any]:
    """The metadata of an adapter's model card; empty where there is none that can be read."""
    from huggingface_hub import ModelCard

    try:
        found: dict[str, Any] = ModelCard.load(adapter / "README.md").data.to_dict()
    except Exception:  # a card is a text of anybody's
        return {}
    return found


def _warnings(adapter: Path, base: str) -> list[str]:
    quantised = _card_data(adapter).get("quantized_base")
    if not quantised:
        return []
    return [
        f"warning: the adapter was trained on {base} in {quantised}, and is merged into its full precision. The "
        f"merged model is not quite the trained one: evaluate it (rlkd evaluate) before you rely on it"
    ]


def _write_card(adapter: Path, base: str, out: Path) -> None:
    """The adapter's model card for the merged model; nothing without one."""
    from huggingface_hub import ModelCard

    try:
        card: Any = ModelCard.load(adapter / "README.md")
    except Exception:  # no card, or one that is not for the hub
        return
    card.data.library_name = "transformers"
    card.data.tags = [tag for tag in card.data.tags or [] if tag != "lora" and "adapter" not in str(tag)]
    card.text = (
        f"{card.text.rstrip()}\n\n## Merged\n\nThe adapter was merged into its base, `{base}`, by `rlkd merge`.\n"
    )
    card.save(out / "README.md")
