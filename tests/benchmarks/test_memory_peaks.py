"""The quick form of `benchmarks/memory_peaks.py`, one case, and its count of bytes."""

import sys
from types import SimpleNamespace

import pytest
import torch

from tests.helpers.scripts import load_script, quick_figures


@pytest.mark.slow
def test_a_case_has_the_bytes_the_peak_and_the_losses_of_each_arm(tmp_path) -> None:
    pytest.importorskip("bitsandbytes")
    full, small = quick_figures("memory_peaks.py", tmp_path, "--only", "gsrm")["gsrm"].values()
    assert small["held_mib"] < full["held_mib"] < 1024 * full["peak_gib"]
    assert len(full["loss"]) == len(small["loss"]) == 3
    assert small["loss"] == pytest.approx(full["loss"], rel=0.05)
    assert small["loss"] != full["loss"]


def test_parameters_gradients_and_states_are_counted_each_once() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 4, bias=False), torch.nn.Linear(4, 4))
    model.append(model[1])  # shared
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    trainer = SimpleNamespace(model=model, optimizer=SimpleNamespace(optimizer=optimizer))
    found = load_script("benchmarks/memory_peaks.py").held_bytes(trainer)
    count = 4 * (8 * 4 + 4 * 4 + 4)
    assert found == {"parameters": count, "gradients": count, "optimizer": count}


def test_sharded_weights_are_compared_with_whole_ones_or_not_measured(monkeypatch, capsys) -> None:
    script = load_script("benchmarks/memory_peaks.py")
    whole = {"loss": [2.0], "grad_norm": [1.0], "held_mib": [100.0]}
    assert script.sharded_bounds({"one process": whole}) == {}
    found = script.sharded_bounds({"one process": whole, "fsdp2": {**whole, "loss": [2.1], "held_mib": [50.0, 51.0]}})
    assert list(found.values()) == [False, True, True]
    monkeypatch.setattr(sys, "argv", ["memory_peaks.py", "--only", "sharded", "--arms", "fsdp2"])
    with pytest.raises(SystemExit):
        script.main()
    assert "name 'one process', too" in capsys.readouterr().err
