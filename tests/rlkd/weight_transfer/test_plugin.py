"""The plugin that every vLLM on a machine with rlkd loads: light, and nothing but a few names in a table."""

import subprocess
import sys
import types

import pytest

from rlkd.weight_transfer import BACKENDS, register


class Table:
    """vLLM's table of weight-transfer engines, as far as a plugin sees it."""

    def __init__(self) -> None:
        self.engines: dict[str, tuple[str, str]] = {"nccl": ("vllm", "NCCL")}

    def register_engine(self, name: str, module: str, engine: str) -> None:
        if name in self.engines:
            raise ValueError(f"{name} is already registered")
        self.engines[name] = (module, engine)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    known = Table()
    for name in ("vllm", "vllm.distributed", "vllm.distributed.weight_transfer"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    factory = types.ModuleType("vllm.distributed.weight_transfer.factory")
    factory.WeightTransferEngineFactory = known  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, factory.__name__, factory)
    return known


def test_loading_the_plugin_imports_no_heavy_library() -> None:
    code = (
        "import sys, rlkd.weight_transfer as w; "
        "sys.modules['vllm'] = None; w.register(); "
        "print([m for m in ('torch', 'trl', 'transformers', 'rlkd.weight_transfer.engines') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_all_backends_are_known_to_vllm_however_often_they_register(table: Table) -> None:
    register()
    register()
    assert set(table.engines) == {"nccl", *BACKENDS}
    assert table.engines["gloo"] == ("rlkd.weight_transfer.engines", "GlooEngine")


def test_a_name_that_vllm_gives_to_an_engine_of_its_own_stays_vllms(table: Table) -> None:
    table.engines["disk"] = ("vllm", "itsown")
    register()
    assert table.engines["disk"] == ("vllm", "itsown")
    assert "gloo" in table.engines


def test_the_names_of_the_engines_exist(root) -> None:
    for module, engine in BACKENDS.values():
        source = (root / f"{module.replace('.', '/')}.py").read_text()
        assert f"class {engine}(" in source


def test_the_wheel_declares_the_plugin_to_vllm(root) -> None:
    import tomllib

    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    (target,) = project["entry-points"]["vllm.general_plugins"].values()
    module, name = target.split(":")
    assert (module, name) == (register.__module__, register.__name__)
