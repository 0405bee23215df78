"""README and docs: their commands can start, their notebooks run, their papers are listed."""

import contextlib
import functools
import io
import itertools
import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
STARTS = ("accelerate launch recipes/", "python recipes/", "python benchmarks/", "rlkd ", "make ", "pip install ")
# Words of a command that stand for something of the reader's.
OWN = {"my.yaml": "recipes/{recipe}.yaml", "serve.yaml": "recipes/serve.yaml"}


def commands(page: Path) -> Iterator[str]:
    """The commands in the code blocks of a page, with continued lines joined and comments removed."""
    text = re.sub(r" *\\\n *", " ", page.read_text(encoding="utf-8"))
    in_block = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            in_block = not in_block
        elif (in_block or line.startswith("    ")) and line.strip().startswith(STARTS):
            yield re.split(r"  +|\s#", line.strip())[0]


ALL = [pytest.param(command, id=f"{page.name}: {command}"[:90]) for page in PAGES for command in commands(page)]


def test_pages_have_commands() -> None:
    assert len(ALL) > 90


@pytest.mark.parametrize("command", ALL)
def test_a_command_of_the_docs_can_start(command, monkeypatch) -> None:
    words = shlex.split(command)
    if "recipes/" in command and words[0] in ("accelerate", "python"):
        position = next(i for i, word in enumerate(words) if word.startswith("recipes/"))
        parse_recipe(words[position], words[position + 1 :], monkeypatch)
    elif words[0] == "rlkd":
        check_options(words[1:])
    elif words[0] == "python":
        source = (ROOT / words[1]).read_text(encoding="utf-8")
        assert [word for word in words if word.startswith("--") and word not in source] == []
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
    else:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = re.findall(r"(?:rlkd|\.)\[([\w,]+)\]", command)
        assert {extra for group in named for extra in group.split(",")} <= extras.keys()
        assert [word for flag, word in itertools.pairwise(words) if flag == "-c" and not (ROOT / word).exists()] == []


def parse_recipe(path: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the command line as the recipe does: config and keys must fit."""
    from trainers.common import arguments

    if words[:2] == ["bank", "inspect"]:  # the only subcommand without keys
        return
    own = {word: ROOT / place.format(recipe=Path(path).stem) for word, place in OWN.items()}
    words = [str(own.get(word, word)) for word in words]
    read = []

    def start(main, kinds, *, default_config, **_) -> None:
        read.append(arguments.parse(sys.argv[1:], kinds, default_config=default_config))

    monkeypatch.setattr(arguments, "start", start)
    monkeypatch.setattr(sys, "argv", [str(ROOT / path), *words])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(ROOT)
    with contextlib.redirect_stdout(io.StringIO()):
        runpy.run_path(str(ROOT / path), run_name="__main__")
    assert read


def check_options(words: list[str]) -> None:
    """The subcommand must exist, and its help must name every option."""
    own = words[words.index("--") :] if "--" in words else []
    words = words[: len(words) - len(own)]
    subcommand = [word for word in words[:2] if re.fullmatch(r"[a-z]+", word)]
    text = "".join(help_of(tuple(subcommand[:length])) for length in range(1, len(subcommand) + 1))
    known = set(re.findall(r"--[a-z_][\w-]*", text))
    assert known
    assert {word for word in words if word.startswith("--")} <= known


@functools.cache
def help_of(subcommand: tuple[str, ...]) -> str:
    command = [sys.executable, "-m", "rlkd.cli", *subcommand, "--help"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook, tmp_path) -> None:
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    script = "\n".join("".join(cell["source"]) for cell in cells)
    short, changed = re.subn(r"max_steps=\d+", "max_steps=2", script)
    assert changed == 1
    short = short.replace("[:100]", "[:4]")
    (tmp_path / "notebook.py").write_text(short)
    environment = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "notebook.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "runs").is_dir()


def test_every_paper_is_listed() -> None:
    listed = (ROOT / "docs/papers.md").read_text()
    found = set()
    for folder in ("rlkd", "rewards", "trainers", "recipes", "docs"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".md", ".yaml"):
                found |= set(re.findall(r"\b\d{4}\.\d{5}\b(?=[^%\d]|$)", path.read_text(encoding="utf-8")))
    assert {"2505.16142", "2605.04078"} <= found
    assert {paper for paper in found if paper not in listed} == set()
