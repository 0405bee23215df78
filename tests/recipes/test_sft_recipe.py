"""The fine-tuning recipe: its examples and their order, what it checks, and whole runs."""

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
from safetensors.torch import load_file

from rlkd.errors import UsageError
from tests.helpers.scripts import load_script, run_here, run_script
from trainers.common.run_files import read_steps
from trainers.common.sft import check_examples

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def recipe() -> SimpleNamespace:
    return load_script("recipes/sft.py")


def row(**fields: Any) -> dict[str, Any]:
    return {"id": "a", "question": "2 and 3?", "answer": "5", "rationales": ["2 + 3 = <<2+3=5>>5"]} | fields


# Examples


def test_an_example_is_the_question_and_the_rationale_with_its_answer_line(recipe) -> None:
    (example,) = recipe.to_examples([row()], {"system_prompt": "Be short.", "examples": 0})
    assert example == {
        "prompt": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "2 and 3?"}],
        "completion": [{"role": "assistant", "content": "2 + 3 = 5\n#### 5"}],
    }


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"rationales": ["It is \\boxed{5}"]}, "It is \\boxed{5}"),
        ({"answer": None}, "2 + 3 = 5"),
        ({"rationales": [" 2 + 3 = 5 \n"]}, "2 + 3 = 5\n#### 5"),
        # The row's answer is not put below another one, nor below none.
        ({"rationales": ["2 + 3 = 6"]}, "2 + 3 = 6"),
        ({"rationales": [" 2 + 3 \n"]}, "2 + 3"),
    ],
)
def test_an_answer_line_is_added_only_where_none_is_announced(recipe, fields, text) -> None:
    (example,) = recipe.to_examples([row(**fields)], {})
    assert example["completion"] == [{"role": "assistant", "content": text}]


def test_each_rationale_is_an_example_and_a_row_without_one_is_none(recipe) -> None:
    rows = [row(rationales=["one", "two"]), row(id="b", rationales=[])]
    texts = [example["completion"][0]["content"] for example in recipe.to_examples(rows, {})]
    assert texts == ["one", "two"]


def test_with_a_curriculum_an_example_has_the_stage_of_its_rationale(recipe) -> None:
    rows = [row(rationales=["one", "two"], stages=[2, 1]), row(id="b", rationales=["three"], stages=[3])]
    assert [example["stage"] for example in recipe.to_examples(rows, {}, staged=True)] == [2, 1, 3]
    assert not any("stage" in example for example in recipe.to_examples(rows, {}))
    # As after `max_rationales: 1`.
    with pytest.raises(UsageError, match="2 stages for 1 rationales"):
        recipe.to_examples([row(rationales=["one"], stages=[2, 1])], {}, staged=True)


def test_with_a_weight_column_an_example_has_the_weight_of_its_rationale(recipe) -> None:
    rows = [row(rationales=["one", "two"], trust=[2, 0]), row(id="b", rationales=["three"], trust=1.5)]
    examples = recipe.to_examples(rows, {}, weight_column="trust")
    assert [example["example_weight"] for example in examples] == [2.0, 0.0, 1.5]
    assert not any("example_weight" in example for example in recipe.to_examples(rows, {}))
    with pytest.raises(UsageError, match="row 'c' has the weight -1"):
        recipe.to_examples([row(id="c", trust=-1)], {}, weight_column="trust")


def test_the_weight_column_is_read_beside_other_columns(recipe, tmp_path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row(trust=0.5, level=3, place="x")))
    script = recipe.SFTScriptArguments(
        dataset_name=str(tmp_path / "rows.jsonl"), other_columns=["level"], weight_column="trust"
    )
    (read,) = script.train_rows()
    assert (read["trust"], read["level"]) == (0.5, 3)
    assert "place" not in read


