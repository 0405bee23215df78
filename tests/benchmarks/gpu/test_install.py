import json
import zipfile
from pathlib import Path

import pytest

from gpu import bundle
from gpu.install import install


def write_bundle(folder: Path, requirements: list[str], wheels: dict[str, list[str]]) -> Path:
    """A bundle of wheels with one module each, by name, with their requirements."""
    (folder / "wheels").mkdir(parents=True)
    (folder / "bundle.json").write_text(json.dumps({"python": bundle.this_python()}))
    (folder / "requirements.txt").write_text("\n".join(requirements))
    for name, needs in wheels.items():
        info = f"{name}-1.0.dist-info"
        lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0", *(f"Requires-Dist: {one}" for one in needs)]
        with zipfile.ZipFile(folder / "wheels" / f"{name}-1.0-py3-none-any.whl", "w") as file:
            file.writestr(f"{name}.py", "")
            file.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
            file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            file.writestr(f"{info}/RECORD", "")
    return folder


@pytest.mark.slow
def test_what_is_missing_is_unpacked_and_what_is_there_stays(tmp_path) -> None:
    wheels = {"rlkd_test_one": ["rlkd_test_two", "packaging"], "rlkd_test_two": [], "packaging": []}
    made = write_bundle(tmp_path / "bundle", ["rlkd_test_one"], wheels)
    found = install(made, tmp_path / "site")
    assert found == {"wheels": ["rlkd_test_one-1.0-py3-none-any.whl", "rlkd_test_two-1.0-py3-none-any.whl"]}
    assert sorted(path.name for path in (tmp_path / "site").glob("*.py")) == ["rlkd_test_one.py", "rlkd_test_two.py"]


@pytest.mark.slow
def test_without_a_solution_all_that_is_not_there_is_unpacked_and_the_conflict_recorded(tmp_path) -> None:
    wheels = {"rlkd_test_one": ["packaging<1"], "packaging": []}
    made = write_bundle(tmp_path / "bundle", ["rlkd_test_one"], wheels)
    found = install(made, tmp_path / "site")
    assert found["wheels"] == ["rlkd_test_one-1.0-py3-none-any.whl"]
    assert "packaging<1" in found["conflict"]


def test_a_bundle_for_another_python_is_refused_with_the_way_out(tmp_path) -> None:
    (tmp_path / "bundle.json").write_text('{"python": "3.9"}')
    with pytest.raises(SystemExit, match=r"for Python 3\.9.*bundle --python"):
        install(tmp_path, tmp_path / "site")


def test_a_folder_that_is_no_bundle_is_named(tmp_path) -> None:
    with pytest.raises(SystemExit, match="holds no bundle"):
        install(tmp_path, tmp_path / "site")
