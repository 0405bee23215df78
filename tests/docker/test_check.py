"""docker/check.py: how it reads a Dockerfile and .dockerignore. (It runs as root, with debootstrap; not here.)"""

import runpy
from pathlib import Path

import pytest

from tests.helpers import ROOT

DOCKER = ROOT / "docker"
CHECK = runpy.run_path(str(DOCKER / "check.py"), run_name="docker_check")
CheckFailed = CHECK["CheckFailed"]


def build(dockerfile: str, context: Path, root: Path, **build_arguments: str):
    """An image after all instructions of the last stage."""
    defaults, found = CHECK["stages"](dockerfile)
    image = CHECK["Image"](root, defaults | build_arguments)
    for instruction, value in CHECK["chain"](found, None)[1]:
        image.apply(instruction, value, context)
    return image


def test_a_stage_has_the_instructions_of_the_one_it_starts_from() -> None:
    _, found = CHECK["stages"]("FROM debian AS base\nENV A=1\nFROM base AS one\nENV B=2\nFROM base AS two\nENV C=3\n")
    assert CHECK["chain"](found, "one") == ("debian", [("ENV", "A=1"), ("ENV", "B=2")])
    assert CHECK["chain"](found, None) == ("debian", [("ENV", "A=1"), ("ENV", "C=3")])
    with pytest.raises(CheckFailed, match="--target three: expected one of base, one, two"):
        CHECK["chain"](found, "three")


def test_variables_folders_and_copies_are_those_of_docker(tmp_path: Path) -> None:
    context, root = tmp_path / "context", tmp_path / "root"
    (context / "code" / "__pycache__").mkdir(parents=True)
    for name in ("code/a.py", "code/__pycache__/a.pyc", "notes.txt", "more.txt"):
        (context / name).write_text(name)
    (context / ".dockerignore").write_text("*\n!code\n!*.txt\n**/__pycache__\n")
    image = build(
        "ARG INDEX=there\nFROM x\nARG INDEX\nARG OTHER=own\nENV PLACE=$INDEX PATH=/opt/bin:$PATH\nWORKDIR /src\n"
        'WORKDIR deep\nCOPY code code\nCOPY notes.txt more.txt ./\nCOPY notes.txt renamed\nUSER 7\nCMD ["x"]\n',
        context,
        root,
        INDEX="elsewhere",
    )
    assert (image.env["PLACE"], image.args["OTHER"], image.user) == ("elsewhere", "own", "7")
    assert image.env["PATH"].startswith("/opt/bin:/usr")
    copied = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert copied == {f"src/deep/{name}" for name in ("code/a.py", "notes.txt", "more.txt", "renamed")}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("COPY secret.txt ./", ".dockerignore excludes it"),
        ("COPY absent.txt ./", "not in the context"),
        ("COPY --from=other a b", "options are not implemented"),
        ("RUN --mount=type=cache,target=/c true", "not implemented"),
        ('SHELL ["bash"]', "SHELL is not implemented"),
    ],
)
def test_what_it_cannot_do_fails_instead_of_being_skipped(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("")
    (tmp_path / ".dockerignore").write_text("secret.*\n")
    with pytest.raises(CheckFailed, match=message):
        build(f"FROM x\n{line}\n", tmp_path, tmp_path / "root")


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.gpu"])
def test_the_context_has_what_an_image_copies(name: str) -> None:
    rules = CHECK["read_ignore"](ROOT)
    _, found = CHECK["stages"]((DOCKER / name).read_text())
    copies = {value for _, lines in found.values() for instruction, value in lines if instruction == "COPY"}
    for source in (word for value in copies for word in value.split()[:-1]):
        path = ROOT / source
        files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
        assert any(not CHECK["is_ignored"](each.relative_to(ROOT).as_posix(), rules) for each in files), source
    for path in (".git/HEAD", ".venv/bin/python", "runs/rlkd/model.safetensors", "rlkd/__pycache__/cli.pyc", ".env"):
        assert CHECK["is_ignored"](path, rules), path


def test_another_base_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="expected an image python"):
        CHECK["make_base"]("ubuntu:24.04", tmp_path, "")