def test_rows_of_one_question_are_joined_with_their_weights(recipe, tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [row(rationales=["one"], trust=0.5), row(rationales=["two", "three"], trust=[0.25, 1])]
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    script = recipe.SFTScriptArguments(dataset_name=str(path), join_questions=True, weight_column="trust")
    examples = recipe.to_examples(script.train_rows(), {}, weight_column="trust")
    assert [example["completion"][0]["content"] for example in examples] == ["one", "two", "three"]
    assert [example["example_weight"] for example in examples] == [0.5, 0.25, 1.0]


def test_a_text_prompt_gets_a_text_completion(recipe) -> None:
    (example,) = recipe.to_examples([{"id": "a", "prompt": "Q: ", "answer": None, "rationales": ["A"]}], {})
    assert example == {"prompt": "Q: ", "completion": "A"}


def test_rows_without_any_rationale_are_refused_with_the_way_out(recipe) -> None:
    with pytest.raises(UsageError, match=r"none of the 2 rows has a rationale .*--columns"):
        recipe.to_examples([row(rationales=[]), row(id="b", rationales=[])], {})


def test_runs_have_similar_lengths_random_order_and_every_example_once(recipe) -> None:
    examples = [{"prompt": "", "completion": "x" * length} for length in range(103)]
    ordered = recipe.by_length(examples, 4, seed=1)
    lengths = [len(example["completion"]) for example in ordered]
    assert sorted(lengths) == list(range(103))
    runs = [lengths[start : start + 4] for start in range(0, 100, 4)]
    assert all(max(run) - min(run) == 3 for run in runs)
    assert [run[0] for run in runs] != sorted(run[0] for run in runs)
    assert ordered == recipe.by_length(examples, 4, seed=1) != recipe.by_length(examples, 4, seed=2)


# The shipped config


def test_the_warm_start_uses_the_prompt_of_the_reinforcement_recipe(root: Path) -> None:
    warm, rlkd = (yaml.safe_load((root / f"recipes/{name}.yaml").read_text()) for name in ("sft", "rlkd_smollm2"))
    assert warm["system_prompt"] == rlkd["system_prompt"]
    assert warm["few_shot_examples"] == 0


def test_the_expert_uses_the_prompt_of_the_warm_start_and_learns_from_rows_of_its_own(root: Path, recipe) -> None:
    warm, expert = (yaml.safe_load((root / f"recipes/{name}.yaml").read_text()) for name in ("sft", "sft_expert"))
    assert {**warm, **expert}["system_prompt"] == warm["system_prompt"]
    script = recipe.SFTScriptArguments(
        **{key: expert[key] for key in ("dataset_name", "dataset_test_name", "dataset_test_split", "eval_rows")}
    )
    assert {row["id"].split("-")[0] for row in script.train_rows()} == {"mawps", "chain", "gsm8k"}
    assert len(script.test_rows()) == expert["eval_rows"]


# An adapter that is there already


def test_an_adapter_that_is_given_is_what_is_trained_in_float32(recipe, tiny_model: str, tmp_path: Path) -> None:
    import torch

    begun = make_adapter(tmp_path / "begun", tiny_model)
    args = SimpleNamespace(model_init_kwargs={"attn_implementation": "eager"})
    model = recipe.with_adapter(tiny_model, str(tmp_path / "begun"), args)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    assert len(trained) == len(begun) > 0
    for name, tensor in begun.items():
        stem, _, last = name.rpartition(".")
        assert trained[f"{stem}.default.{last}"].equal(tensor.float()), name
    assert args.model_init_kwargs is None


@pytest.mark.parametrize(
    ("model", "adapter", "message"),
    [
        (
            "some/model",
            "embedded-warm",
            r"--adapter embedded-warm is an adapter of the model 'embedded', not of 'some/model'",
        ),
        (
            "some/model",
            "nowhere",
            r"--adapter nowhere: no adapter_config\.json there\. Shipped adapters: .*embedded-warm",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_before_a_model_is_loaded(recipe, model, adapter, message) -> None:
    with pytest.raises(UsageError, match=message):
        recipe.with_adapter(model, adapter, SimpleNamespace(model_init_kwargs=None))


# What the trainer makes of the examples


@pytest.fixture
def trainer(tiny_model: str, tmp_path: Path, recipe):
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from rlkd.data.loading import to_dataset

    def make(examples: list[dict[str, Any]], template: str | None = None, **settings: Any) -> SFTTrainer:
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        tokenizer.chat_template = template or tokenizer.chat_template
        args = SFTConfig(str(tmp_path / "out"), use_cpu=True, bf16=False, report_to="none", **settings)
        return SFTTrainer(tiny_model, args, train_dataset=to_dataset(examples), processing_class=tokenizer)

    return make


@pytest.mark.parametrize("name", ["difficulty", "srd", "rank_surprisal"])
def test_rationales_are_measured_behind_the_ids_that_are_trained_on(recipe, trainer, tiny_model, name) -> None:
    from rlkd.engines.tokens import encode_prompt
    from rlkd.rationales.records import Question
    from rlkd.rationales.select import load_selector

    style = {"system_prompt": "Be short.", "examples": 1}
    made = trainer(recipe.to_examples([row()], style), max_length=None)
    (ids,), (labels,) = made.train_dataset["input_ids"], made.train_dataset["labels"]
    prompt = [token for token, label in zip(ids, labels, strict=True) if label == -100]
    selector = load_selector(name, defaults={"student": f"transformers:{tiny_model}", "prompt_style": style})
    measured = selector.prompt(Question("a", row()["question"], "5"))
    assert encode_prompt(made.processing_class, measured) == prompt


def test_the_loss_is_on_the_completion_and_its_end_token(recipe, trainer) -> None:
    examples = recipe.to_examples([row()], {"system_prompt": "Be short."})
    made = trainer(examples)
    check_examples(made, 1)
    tokenizer, (labels,) = made.processing_class, made.train_dataset["labels"]
    learnt = tokenizer.decode([label for label in labels if label != -100])
    assert learnt == "2 + 3 = 5\n#### 5<|end|>"


def test_the_loss_covers_the_end_token_of_the_embedded_model_too(recipe) -> None:
    from transformers import AutoTokenizer

    from rlkd.models import _FOLDER, cache_folder

    if not (cache_folder() / _FOLDER).is_dir():
        pytest.skip("the embedded model is not in the cache")
    tokenizer = AutoTokenizer.from_pretrained(cache_folder() / _FOLDER)
    (example,) = recipe.to_examples([row()], {"system_prompt": "Be short."})
    ask = {"tokenize": True, "return_dict": False}
    prompt = tokenizer.apply_chat_template(example["prompt"], add_generation_prompt=True, **ask)
    whole = tokenizer.apply_chat_template(example["prompt"] + example["completion"], **ask)
    # The prompt is a prefix, so that training sees what generation sees; and the end token is in the rest.
    assert whole[: len(prompt)] == prompt
    assert tokenizer.eos_token_id in whole[len(prompt) :]
    assert tokenizer.pad_token_id not in whole


def test_examples_that_do_not_fit_are_counted(recipe, trainer, capsys) -> None:
    rows = [row(), row(id="b", question="x" * 100), row(id="c", rationales=["y" * 100])]
    made = trainer(recipe.to_examples(rows, {}), max_length=60)
    check_examples(made, 3)
    assert "1 of 3 examples are dropped" in capsys.readouterr().out
    assert len(made.train_dataset) == 2


def test_a_template_without_an_end_token_is_refused(recipe, trainer) -> None:
    template = "{% for m in messages %}{{ m.content }}|{% endfor %}"
    made = trainer(recipe.to_examples([row()], {}), template=template)
    with pytest.raises(UsageError, match=r"no example teaches the model to end.*--eos_token"):
        check_examples(made, 1)


# Whole runs


def make_adapter(folder: Path, base: str) -> dict[str, Any]:
    """A LoRA adapter with random weights in bfloat16; its tensors."""
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    config = LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    weights = folder / "adapter_model.safetensors"
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    return tensors


@pytest.fixture
def quick(tiny_model: str, tmp_path: Path) -> list[str]:
    """Arguments that make the default recipe small."""
    lines = [{"question": f"{i} and 1?", "answer": str(i + 1), "rationales": [f"{i} + 1 = {i + 1}"]} for i in range(9)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return (
        f"--model_name_or_path {tiny_model} --dataset_name {data} --eval_rows 2 --max_completion_length 8 "
        f"--per_device_train_batch_size 2 --gradient_accumulation_steps 1 --logging_steps 1 "
        f"--output_dir {tmp_path / 'run'}"
    ).split()


@pytest.mark.slow
@pytest.mark.parametrize("place", [pytest.param("checkout", marks=pytest.mark.nightly), "elsewhere"])
def test_accelerate_launch_trains_measures_and_saves_an_adapter(root, tmp_path, quick, place) -> None:
    cwd, script = (root, "recipes/sft.py") if place == "checkout" else (tmp_path, root / "recipes/sft.py")
    done = run_script([BIN / "accelerate", "launch", "--num_processes", 1, script, *quick], cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "run"
    assert [entry["step"] for entry in read_steps(run / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    measured = read_steps(run / "eval.jsonl")
    assert [entry["step"] for entry in measured] == [0, 5]
    assert {"accuracy", "ended", "tokens"} <= set(measured[0])
    for shown in ("9 examples from 9 rows", "accuracy before: ", "accuracy after: ", str(run)):
        assert shown in done.stdout
    tensors = load_file(run / "adapter_model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"torch.bfloat16"}


@pytest.mark.slow
def test_training_on_from_an_adapter_gives_one_adapter_of_its_shape_and_resumes(tmp_path, quick, tiny_model):
    begun = make_adapter(tmp_path / "begun", tiny_model)
    arguments = [*quick, "--adapter", tmp_path / "begun", "--save_steps", "2", "--eval_rows", "0"]
    for more in (["--max_steps", "4"], ["--max_steps", "6", "--resume_from_checkpoint"]):
        done = run_here("recipes/sft.py", [*arguments, *more], tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
    assert [entry["step"] for entry in read_steps(tmp_path / "run/metrics.jsonl")] == list(range(1, 7))
    trained = load_file(tmp_path / "run/adapter_model.safetensors")
    assert {name: tensor.shape for name, tensor in trained.items()} == {n: tensor.shape for n, tensor in begun.items()}
    assert {str(tensor.dtype) for tensor in trained.values()} == {"torch.bfloat16"}
    # It has learnt, and it began where the other one ended.
    moved = max(float((trained[name].float() - tensor.float()).abs().max()) for name, tensor in begun.items())
    assert 0 < moved < 0.1
    config = json.loads((tmp_path / "run/adapter_config.json").read_text())
    assert (config["r"], config["base_model_name_or_path"]) == (3, tiny_model)


@pytest.mark.slow
def test_two_processes_share_the_work(root, tmp_path, quick) -> None:
    torchrun = [BIN / "torchrun", "--nproc_per_node", 2, "--standalone"]
    done = run_script([*torchrun, root / "recipes/sft.py", *quick, "--ddp_backend", "gloo"], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("accuracy before: ") == 1
    assert [entry["step"] for entry in read_steps(tmp_path / "run/metrics.jsonl")] == [1, 2, 3]


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_weights_of_an_undisturbed_one(root, tmp_path, quick) -> None:
    run, steps = tmp_path / "run", ["--num_train_epochs", "12", "--save_steps", "2", "--eval_rows", "0"]
    command = [sys.executable, root / "recipes/sft.py", *quick, *steps]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    with subprocess.Popen(
        list(map(str, command)), cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 240
        while not (run / "metrics.jsonl").exists() or len(read_steps(run / "metrics.jsonl")) < 7:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert not (run / "adapter_model.safetensors").exists()
    done = run_here("recipes/sft.py", [*command[2:], "--resume_from_checkpoint"], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [entry["step"] for entry in read_steps(run / "metrics.jsonl")] == list(range(1, 61))
    whole = run_here("recipes/sft.py", [*command[2:], "--output_dir", tmp_path / "whole"], tmp_path)
    assert whole.returncode == 0, whole.stderr[-3000:]
    resumed, undisturbed = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("run", "whole"))
    assert all(tensor.equal(undisturbed[name]) for name, tensor in resumed.items())


@pytest.mark.slow
def test_no_epochs_only_measure(tmp_path, quick) -> None:
    done = run_here("recipes/sft.py", [*quick, "--num_train_epochs", 0], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "accuracy before: " in done.stdout
    assert not (tmp_path / "run/adapter_model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_rat_e", "1"], "did you mean learning_rate"),
        (["--dataset_name", "nowhere.jsonl"], "there is no file"),
        (["--dataset_train_split", "test"], "expected 'train'"),
        (["--resume_from_checkpoint", "nowhere"], "no complete checkpoint there"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_a_mistake_ends_in_one_clear_message(tmp_path, arguments, message) -> None:
    done = run_here("recipes/sft.py", ["--model_name_or_path", "no-such-model", *arguments], tmp_path)
    assert done.returncode != 0
    assert message in done.stderr
