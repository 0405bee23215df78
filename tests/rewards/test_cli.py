import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from rewards import BUILT_IN
from rewards.judge import GRADES, YES_NO
from rewards.testing.runner import samples_from, score_samples
from rlkd import cli

CODE = '''
from rewards import Failed, RewardOptions


def sound(completions, answer, *, bonus=0.0, **columns):
    """Pays for the answer.

    More about it.
    """
    return [float(g in c[0]["content"]) + bonus for c, g in zip(completions, answer, strict=True)]


def by_place(completions, **columns):
    return [float(i) for i in range(len(completions))]


def texts(completions, **columns):
    return ["1.0"] * len(completions)


def half(completions, **columns):
    return [1.0 if c[0]["content"] else Failed("[server] is down") for c in completions]


def make(level, step=2):
    """Makes a reward."""
    return sound


by_place.reward_options = RewardOptions(per_sample=True)
'''


@pytest.fixture
def some(tmp_path: Path) -> str:
    (tmp_path / "some.py").write_text(CODE)
    return str(tmp_path / "some.py")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli.main(["rewards", *arguments])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


# list


def test_every_built_in_reward_is_listed_with_its_description(capsys):
    code, shown = run(capsys, "list")
    assert code == 0
    lines = shown.splitlines()
    for name, source in BUILT_IN.items():
        place = next(i for i, line in enumerate(lines) if line.split() == [name, source])
        assert lines[place + 1].startswith(" "), f"{name} has no description"
        assert lines[place + 1].strip()


def test_listing_imports_no_heavy_library():
    code = (
        "import sys; from rlkd.cli import main; main(['rewards', 'list']); "
        "print([m for m in ('torch', 'trl', 'transformers', 'numpy', 'math_verify', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "path", ["nowhere.module.name", "rewards.nowhere.name", "rewards.formats.nothing", "json", "a"]
)
def test_an_unknown_path_has_no_docstring_line(path):
    from rewards.cli import _first_line

    assert _first_line(path) == ""


# show


def test_a_reward_is_shown_with_parameters_columns_and_options(capsys):
    code, shown = run(capsys, "show", "accuracy")
    assert code == 0
    assert "by math-verify" in shown
    assert "rewards/accuracy.py:" in shown.replace(os.sep, "/")
    parameters, columns, options = (part.splitlines() for part in shown.split("\n\n")[-3:])
    assert parameters[0] == "parameters (reward_kwargs)"
    assert ["fallback", "'none'"] in [line.split() for line in parameters]
    assert ["answer", "required"] in [line.split() for line in columns]
    for line in (["per_sample", "True"], ["isolate", "False"], ["timeout", "None"], ["version", "'1'"]):
        assert line in [shown.split() for shown in options]
    assert {line.split()[0] for line in options[1:]} >= {"cache", "workers"}


def test_alternative_columns_are_shown(capsys):
    _, shown = run(capsys, "show", "structure")
    assert "rationales  one of rationales and structures is required" in shown
    assert "question    optional" in shown


def test_the_default_templates_of_a_judge_are_shown_with_their_variables(capsys):
    _, shown = run(capsys, "show", "judge")
    assert "mappings `shown` ({column: text}) and `criteria`" in shown
    grades, yes_no = shown.partition("default template, grades\n")[2].split("\ndefault template, yes_no\n")
    assert textwrap.dedent(grades).strip() == GRADES
    assert textwrap.dedent(yes_no).strip() == YES_NO


def test_a_function_in_a_file_is_shown(capsys, some):
    code, shown = run(capsys, "show", f"{some}:sound")
    assert code == 0
    assert "More about it." in shown
    assert "  bonus  0.0" in shown
    assert "  answer  required" in shown
    assert "bonus  optional" not in shown


def test_a_function_that_makes_a_reward_is_shown(capsys, some):
    _, shown = run(capsys, "show", f"{some}:make")
    assert "  level  required\n  step   2" in shown
    assert "those of the reward that this function makes" in shown


@pytest.mark.parametrize("command", ["show", "test"])
def test_a_typo_gets_a_suggestion(capsys, command):
    code, shown = run(capsys, command, "acuracy")
    assert code == 1
    assert "Did you mean 'accuracy'?" in shown


# test


def test_a_test_shows_scores_costs_and_the_contract(capsys, some):
    code, shown = run(capsys, "test", f"{some}:sound", "--rows", "1", "--kwargs", '{"bonus": 0.5}')
    assert code == 0
    assert "5 samples of 1 row of gsm8k-sample" in shown
    assert "completions made from" in shown
    row = next(line for line in shown.splitlines() if "(as written)" in line)
    assert [cell.strip() for cell in row.split("│")][1:4] == ["gsm8k-train-39 (as written)", "score", "1.5"]
    for part in ("distinct inputs", "seconds per sample", "cache hits 0 of 5", "contract", "pickles"):
        assert part in shown
    assert "VIOLATED" not in shown


