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


@pytest.mark.parametrize("interrupted", [True, False])
def test_a_model_of_the_cache_without_weights_is_named_offline(model, tmp_path, monkeypatch, interrupted) -> None:
    stored = tmp_path / "hub" / "models--org--name"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text("1" * 40)
    (model / "model.safetensors").unlink()
    shutil.move(model, stored / "snapshots" / ("1" * 40))
    (stored / "blobs").mkdir()
    if interrupted:
        (stored / "blobs" / "0.incomplete").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fault = weights_fault("org/name")
    assert "has a config and no weights" in fault
    assert ("their download was interrupted" in fault) is interrupted
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert weights_fault("org/name") is None
    assert weights_fault("org/unknown") is None
