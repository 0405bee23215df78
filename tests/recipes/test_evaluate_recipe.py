"""`rlkd evaluate`: whole evaluations of tiny models, what it shares with training, kills, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from rlkd.data.loading import load_rows, to_dataset
from rlkd.evaluation.folder import EvaluationFolder, read_evaluation
from tests.helpers import HELPERS, ROOT
from tests.helpers.quick_retries import shorten_pauses
from tests.helpers.scripted_teacher import ScriptedTeacher
from tests.helpers.scripts import load_script, run_here

RECIPE = ROOT / "recipes" / "evaluate.py"
DRAWN = f"{HELPERS / 'drawn_answers.py'}:DrawnAnswers"


@pytest.fixture(scope="module")
def recipe() -> SimpleNamespace:
    return load_script(RECIPE)


@pytest.fixture
def evaluate(recipe, tmp_path, capsys) -> Any:
    """Runs the command line in this process; returns the output, or the message of a refusal."""

    def start(*arguments: object) -> str:
        status = recipe.command(list(map(str, arguments)))
        output = capsys.readouterr().out
        assert status == 0 or not isinstance(status, int)
        return output if status == 0 else status

    return start


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = ({"id": f"r{n}", "question": f"What is {n} and {n}?", "answer": n % 4} for n in range(9))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.slow
def test_an_evaluation_writes_figures_and_a_line_per_completion_and_again_generates_nothing(
    evaluate, rows, tmp_path
) -> None:
    arguments = ["--engine", f"{DRAWN}#m", "--dataset_name", rows, "--samples", 4, "--out", tmp_path / "out"]
    output = evaluate(*arguments)
    assert "9 rows, drawn:m, greedy, 4 samples per row at temperature 1, up to 512 tokens each." in output
    assert "pass@4" in output
    found = read_evaluation(tmp_path / "out")
    right = [each.scores["accuracy"]["value"] for own in found.completions.values() for each in own.values()]
    assert len(right) == 45
    assert 0 < sum(right) < 45
    assert found.results["greedy"]["calculations"]["value"] == 1
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert evaluate(*arguments) == output
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == files
    # A metric is added without another completion.
    evaluate(*arguments, "--metrics", "accuracy", "tag_count")
    again = read_evaluation(tmp_path / "out")
    assert again.results["metrics"]["tag_count"]["scored"] == 45
    assert again.results["greedy"]["accuracy"] == found.results["greedy"]["accuracy"]


@pytest.mark.slow
def test_an_evaluation_killed_at_any_time_ends_with_the_files_of_an_uninterrupted_one(rows, tmp_path) -> None:
    def words(out: str, seconds: float) -> list[str]:
        spec = f"{DRAWN}?seconds={seconds}#m"
        arguments = ["--engine", spec, "--dataset_name", rows, "--samples", 3, "--batch", 2, "--out", tmp_path / out]
        return list(map(str, arguments))

    assert run_here("recipes/evaluate.py", words("whole", 0), tmp_path).returncode == 0
    expected = (tmp_path / "whole" / "completions.jsonl").read_text()
    written = tmp_path / "killed" / "completions.jsonl"
    for lines in (1, 9, 25):
        command = [sys.executable, str(RECIPE), *words("killed", 0.2)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not written.exists() or len(written.read_text().splitlines()) < lines:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert run_here("recipes/evaluate.py", words("killed", 0), tmp_path).returncode == 0
    assert written.read_text() == expected
    for name in ("results.json", "rows.jsonl", "settings.json"):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_pass_rates_are_the_shares_of_right_samples_and_stay_with_the_training_rows(evaluate, rows, tmp_path) -> None:
    # A training config whose held-out rows are others: the rows to train on are measured.
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({"dataset_name": str(rows), "dataset_test_name": "mawps-sample", "eval_rows": 3}))
    target = tmp_path / "measured.jsonl"
    arguments = ["--engine", f"{DRAWN}#m", "--config", config, "--pass_rates", target, "--out", tmp_path / "out"]
    assert str(target) in evaluate(*arguments, "--samples", 4)
    measured = load_rows(str(target))
    found = read_evaluation(tmp_path / "out").completions
    right = {name: [own[number].scores["accuracy"]["value"] for number in range(1, 5)] for name, own in found.items()}
    assert {row["id"]: row["pass_rate"] for row in measured} == {name: sum(own) / 4 for name, own in right.items()}
    assert len({row["pass_rate"] for row in measured}) > 2
    assert {row["pass_rate_samples"] for row in measured} == {4}
    expected = [{"question": row["question"], "answer": row["answer"]} for row in load_rows(str(rows))]
    assert [{name: row[name] for name in ("question", "answer")} for row in measured] == expected
    # More samples keep the earlier ones; another seed is another measurement.
    evaluate(*arguments, "--samples", 8)
    more = read_evaluation(tmp_path / "out").completions
    assert all(more[name][number] == found[name][number] for name in found for number in range(1, 5))
    assert {row["pass_rate_samples"] for row in load_rows(str(target))} == {8}
    assert "seed 42, and now it is 43" in evaluate(*arguments, "--samples", 4, "--seed", 43)


def test_an_interrupted_measurement_of_pass_rates_ends_with_the_same_rates(evaluate, rows, tmp_path, monkeypatch):
    rates = ["--dataset_name", rows, "--samples", 3, "--batch", 2, "--engine", f"{DRAWN}#m"]
    evaluate(*rates, "--pass_rates", tmp_path / "whole.jsonl", "--out", tmp_path / "whole")
    killed = [*rates, "--pass_rates", tmp_path / "killed.jsonl", "--out", tmp_path / "killed"]
    with monkeypatch.context() as patch:
        patch.setattr(EvaluationFolder, "add", _interrupted_after(7, EvaluationFolder.add))
        with pytest.raises(ExceptionGroup):
            evaluate(*killed)
    assert not (tmp_path / "killed.jsonl").exists()
    evaluate(*killed)
    assert (tmp_path / "killed.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()


def _interrupted_after(calls: int, add: Any) -> Any:
    """`EvaluationFolder.add` that fails once it has been called that often."""
    left = iter(range(calls))

    def interrupted(folder: EvaluationFolder, completions: Any) -> None:
        add(folder, completions)
        if next(left, None) is None:
            raise OSError("no space left")

    return interrupted


@pytest.mark.slow
@pytest.mark.parametrize("family", ["thinking", "no_system", "opens_thought"])
def test_a_model_sees_the_ids_that_training_shows_it(recipe, template_model, tmp_path, family) -> None:
    """Chat template with its arguments, BOS, no system role, an opened thought."""
    from rlkd.engines.tokens import encode_prompt
    from trainers import RLKDConfig, RLKDTrainer
    from trainers.common.generation import shown_prompts

    template = {"enable_thinking": False} if family == "thinking" else None
    config = RLKDConfig(
        output_dir=str(tmp_path),
        chat_template_kwargs=template,
        per_device_train_batch_size=2,
        num_generations=2,
        max_completion_length=4,
        use_cpu=True,
        bf16=False,
        report_to="none",
    )
    data = to_dataset(load_rows("mawps-sample")[:2], system_prompt="Be brief.", examples=1)
    model = template_model(family)
    trainer = RLKDTrainer(model, reward_funcs=["accuracy"], args=config, train_dataset=data)
    arguments = ["--model_name_or_path", model, "--dataset_name", "mawps-sample"]
    if template:
        arguments += ["--chat_template_kwargs", json.dumps(template)]
    engine = recipe.parse(arguments).open_engine()
    tokenizer, opened = recipe.check_prompts(engine, data["prompt"], 4)
    for prompt, expected in zip(data["prompt"], shown_prompts(trainer, data["prompt"]), strict=True):
        assert encode_prompt(tokenizer, prompt, engine.chat_template_kwargs) == expected
    assert opened == (family == "opens_thought")


@pytest.mark.slow
def test_a_run_is_evaluated_as_its_own_training_evaluated_it(evaluate, tiny_model, tmp_path) -> None:
    training = load_script("recipes/rlkd.py")
    config = tmp_path / "run.yaml"
    settings = yaml.safe_load((ROOT / "recipes" / "rlkd_smollm2.yaml").read_text()) | {
        "model_name_or_path": tiny_model,
        "dataset_test_name": "mawps-sample",
        "eval_rows": 5,
        "eval_samples": 2,
        "reward_funcs": ["accuracy", "tag_count"],
        "reward_kwargs": {},
        "reward_gates": {},
        "max_steps": 1,
        "max_completion_length": 12,
        "use_cpu": True,
        "bf16": False,
        "output_dir": str(tmp_path / "run"),
        "lora_r": 2,
    }
    config.write_text(yaml.safe_dump(settings))
    from trl import ModelConfig

    from trainers import RLKDConfig
    from trainers.common.arguments import parse

    kinds = (training.RLKDScriptArguments, RLKDConfig, ModelConfig)
    training.main(*parse([], kinds, default_config=config)[:3])
    last = [json.loads(line) for line in (tmp_path / "run" / "eval.jsonl").read_text().splitlines()][-1]

    evaluate("--run", tmp_path / "run")
    found = read_evaluation(tmp_path / "run" / "evaluation")
    assert found.settings["temperature"] == 0.9
    assert found.settings["max_completion_length"] == 12
    assert found.results["samples"] == 2
    own = [found.completions[row["id"]][0] for row in last["rows"]]
    assert [(each.completion, each.tokens) for each in own] == [
        (row["completion"], row["tokens"]) for row in last["rows"]
    ]
    assert found.results["greedy"]["tokens"]["value"] == pytest.approx(last["tokens"])
    assert found.results["greedy"]["ended"]["value"] == last["ended"]["mean"]


@pytest.mark.slow
def test_a_server_gets_each_request_with_its_seed_and_only_what_failed_again(evaluate, tmp_path, monkeypatch) -> None:
    shorten_pauses(monkeypatch)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"question": "What is {n} and {n}?", "answer": {2 * n}}}\n' for n in range(6)))
    server = ScriptedTeacher()
    try:
        arguments = ["--engine", server.spec, "--dataset_name", path, "--samples", 2, "--out", tmp_path / "out"]
        server.fault = lambda body: 400 if "What is 3 and" in json.dumps(body["messages"]) else None
        message = evaluate(*arguments)
        assert "3 of 18 completions are missing" in message
        assert "400" in message
        server.fault = lambda body: None
        sent = len(server.requests)
        evaluate(*arguments)
        assert len(server.requests) == sent + 3
        bodies = [json.loads(body) for body in server.requests]
        assert len({(body["messages"][-1]["content"], body.get("seed")) for body in bodies}) == 18
        found = read_evaluation(tmp_path / "out")
        assert found.settings["model"] == server.spec.partition("#")[2]
        assert "batch" not in found.settings
    finally:
        server.shut_down()


def test_two_evaluations_are_compared(evaluate, rows, tmp_path) -> None:
    for name in "ab":
        evaluate("--engine", f"{DRAWN}#{name}", "--dataset_name", rows, "--samples", 2, "--out", tmp_path / name,
                 "--seed", 1 + (name == "b"))  # fmt: skip
    output = evaluate("compare", tmp_path / "a", tmp_path / "b")
    assert "McNemar, exact" in output
    assert "seed differs: 1 in A, 2 in B" in output
    figures = json.loads(evaluate("compare", tmp_path / "a", tmp_path / "b", "--json"))["figures"]
    assert [each["name"] for each in figures] == ["greedy accuracy", "sampled accuracy"]
    evaluate("--engine", f"{DRAWN}#a", "--dataset_name", rows, "--eval_rows", 3, "--out", tmp_path / "c")
    assert "row 'r3' is there only" in evaluate("compare", tmp_path / "a", tmp_path / "c")


def test_training_rows_are_compared_with_test_questions_without_a_model(evaluate, rows, tmp_path) -> None:
    output = evaluate("--dataset_name", rows, "--check_contamination", rows, "--out", tmp_path)
    assert "9 of 9 test questions (100.0%) overlap" in output
    assert json.loads((tmp_path / "contamination.json").read_text())["contaminated"] == 9
    assert "0 of 9 test questions overlap" in evaluate("--dataset_name", rows, "--check_contamination", "mawps-sample")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no rows to evaluate on: --dataset_name"),
        (["--dataset_name", "mawps-sample"], "no model to evaluate: --model_name_or_path"),
        (["--dataset_name", "mawps-sample", "--model_name_or_path", "m"], "--out FOLDER is missing"),
        (["--dataset_name", "mawps-sample", "--engine", "vllm", "--out", "o"], "--engine vllm needs the model"),
        (["--dataset_name", "mawps-sample", "--engine", "http://h:1/v1", "--out", "o"], "name the model"),
        (["--dataset_name", "nowhere.jsonl", "--engine", f"{DRAWN}#m"], "there is no file"),
        (["--dataset_name", "gsm8k", "--engine", f"{DRAWN}#m"], "openai/gsm8k"),
        (["--dataset", "gsm8k"], "no argument 'dataset'. Did you mean 'dataset_name'?"),
        (["--samples", "-1"], "eval_samples -1"),
        (["--greedy", "false"], "eval_samples 0: expected at least 1"),
        (["--columns", "{question"], "columns: '{question' is not JSON"),
        (["--run", "nowhere"], "--run nowhere: there is no such folder"),
        (["--config", "nowhere.yaml"], "No such file"),
        (["compare", "nowhere", "there"], "nowhere holds no evaluation"),
    ],
)
def test_a_mistake_is_one_message_before_a_model_loads(evaluate, arguments, message, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in evaluate(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "acuracy"], "Did you mean 'accuracy'"),
        (["--temperature", "-1"], "temperature=-1.0"),
        (["--max_completion_length", "0"], "max_completion_length=0"),
        (["--answers", "choice", "--metrics", "accuracy", "code"], "'code' needs the column"),
        (["--chat_template_kwargs", "[1]"], "chat_template_kwargs"),
        (["--columns", '{"answer": "reply"}'], "no column 'reply'"),
        (["--batch", "0"], "batch 0"),
    ],
)
def test_a_mistake_in_a_setting_is_named(evaluate, rows, tmp_path, arguments, message) -> None:
    out = tmp_path / "out"
    assert message in evaluate("--engine", f"{DRAWN}#m", "--dataset_name", rows, "--out", out, *arguments)
    assert not (out / "completions.jsonl").exists()


def test_rows_without_an_answer_have_no_accuracy_and_other_metrics(evaluate, tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "Why?"}\n{"question": "Where?"}\n')
    arguments = ["--engine", f"{DRAWN}#m", "--dataset_name", path, "--out", tmp_path / "out"]
    assert "none of the 2 rows has an answer" in evaluate(*arguments)
    assert "tag_count" in evaluate(*arguments, "--metrics", "tag_count")


@pytest.mark.slow
def test_a_prompt_without_room_for_its_answer_is_named_before_the_model_loads(evaluate, tiny_model, tmp_path) -> None:
    arguments = ["--model_name_or_path", tiny_model, "--dataset_name", "mawps-sample", "--out", tmp_path / "out"]
    assert "do not fit the 4096 tokens" in evaluate(*arguments, "--max_completion_length", 4090)
    (tmp_path / "file").write_text("")
    assert "cannot be read" in evaluate("--model_name_or_path", tmp_path / "none", *arguments[2:])


def test_the_command_of_the_shipped_config_names_what_exists(recipe) -> None:
    script = recipe.parse(["--config", str(ROOT / "recipes" / "evaluate.yaml")])
    found, kind = script.test_rows()
    assert (len(found), kind, script.eval_samples) == (24, "exact", 4)
    assert script.system_prompt == yaml.safe_load((ROOT / "recipes" / "sft.yaml").read_text())["system_prompt"]


def test_a_training_config_gives_rows_and_prompt_and_leaves_rewards_of_the_training_out(recipe) -> None:
    script = recipe.parse(["--config", str(ROOT / "recipes" / "rlkd_smollm2.yaml"), "--eval_rows", "2"])
    assert script.model_name_or_path == "embedded-warm"
    assert script.max_completion_length == 96
    assert [reward.__name__ for reward in script.build_metrics("exact")] == ["accuracy"]


def test_several_processes_are_refused(evaluate, monkeypatch) -> None:
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    assert "one process evaluates" in evaluate("--dataset_name", "mawps-sample")
