import re
import tomllib

import pytest
from packaging.requirements import Requirement

from rlkd.errors import UsageError
from rlkd.installation import SUPPORTED_TRL, check_trl_version
from tests.helpers import ROOT
from trainers.common.arguments import require_trl


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Makes a version of TRL the one that is found first."""

    def install(version: str) -> None:
        folder = tmp_path / f"trl-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: trl\nVersion: {version}\n")
        monkeypatch.syspath_prepend(tmp_path)

    return install


def test_the_tested_range_of_trl_is_the_declared_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (declared,) = (each for each in map(Requirement, project["dependencies"]) if each.name == "trl")
    assert declared.specifier == SUPPORTED_TRL
    assert check_trl_version() is None


@pytest.mark.parametrize("version", ["1.14.2", "1.17.0", "2.0.0"])
def test_an_untested_trl_is_refused_by_version_before_it_is_imported(installed, version) -> None:
    import trainers

    installed(version)
    with pytest.raises(UsageError, match=rf'TRL {version}: .*"trl<1.17,>=1.15".*RLKD_ALLOW_UNTESTED=1'):
        _ = trainers.RLKDConfig
    with pytest.raises(SystemExit, match=rf"^\nUsageError: TRL {version}: "):
        require_trl()


@pytest.mark.parametrize("version", ["1.15.0", "1.16.3", "1.16.1.dev0"])
def test_a_version_in_the_range_is_taken(installed, version) -> None:
    installed(version)
    assert check_trl_version() is None


def test_asynchronous_training_needs_a_newer_one(installed) -> None:
    import trainers

    installed("1.15.0")
    with pytest.raises(UsageError, match=r'TRL 1.15.0: asynchronous training .*"trl<1.17,>=1.16"'):
        _ = trainers.RLKDAsyncConfig
    with pytest.raises(SystemExit, match=r"^\nUsageError: TRL 1.15.0: asynchronous training "):
        require_trl(asynchronous=True)


def test_the_oldest_trl_that_is_tested_is_the_oldest_of_the_range() -> None:
    (version,) = re.findall(r"trl==([\d.]+)", (ROOT / "Makefile").read_text())
    assert SUPPORTED_TRL.contains(version)
    assert f">={version.removesuffix('.0')}" in str(SUPPORTED_TRL)


def test_an_untested_trl_can_be_tried(installed, monkeypatch) -> None:
    installed("2.0.0")
    monkeypatch.setenv("RLKD_ALLOW_UNTESTED", "1")
    assert check_trl_version() is None
