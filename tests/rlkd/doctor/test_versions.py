import platform
from pathlib import Path

import pytest

from rlkd.doctor import versions
from rlkd.doctor.versions import check_versions, declared, environment, pinned_versions


@pytest.fixture
def home(tmp_path) -> Path:
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nrequires-python = ">=3.11"\ndependencies = ["trl>=1.15,<1.17", "datasets>=4.0"]\n'
    )
    (tmp_path / "constraints.txt").write_text("# tested\ntrl==1.16.0\ndatasets==5.2.0  # rows\n")
    return tmp_path


def texts(home, installed):
    return {
        f.level: f"{f.text} {f.way_out}" for f in check_versions(home, installed) if "python" not in f.text.lower()
    }


def test_versions_that_were_tested_together_are_ok(home):
    found = texts(home, {"trl": "1.16.0", "datasets": "5.2.0"})
    assert "warning" not in found
    assert "problem" not in found


def test_the_name_of_a_build_is_no_difference(home):
    assert "warning" not in texts(home, {"trl": "1.16.0+cpu", "datasets": "5.2.0"})


def test_another_version_in_the_range_is_a_warning_with_the_command_for_the_tested_ones(home):
    found = texts(home, {"trl": "1.15.0", "datasets": "5.2.0"})
    assert "trl 1.15.0 (tested: 1.16.0)" in found["warning"]
    assert f"pip install -c {home / 'constraints.txt'}" in found["warning"]


@pytest.mark.parametrize(
    ("installed", "words"),
    [
        ({"trl": "1.14.0", "datasets": "5.2.0"}, "trl 1.14.0: rlkd supports <1.17,>=1.15"),
        ({"trl": "1.16.0"}, "datasets is not installed"),
    ],
)
def test_a_version_out_of_range_and_a_missing_package_are_problems(home, installed, words):
    problem = texts(home, installed)["problem"]
    assert words in problem
    assert "pip install '" in problem


def test_another_python_is_a_problem(home, monkeypatch):
    monkeypatch.setattr(platform, "python_version", lambda: "3.10.1")
    first = next(iter(check_versions(home, {})))
    assert (first.level, first.text, first.way_out) == ("problem", "Python 3.10.1", "rlkd needs >=3.11.")


@pytest.mark.parametrize(
    ("version", "level", "words"),
    [(None, "ok", "not installed"), ("0.25.0", "ok", "TRL supports"), ("0.10.0", "warning", "0.22.0 to 0.31.0")],
)
def test_the_range_of_vllm_is_trls(home, monkeypatch, version, level, words):
    monkeypatch.setattr(versions, "installed_vllm", lambda: version)
    [found] = [f for f in check_versions(home, {}) if "vLLM" in f.text]
    assert found.level == level
    assert words in found.text


def test_an_installed_wheel_has_the_ranges_of_its_metadata_and_no_tested_versions(tmp_path):
    python, needed = declared(tmp_path)
    assert python == ">=3.11"
    assert "trl" in {requirement.name for requirement in needed}
    assert "pytest" not in {requirement.name for requirement in needed}
    assert pinned_versions(tmp_path) == {}
    assert environment()["trl"]