@pytest.mark.slow
def test_the_start_of_workers_is_no_time_of_samples(tmp_path, monkeypatch):
    (tmp_path / "slow.py").write_text(
        "import time\nready = []\n\n"
        "def slow_to_start(completions, **columns):\n"
        "    if not ready:\n        time.sleep(1.5)\n        ready.append(1)\n"
        "    return [float(len(c[0]['content'])) for c in completions]\n"
    )
    samples = samples_from(rows=1)
    scored = score_samples(f"{tmp_path / 'slow.py'}:slow_to_start", samples, options={"isolate": False})
    assert len(scored.outcomes) == len(samples)
    assert scored.seconds < 1.0


def test_options_reach_the_reward(capsys, some):
    arguments = ("test", f"{some}:sound", "--rows", "1", "--options", '{"per_sample": true}')
    _, shown = run(capsys, *arguments)
    assert "distinct inputs     4 of 5" in shown
    assert "cache hits 5 of 5" in shown
    code, shown = run(capsys, *arguments[:-1], '{"per_sampel": true}')
    assert code == 1
    assert "Did you mean 'per_sample'?" in shown


def test_a_violation_is_marked_and_ends_in_an_error(capsys, some):
    code, shown = run(capsys, "test", f"{some}:by_place", "--rows", "1")
    assert code == 1
    assert "VIOLATED  order       depends on the order: gsm8k-train-39 (as written)" in shown


def test_unreadable_scores_are_a_violation_and_not_a_crash(capsys, some):
    code, shown = run(capsys, "test", f"{some}:texts", "--rows", "1")
    assert code == 1
    assert "No scores: reward 'texts' returned '1.0' (str) for sample 0" in shown
    assert "VIOLATED  values" in shown


def test_failures_of_single_samples_are_shown_and_violate_nothing(capsys, some, caplog):
    code, shown = run(capsys, "test", f"{some}:half", "--rows", "1")
    assert code == 0
    assert "[server] is down" in shown  # as written, not as markup
    assert "4 score, 1 failed" in shown
    assert not caplog.records  # the table shows it


COUNTED = """
from pathlib import Path

from rewards import Failed, RewardOptions


def counted(completions, *, answers=True, **columns):
    with Path(__file__).with_name("calls").open("a") as calls:
        calls.write("x" * len(completions))
    return [1.0 if answers else Failed("no answer")] * len(completions)


counted.reward_options = RewardOptions(per_sample=True, isolate=False)
"""


def test_with_scores_only_each_different_completion_is_scored_once(capsys, tmp_path):
    (tmp_path / "counted.py").write_text(COUNTED)
    arguments = ["test", f"{tmp_path / 'counted.py'}:counted", "--rows", "2"]
    code, shown = run(capsys, *arguments, "--scores-only")
    # Of each row: as written, the first half, with another answer, and empty; the duplicate is not scored again.
    assert (tmp_path / "calls").read_text() == "x" * 8
    assert code == 0
    assert "scores: 10 samples" in shown
    assert "8 of 10" in shown
    assert "contract" not in shown
    assert "second run" not in shown
    assert run(capsys, *arguments, "--scores-only", "--kwargs", '{"answers": false}')[0] == 1


def test_a_line_before_each_pass_says_what_is_scored(capsys, tmp_path):
    (tmp_path / "counted.py").write_text(COUNTED)
    cli.main(["rewards", "test", f"{tmp_path / 'counted.py'}:counted", "--rows", "1"])
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        f"{what}: 5 samples"
        for what in (
            "scores",
            "scores, second run",
            *(f"contract, {how}" for how in ("one by one", "together", "a second time", "in another order")),
            *(f"contract, {how}" for how in ("in halves", "by a copy")),
        )
    ]
    # 4 different ones, one to start, and 5 in each of six passes of the contract; the second run reads the cache.
    assert (tmp_path / "calls").read_text() == "x" * (4 + 1 + 6 * 5)


