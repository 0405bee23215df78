import tomllib
from importlib import metadata

import pytest

from gpu import bundle

LINUX = bundle.marker_values("3.12", "x86_64")


def test_needed_packages_are_followed_but_for_those_present_and_what_only_they_need() -> None:
    requires = {
        "trainer": ["numbers", "reader[fast]>=2; python_version >= '3.12'", "old; python_version < '3.12'"],
        "reader": ["text", "speed; extra == 'fast'", "docs; extra == 'docs'"],
        "numbers": ["blas"],
    }
    found = bundle.needed(["Trainer>=1"], {"numbers": None}, LINUX, requires.get)
    assert found == (["reader", "speed", "text", "trainer"], ["numbers"])


def test_a_package_that_is_present_in_a_version_too_old_is_needed() -> None:
    requires = {"trainer": ["hub>=2", "text"], "hub": ["text"]}
    assert bundle.needed(["trainer", "hub>=1"], {"hub": "1.5", "text": "3"}, LINUX, requires.get) == (
        ["hub", "trainer"],
        ["text"],
    )


def test_a_package_that_is_not_installed_here_is_named() -> None:
    def requires(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    with pytest.raises(SystemExit, match="unheard-of is not installed here"):
        bundle.needed(["unheard_of"], {}, LINUX, requires)


def test_rlkds_needs_are_pinned_and_hold_neither_torch_nor_anything_of_cuda(root) -> None:
    own = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    names, expected = bundle.needed(own, dict.fromkeys(bundle.MUST_EXIST), LINUX, metadata.requires)
    assert {"trl", "transformers", "peft", "accelerate", "datasets", "tokenizers"} <= set(names)
    assert not [name for name in names if name.startswith(("torch", "nvidia", "triton", "cuda"))]
    assert set(expected) == set(bundle.MUST_EXIST)
    assert set(names) <= set(bundle.read_pins((root / "constraints.txt").read_text()))


def test_names_come_from_words_and_from_the_output_of_pip(tmp_path) -> None:
    listed = tmp_path / "installed.txt"
    listed.write_text("# comment\nscipy==1.17.1\npandas @ file:///somewhere\n\n-e git+https://x/y\n")
    found = bundle.named_packages(["peft", str(listed)])
    assert found == {"peft": None, "scipy": "1.17.1", "pandas": None}


def test_a_folder_with_other_files_is_not_replaced(tmp_path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(SystemExit, match="no bundle"):
        bundle.make_bundle(tmp_path, "3.12", {}, 60, "x86_64")
    assert (tmp_path / "thesis.txt").read_text() == "mine"
