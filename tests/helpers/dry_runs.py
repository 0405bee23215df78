"""Dry runs of the recipes within the test's process."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel
from trl import ModelConfig, SFTConfig

from tests.helpers import ROOT
from tests.helpers.scripts import load_script
from trainers import RLKDAsyncConfig, RLKDConfig, ValidityKDConfig
from trainers.common.arguments import start
from trainers.dry_run.dry_run import DryRun

_KINDS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "rlkd": ("RLKDScriptArguments", (RLKDConfig, ModelConfig)),
    "validity_kd": ("ValidityKDScriptArguments", (ValidityKDConfig, ModelConfig)),
    "rlkd_async": ("RLKDAsyncScriptArguments", (RLKDAsyncConfig,)),
    "sft": ("SFTScriptArguments", (SFTConfig, ModelConfig)),
    "gsrm": ("GSRMScriptArguments", (SFTConfig, ModelConfig)),
    "rationales": ("RationalesScriptArguments", ()),
    "teacher_cache": ("TeacherCacheScriptArguments", ()),
}


def dry_run_of(recipe: str, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit status of a recipe with `--dry_run`; where it reads weights without `probe`, the test fails."""
    script = load_script(f"recipes/{recipe}.py")
    words = list(map(str, arguments))
    with monkeypatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "0")
        if "probe" not in words:
            _forbid_weights(patch)
        if recipe == "evaluate":
            status = script.command([*words, "--dry_run"])
            assert isinstance(status, int), status
            return status
        patch.setattr(sys, "argv", [recipe, *words, *(["--dry_run"] if "--dry_run" not in words else [])])
        name, further = _KINDS[recipe]
        kinds = (getattr(script, name), *further)
        config = ROOT / "recipes" / f"{recipe}.yaml"
        try:
            start(script.main, kinds, default_config=config, dry_run=script.dry_run)
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code)
            return 1 if isinstance(end.code, str) else int(end.code or 0)
        return 0


def _forbid_weights(monkeypatch: pytest.MonkeyPatch) -> None:

    def refuse(*_: Any, **__: Any) -> Any:
        pytest.fail("weights are loaded")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)
    monkeypatch.setattr("safetensors.safe_open", refuse)
    monkeypatch.setattr("safetensors.torch.load_file", refuse)
    monkeypatch.setattr("torch.load", refuse)


def without_weights(model: str, folder: Path) -> str:
    """A copy of a model's folder with a file of weights that holds none."""
    folder.mkdir()
    for path in Path(model).iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"no weights")
    return str(folder)


def shown_by(show: Callable[[DryRun], None], capsys: pytest.CaptureFixture[str], mode: str = "check") -> str:
    """What a section prints, on lines of one space between words."""
    run = DryRun(mode)
    show(run)
    assert run.messages == []
    return plain(capsys.readouterr().out)


def plain(text: str) -> str:
    """A text with its line breaks as spaces."""
    return " ".join(text.split())