@pytest.mark.slow
def test_json_has_samples_checks_and_costs(capsys, some):
    code = cli.main(["rewards", "test", f"{some}:half", "--rows", "1", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert [sample["status"] for sample in found["samples"]] == ["score"] * 4 + ["failed"]
    assert found["samples"][0]["id"] == "gsm8k-train-39 (as written)"
    assert {check["name"]: check["verdict"] for check in found["checks"]}["length"] == "holds"
    assert found["cache_hits"] == 0
    assert run(capsys, "test", f"{some}:by_place", "--rows", "1", "--json")[0] == 1


def test_rows_of_a_file_are_scored_with_their_own_completions(capsys, some, tmp_path):
    rows = [{"id": name, "question": "1 + 1?", "answer": "2", "mine": [f"It is {name}.", "2"]} for name in "123"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["--data", str(tmp_path / "rows.jsonl"), "--completions", "mine", "--json"]
    cli.main(["rewards", "test", f"{some}:sound", *data])
    found = json.loads(capsys.readouterr().out)
    assert [sample["value"] for sample in found["samples"]] == [0.0, 1.0, 1.0, 1.0, 0.0, 1.0]
    assert found["samples"][1]["id"] == "1 (1)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere.jsonl"], "there is no file"),
        (["--kwargs", '{"bonsu": 1}'], "Did you mean 'bonus'?"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_one(capsys, some, arguments, message):
    code, shown = run(capsys, "test", f"{some}:sound", *arguments)
    assert code == 1
    assert message in shown
    assert len(shown.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["test", "accuracy", "--kwargs", "[1]"], "expected an object"),
        (["test", "accuracy", "--options", "{"], "is not JSON"),
        (["test", "accuracy", "--rows", "0"], "at least 1"),
        (["new", "mine", "--per-sample", "--batch"], "not allowed with"),
        (["lits"], "invalid choice: 'lits'"),
        ([], "required: COMMAND"),
    ],
)
def test_wrong_arguments_are_exit_code_two(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["rewards", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["list", "show", "test", "new", "report"])
def test_every_command_has_help(capsys, command):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["rewards", command, "--help"])
    assert stopped.value.code == 0
    assert f"usage: rlkd rewards {command}" in capsys.readouterr().out


# new


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "note"), [("--per-sample", None), ("--batch", "depends on the batch")])
def test_a_new_reward_passes_its_own_test_and_the_contract(capsys, tmp_path, monkeypatch, root, kind, note):
    monkeypatch.chdir(tmp_path)
    code, shown = run(capsys, "new", "my_reward", kind, "--folder", "mine")
    assert code == 0
    for part in (
        "reward_funcs: [accuracy, mine/my_reward.py:my_reward]",
        "rlkd rewards test mine/my_reward.py:my_reward",
    ):
        assert part in shown
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "mine/test_my_reward.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    code, shown = run(capsys, "test", "mine/my_reward.py:my_reward")
    assert code == 0, shown
    assert note is None or note in shown


def test_the_config_that_new_prints_builds_the_rewards(capsys, tmp_path, monkeypatch):
    import yaml

    from rewards import build_rewards

    monkeypatch.chdir(tmp_path)
    _, shown = run(capsys, "new", "my_reward")
    config = yaml.safe_load(shown.partition("In a config:")[2].partition("Test it:")[0])
    rewards = build_rewards(config["reward_funcs"], config["reward_kwargs"], cache=False)
    assert [reward.__name__ for reward in rewards] == ["accuracy", "my_reward"]
    assert len(config["reward_weights"]) == 2


def test_new_overwrites_nothing(capsys, tmp_path):
    (tmp_path / "test_mine.py").write_text("mine")
    code, shown = run(capsys, "new", "mine", "--folder", str(tmp_path))
    assert code == 1
    assert "test_mine.py exists" in shown
    assert (tmp_path / "test_mine.py").read_text() == "mine"
    assert not (tmp_path / "mine.py").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my-reward", "cannot name a Python function"),
        ("class", "cannot name a Python function"),
        ("accuracy", "'accuracy' exists"),
    ],
)
def test_new_refuses_invalid_and_existing_names(capsys, tmp_path, name, message):
    code, shown = run(capsys, "new", name, "--folder", str(tmp_path))
    assert code == 1
    assert message in shown
    assert list(tmp_path.iterdir()) == []


# report


def test_a_report_is_printed_or_json(capsys, tmp_path):
    (tmp_path / "rollouts").mkdir()
    record = {"step": 1, "id": "a", "rewards": {"accuracy": {"status": "score", "value": 0.5}}}
    (tmp_path / "rollouts" / "rank0.jsonl").write_text(2 * (json.dumps(record) + "\n"))
    code, shown = run(capsys, "report", str(tmp_path))
    assert code == 0
    assert "2 rollouts of 1 steps" in shown
    _, shown = run(capsys, "report", str(tmp_path), "--json")
    assert json.loads(shown)["rewards"]["accuracy"]["mean"] == 0.5
    code, shown = run(capsys, "report", str(tmp_path / "nowhere"))
    assert code == 1
    assert "has no rollouts" in shown
