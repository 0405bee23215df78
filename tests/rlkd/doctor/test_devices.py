import pytest

from rlkd.doctor.devices import GPU, check_devices, check_gpu, cpu_flags, list_gpus
from rlkd.doctor.findings import GIB

HOPPER = GPU("H100", 80 * GIB, 79 * GIB, (9, 0), "550.1")
KERNELS = ["sm_80", "sm_86", "sm_90"]


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """An `nvidia-smi` that prints the given rows."""

    def install(rows: str) -> None:
        script = tmp_path / "nvidia-smi"
        script.write_text(f"#!/bin/sh\ncat <<'ROWS'\n{rows}\nROWS\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return install


def test_the_drivers_list_is_read_and_rows_without_numbers_are_left_out(driver):
    driver("NVIDIA H100, 81559, 80000, 9.0, 550.1\nNVIDIA Thing, [N/A], [N/A], [N/A], 550.1\nNo devices")
    [gpu] = list_gpus()
    assert gpu == GPU("NVIDIA H100", 81559 << 20, 80000 << 20, (9, 0), "550.1")


@pytest.mark.parametrize(
    ("changes", "kernels", "level", "words"),
    [
        ({}, KERNELS, "ok", "compute capability 9.0, driver 550.1; bfloat16 and float16"),
        ({"capability": (7, 5)}, ["sm_75"], "warning", "set bf16: false and fp16: true"),
        ({"free": 9 * GIB}, KERNELS, "warning", "Other processes hold more than half"),
        ({"capability": (12, 0)}, KERNELS, "problem", "no code for it"),
        ({"capability": (12, 0)}, [*KERNELS, "compute_90"], "ok", "12.0"),
        ({"capability": (8, 9)}, KERNELS, "ok", "8.9"),
    ],
)
def test_a_gpu_is_judged_by_its_capability_its_memory_and_the_build_of_pytorch(changes, kernels, level, words):
    [found] = check_gpu(0, GPU(**vars(HOPPER) | changes), kernels)
    assert found.level == level
    assert words in f"{found.text} {found.way_out}"


def test_a_gpu_that_pytorch_does_not_see_is_a_warning(driver, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    driver("NVIDIA H100, 81559, 80000, 9.0, 550.1")
    first = next(iter(check_devices()))
    assert first.level == "warning"
    assert "NVIDIA H100" in first.text
    assert "does not see it" in first.text
    assert "pytorch.org" in first.way_out


def test_the_flags_of_the_cpu_say_whether_it_multiplies_bfloat16(tmp_path, monkeypatch):
    listing = tmp_path / "cpuinfo"
    listing.write_text("processor\t: 0\nflags\t\t: fpu amx_bf16 sse\nflags\t\t: fpu\n")
    assert cpu_flags(listing) == {"fpu", "amx_bf16", "sse"}
    assert cpu_flags(tmp_path / "nothing") == frozenset()
    for flags, words in ((frozenset({"amx_bf16"}), "in bfloat16 (amx_bf16)"), (frozenset(), "would be emulated")):
        monkeypatch.setattr("rlkd.doctor.devices.cpu_flags", lambda flags=flags: flags)
        assert words in list(check_devices())[-1].text
