"""The recipe as a user starts it: the exact commands, from anywhere; in a process of its own where that matters."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.tiny import training_arguments
from rlkd.data.samples import sample_rows
from rlkd.data.shuffle import shuffled_teachers
from tests.helpers.scripts import load_script, run_here, run_script
from trainers import RLKDConfig
from trainers.common.run_files import read_steps

BIN = Path(sys.executable).parent
BY_RULES = '{"structure": {"decomposer": "rules"}}'
pytestmark = pytest.mark.slow


@pytest.fixture
def quick(tiny_model: str, tmp_path: Path) -> list[str]:
    """Arguments that make the default recipe small: LoRA on a tiny model, with 8 completions per step."""
    small = (
        f"--model_name_or_path {tiny_model} --use_peft true --dataset_name gsm8k-sample --max_steps 2 --eval_rows 2 "
        f"--eval_samples 0 --per_device_train_batch_size 2 --gradient_accumulation_steps 4 --num_generations 4 "
        f"--max_completion_length 8 --save_steps 5 --output_dir {tmp_path / 'run'}"
    ).split()
    return [*small, "--reward_kwargs", BY_RULES]


def test_the_default_trains_the_laboratorys_student_and_reports_its_change(root, tmp_path) -> None:
    small = f"--max_steps 2 --eval_rows 20 --eval_samples 2 --output_dir {tmp_path / 'run'}".split()
    done = run_script([BIN / "accelerate", "launch", "--num_processes", 1, root / "recipes/rlkd.py", *small], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "run"
    assert (run / "model.safetensors").stat().st_size > 0
    assert [entry["step"] for entry in read_steps(run / "metrics.jsonl")] == [1, 2]
    assert "zero-std groups" in done.stdout + done.stderr
    assert "(accuracy alone" in done.stdout + done.stderr
    start = done.stdout[: done.stdout.index("evaluating accuracy on")]
    assert "\nstructure: decomposer rules, judge deterministic, alignment ordered (our choice, not" in start
    before, after = read_steps(run / "eval.jsonl")
    assert 0 < before["sampled"]["accuracy"]["mean"] < 1
    assert after["sampled"]["samples"] == 2
    for shown in ("accuracy change:", "sampled change:", "calculations per answer:", "tokens per answer:"):
        assert shown in done.stdout
    (rollout,) = read_steps(run / "rollouts" / "rank0.jsonl")[:1]
    assert rollout["rewards"]["structure"]["status"] == "score"
    card = (run / "README.md").read_text()
    for shown in (
        "python recipes/rlkd.py --max_steps 2",
        "| training | `lab-dependency` | train | 2,000 |",
        "| sampled |",
    ):
        assert shown in card


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("checkout", marks=pytest.mark.nightly),
        pytest.param("recipes", marks=pytest.mark.nightly),
        "elsewhere",
    ],
)
def test_accelerate_launch_works_from_any_working_directory(root, tmp_path, quick, place) -> None:
    cwd = {"checkout": root, "recipes": root / "recipes", "elsewhere": tmp_path}[place]
    recipe = {"checkout": "recipes/rlkd.py", "recipes": "rlkd.py", "elsewhere": root / "recipes/rlkd.py"}[place]
    done = run_script([BIN / "accelerate", "launch", "--num_processes", 1, recipe, *quick], cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "run"
    assert [entry["step"] for entry in read_steps(run / "metrics.jsonl")] == [1, 2]
    assert len(read_steps(run / "rollouts" / "rank0.jsonl")) == 16
    assert (run / "adapter_model.safetensors").stat().st_size > 0
    for shown in ("step 2/2 | accuracy", "accuracy before: ", "accuracy after: ", "95 % interval", "advantage within"):
        assert shown in done.stdout + done.stderr
    for path in (run, run / "metrics.jsonl", run / "rollouts"):
        assert str(path) in done.stdout
    drawn = importlib.util.find_spec("matplotlib") is not None
    assert (run / "curve.svg").exists() == (run / "curve.png").exists() == drawn
    assert (f"curve:    {run / 'curve.png'}" if drawn else 'pip install "rlkd[plots]"') in done.stdout


def test_two_processes_share_the_work_under_torchrun(root, tmp_path, quick) -> None:
    # A reward that fails on one process only, so that the processes must agree on what is missing.
    (tmp_path / "half.py").write_text(
        "import os\nfrom rewards import Failed\n"
        "def half(completions, **columns):\n"
        "    broken = os.environ['RANK'] == '1'\n"
        "    return [Failed('down') if broken and i % 4 else float(i) for i in range(len(completions))]\n"
    )
    rewards = ["--reward_funcs", "accuracy", "half.py:half", "--reward_kwargs", "{}"]
    torchrun = [BIN / "torchrun", "--nproc_per_node", 2, "--standalone"]
    done = run_script([*torchrun, root / "recipes/rlkd.py", *quick, *rewards, "--ddp_backend", "gloo"], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "run"
    assert done.stdout.count("accuracy before: ") == 1
    assert (run / "adapter_model.safetensors").stat().st_size > 0
    assert [entry["rewards/half/failed"] for entry in read_steps(run / "metrics.jsonl")] == pytest.approx([3 / 8] * 2)
    first, second = (read_steps(run / "rollouts" / f"rank{rank}.jsonl") for rank in (0, 1))
    assert len(first) == len(second) == 16
    assert [record["step"] for record in read_steps(run / "eval.jsonl")] == [0, 2]
    # Different questions, each in a whole group.
    assert not {record["id"] for record in first} & {record["id"] for record in second}
    assert [entry["step"] for entry in read_steps(run / "metrics.jsonl")] == [1, 2]


def test_a_killed_run_resumes_without_gap_or_duplicate(root, tmp_path, quick) -> None:
    command = [sys.executable, root / "recipes/rlkd.py", *quick, "--save_steps", 3, "--max_steps", 200]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    run = tmp_path / "run"
    with subprocess.Popen(
        list(map(str, command)), cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 240
        # Past the checkpoint of step 3 and into steps that will be run again.
        while not (run / "metrics.jsonl").exists() or len(read_steps(run / "metrics.jsonl")) < 5:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    saved = max(int(path.parent.name.split("-")[1]) for path in run.glob("checkpoint-*/trainer_state.json"))
    last = str(saved + 4)
    done = run_here("recipes/rlkd.py", [*command[2:-1], last, "--resume_from_checkpoint"], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert saved >= 3
    assert [entry["step"] for entry in read_steps(run / "metrics.jsonl")] == list(range(1, saved + 5))
    steps = [record["step"] for record in read_steps(run / "rollouts" / "rank0.jsonl")]
    assert steps == [step for step in range(1, saved + 5) for _ in range(8)]
    assert [record["step"] for record in read_steps(run / "eval.jsonl")] == [0, saved + 4]


def test_a_finished_run_is_not_trained_any_further(tmp_path, quick) -> None:
    # What transformers would do: one step more.
    state = tmp_path / "run" / "checkpoint-2" / "trainer_state.json"
    state.parent.mkdir(parents=True)
    state.write_text('{"global_step": 2}')
    done = run_here("recipes/rlkd.py", [*quick, "--resume_from_checkpoint"], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "nothing is left to train" in done.stdout
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_control_run_says_so_and_follows_foreign_teachers_to_the_same_questions(tmp_path, quick) -> None:
    control = [*quick, "--shuffle_teachers", "3", "--eval_every", "1"]
    done = run_here("recipes/rlkd.py", control, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "*** A CONTROL RUN: each row has ANOTHER row's teacher (--shuffle_teachers 3)" in done.stdout
    assert [record["step"] for record in read_steps(tmp_path / "run" / "eval.jsonl")] == [0, 1, 2]
    for shown in ("accuracy before: ", "accuracy at step 1: ", "accuracy after:  ", "eval.jsonl"):
        assert shown in done.stdout
    true = {row["id"]: row for row in sample_rows("rl")}
    foreign = {row["id"]: row for row in shuffled_teachers(sample_rows("rl"), 3)}
    for record in read_steps(tmp_path / "run" / "rollouts" / "rank0.jsonl"):
        assert record["answer"] == true[record["id"]]["answer"]
        assert record["prompt"][-1]["content"] == true[record["id"]]["question"]
        # The rules look for steps in the rationale; its last result tells whose it is.
        teacher = record["rewards"]["structure"]["detail"]["teacher"]
        assert teacher[-1]["answer"] in foreign[record["id"]]["rationales"][0]
        assert foreign[record["id"]]["rationales"] != true[record["id"]]["rationales"]


def test_resuming_before_the_first_checkpoint_says_so_and_starts_afresh(tmp_path, quick) -> None:
    done = run_here("recipes/rlkd.py", ["--resume_from_checkpoint", *quick], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "no complete checkpoint" in done.stdout
    assert "a new run starts" in done.stdout
    assert len(read_steps(tmp_path / "run" / "metrics.jsonl")) == 2


def test_a_reward_file_outside_the_repository_trains_from_a_yaml(root, tmp_path, tiny_model) -> None:
    (tmp_path / "brevity.py").write_text(
        "def brevity(completions, *, limit=100, **columns):\n"
        "    return [max(0.0, 1 - len(c[0]['content']) / limit) for c in completions]\n"
    )
    config = (root / "recipes/rlkd_smollm2.yaml").read_text()
    config = config.replace("[accuracy, structure]", "[accuracy, structure, brevity.py:brevity]")
    config = config.replace("[1.0, 1.0]", "[1.0, 1.0, 0.5]").replace(
        "reward_kwargs:\n", "reward_kwargs:\n  brevity: {limit: 20}\n"
    )
    config = config.replace(
        "    decomposer: generative\n    engine: transformers:embedded-gsrm\n", "    decomposer: rules\n"
    )
    assert "decomposer: rules" in config
    (tmp_path / "my.yaml").write_text(config)
    quick = f"--model_name_or_path {tiny_model} --max_steps 1 --eval_rows 0 --max_completion_length 8".split()
    done = run_here("recipes/rlkd.py", ["--config", "my.yaml", *quick], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (entry,) = read_steps(tmp_path / "runs/rlkd-smollm2/metrics.jsonl")
    assert 0 < entry["rewards/brevity/mean"] < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reward_funcs", "acuracy"], "Did you mean 'accuracy'"),
        (["--learning_rat_e", "1"], "did you mean learning_rate"),
        (["--dataset_name", "nowhere.jsonl"], "there is no file"),
        (["--reward_funcs", "structure", "--reward_weights", "1", "2"], "2 entries"),
        (["--resume_from_checkpoint", "nowhere"], "no complete checkpoint there"),
        (["--num_generations", "3"], "Make per_device_train_batch_size"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--config=nowhere.yaml"], "nowhere.yaml"),
        (["--config"], "--config needs a file"),
        (["--columns", "{bad"], "Expecting property name"),
        (["--columns", "[1]"], "columns: expected a mapping"),
    ],
)
def test_a_mistake_ends_in_one_clear_message(tmp_path, arguments, message) -> None:
    defaults = ["--model_name_or_path", "no-such-model", "--reward_kwargs", "{}", "--reward_weights", "1"]
    done = run_here("recipes/rlkd.py", [*defaults, *arguments], tmp_path)
    assert done.returncode != 0
    assert message in done.stderr


def test_the_script_ends_with_that_message_and_nothing_else(root, tmp_path) -> None:
    done = run_script([sys.executable, root / "recipes/rlkd.py", "--learning_rat_e", "1"], tmp_path)
    assert done.returncode == 1
    assert "did you mean learning_rate" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_misspelt_key_in_a_config_is_named(tmp_path) -> None:
    (tmp_path / "my.yaml").write_text("dataset_name: gsm8k-sample\nlerning_rate: 1.0e-5\n")
    done = run_here("recipes/rlkd.py", ["--config", "my.yaml"], tmp_path)
    assert done.returncode != 0
    assert "did you mean learning_rate" in done.stderr


def test_a_row_that_does_not_fit_is_named_by_file_line_and_field(tmp_path) -> None:
    good = {"question": "1 + 1?", "answer": "2", "rationales": ["1 + 1 = 2"]}
    rows = [good, good | {"rationales": 3}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--dataset_name", "rows.jsonl", "--dataset_test_split", "", "--model_name_or_path", "no-such-model"]
    done = run_here("recipes/rlkd.py", arguments, tmp_path)
    assert done.returncode != 0
    assert "rows.jsonl, line 2, field 'rationales'" in done.stderr


def test_the_column_of_teachers_is_read_beside_other_columns(tmp_path) -> None:
    row = {"question": "1 + 1?", "answer": "2", "domain": "math", "level": 1, "place": "x"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    recipe = load_script("recipes/rlkd.py")
    script = recipe.RLKDScriptArguments(dataset_name=str(tmp_path / "rows.jsonl"), other_columns=["level"])
    args = RLKDConfig(**training_arguments(tmp_path, teachers={"math": "A"}, teacher_column="domain"))
    (read,) = recipe.training_rows(script, args)
    assert (read["domain"], read["level"]) == ("math", 1)
    assert "place" not in read


def test_an_installed_wheel_runs_the_recipe_from_another_folder(root, tmp_path, quick) -> None:
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    copy = tmp_path / "copy"
    subprocess.run(["git", "clone", "--quiet", root, copy], check=True)
    assert run_script([*pip, "--target", site, copy], tmp_path).returncode == 0
    done = run_script([sys.executable, "-m", "rlkd.cli", "run", "rlkd", *quick], tmp_path, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(read_steps(tmp_path / "run" / "metrics.jsonl")) == 2
