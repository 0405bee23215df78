"""Settings that every trainer shares, refused in one sentence before a model loads."""

from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from huggingface_hub import HfApi

from rlkd.errors import UsageError
from tests.helpers.fake_hub import FakeHub
from trainers.common import preflight
from trainers.common.preflight import check_settings, has_images


def settings(**changes):
    values = {
        "bf16": False,
        "device": torch.device("cpu"),
        "eval_strategy": "no",
        "report_to": [],
        "push_to_hub": False,
        "hub_token": None,
        "process_index": 0,
        "output_dir": "runs/x",
    }
    return SimpleNamespace(**values | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_strategy": "steps"}, "eval_strategy steps without an eval_dataset. Set eval_strategy: no.*eval_rows"),
        ({"eval_strategy": "epoch"}, "eval_strategy epoch without"),
        ({"report_to": ["wandb"]}, "report_to wandb: the package is not installed. Run  pip install wandb"),
        ({"report_to": ["tensorboard", "wandb"]}, "report_to tensorboard"),
        ({"report_to": ["wandbb"]}, "report_to 'wandbb' is no tracker. Did you mean 'wandb'"),
        ({"push_to_hub": True}, "push_to_hub: the hub cannot be used .*hf auth login"),
    ],
)
def test_what_would_end_the_run_after_loading_ends_it_before(monkeypatch, changes, message) -> None:
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", lambda: ["mlflow"])
    with pytest.raises(UsageError, match=message) as caught:
        check_settings(settings(**changes), None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("role", ["read", "write"])
def test_a_token_that_can_only_read_is_refused(monkeypatch, role) -> None:
    hub = FakeHub(role)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi", partial(HfApi, endpoint=hub.url))
    expected = pytest.raises(UsageError, match="the token of you can only read") if role == "read" else nullcontext()
    with expected:
        check_settings(settings(push_to_hub=True, hub_token="hf_token"), None)
    hub.shut_down()
    assert hub.asked == ["GET /api/whoami-v2"]


def test_settings_that_work_pass(monkeypatch) -> None:
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", lambda: ["wandb"])
    monkeypatch.setattr(preflight, "_check_hub", lambda args: pytest.fail("asked"))
    assert check_settings(settings(report_to=["wandb"], push_to_hub=True, process_index=1), None) is None
    assert check_settings(settings(eval_strategy="steps"), Dataset.from_list([{"prompt": "1?"}])) is None


def test_a_gpu_without_bfloat16_is_named_with_the_way_out(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Tesla T4")
    with pytest.raises(UsageError, match=r"Tesla T4 does not compute in bfloat16. Set bf16: false and fp16: true"):
        check_settings(settings(bf16=True, device=torch.device("cuda")), None)
    check_settings(settings(bf16=True), None)  # a CPU


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ({"image": [None, None]}, False),
        ({"image": ["a.png", None]}, True),
        ({"images": [None, None]}, False),
        ({"images": [[], []]}, False),
        ({"images": [None, ["a.png"]]}, True),
        ({"question": ["x", "y"]}, False),
    ],
)
def test_a_column_of_nothing_has_no_images(column, expected) -> None:
    dataset = Dataset.from_dict(column)
    assert any(has_images(dataset, name) for name in ("image", "images")) is expected


def test_an_output_folder_that_cannot_be_written_is_named_and_none_is_made(tmp_path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UsageError, match=r"output_dir .*: nothing can be written there \(.*file is a file\)"):
            check_settings(settings(output_dir=str(place)), None)
    check_settings(settings(output_dir=str(tmp_path / "new" / "run")), None)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
