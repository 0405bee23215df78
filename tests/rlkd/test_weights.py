import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from rlkd.weights import weights_fault


@pytest.fixture
def model(tmp_path, tiny_model) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_whole_weights_have_no_fault(model) -> None:
    assert weights_fault(str(model)) is None


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda content: content[:-1], "is truncated"),
        (lambda content: content[:100], "is no whole safetensors file (100 bytes)"),
        (lambda content: b"", "is no whole safetensors file (0 bytes)"),
        (lambda content: content[:8] + b"x" * (len(content) - 8), "has no readable safetensors header"),
        (lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a pointer of Git LFS"),
    ],
)
def test_a_file_that_is_not_whole_is_named(model, spoil, fault) -> None:
    path = model / "model.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    assert f"model.safetensors {fault}" in weights_fault(str(model))


def test_shards_that_are_missing_are_counted(model) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors", "c": "model-3.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "names model-2.safetensors, which is not there (2 missing in all)" in weights_fault(str(model))


def test_other_formats_do_not_matter_beside_safetensors(model) -> None:
    index = {"weight_map": {"a": "pytorch_model-00001-of-00002.bin"}}
    (model / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (model / "pytorch_model.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert weights_fault(str(model)) is None
    (model / "model.safetensors").unlink()
    assert "pytorch_model.bin is a pointer of Git LFS" in weights_fault(str(model))
    (model / "pytorch_model.bin").unlink()
    assert "names pytorch_model-00001-of-00002.bin, which is not there" in weights_fault(str(model))


def test_what_a_download_has_yet_to_bring_is_a_fault_only_offline(model, tmp_path, monkeypatch) -> None:
    snapshot = cached(model, tmp_path, monkeypatch)
    index = snapshot / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}))
    assert weights_fault("org/name") is None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "names model-2.safetensors" in weights_fault("org/name")
    index.unlink()
    (snapshot / "model-2.safetensors").symlink_to(tmp_path / "gone")
    assert "model-2.safetensors is a link to a file that is not there" in weights_fault("org/name")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert weights_fault("org/name") is None
    (snapshot / "model.safetensors").write_bytes(b"")
    assert "is no whole safetensors file" in weights_fault("org/name")


def cached(model: Path, tmp_path: Path, monkeypatch) -> Path:
    """The folder of a model that was moved into a cache of the hub as org/name; the process is online."""
    stored = tmp_path / "hub" / "models--org--name"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text("1" * 40)
    (stored / "blobs").mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return Path(shutil.move(model, stored / "snapshots" / ("1" * 40)))


@pytest.mark.parametrize("interrupted", [True, False])
def test_a_model_of_the_cache_without_weights_is_named_offline(model, tmp_path, monkeypatch, interrupted) -> None:
    snapshot = cached(model, tmp_path, monkeypatch)
    (snapshot / "model.safetensors").unlink()
    if interrupted:
        (snapshot.parent.parent / "blobs" / "0.incomplete").touch()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fault = weights_fault("org/name")
    assert "has a config and no weights" in fault
    assert ("their download was interrupted" in fault) is interrupted
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert weights_fault("org/name") is None
    assert weights_fault("org/unknown") is None
