"""The distillation trainer on tiny models: real TRL, real teachers, real files."""

import shutil
import statistics
from pathlib import Path

import pandas
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DistillationConfig, DistillationTrainer

from benchmarks.tiny import save_llama
from rlkd.data.loading import load_rows, to_dataset
from rlkd.teachers.local import LocalTeacher
from rlkd.teachers.traces import trace_ids, trace_text
from trainers import ValidityKDConfig, ValidityKDTrainer
from trainers.common.run_files import read_steps


@pytest.fixture(scope="module")
def teacher_model(tmp_path_factory) -> str:
    """Another random Llama with the student's tokenizer: wider and deeper."""
    folder = tmp_path_factory.mktemp("teacher-model")
    # Wide weights: distributions with a shape.
    return save_llama(folder, seed=1, hidden_size=48, num_hidden_layers=3, initializer_range=0.2)


@pytest.fixture
def rows() -> Dataset:
    """Questions that are cut short, and traces that fit into 300 characters, which are the tiny model's tokens."""
    fitting = [row for row in load_rows("gsm8k-sample") if 100 < len(row["rationales"][0]) < 250]
    return to_dataset([row | {"question": row["question"][:40]} for row in fitting[:8]])


def config(folder: Path, kind=ValidityKDConfig, **changes):
    values = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 4,
        "max_completion_length": 16,
        "max_steps": 1,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 3,
    }
    return kind(**values | changes)


def lora() -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", init_lora_weights=False)


def traces(tokenizer, row, tokens: int) -> tuple[list[int], list[int]]:
    return trace_ids(tokenizer, row["prompt"], trace_text(row["rationales"][0], row["answer"]), tokens)


def loss_and_gradients(trainer, inputs, count: int) -> tuple[float, dict[str, torch.Tensor]]:
    trainer.model.zero_grad()
    trainer.model.eval()
    loss, _, _ = trainer._compute_loss(trainer.accelerator.unwrap_model(trainer.model), inputs, count)
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kernel", ["chunked", "trl"])
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_with_weights_of_1_loss_and_gradients_are_trls(
    tiny_model, teacher_model, rows, tmp_path, beta, adapter, kernel
) -> None:
    settings = {"beta": beta, "temperature": 0.9}
    peft = {"peft_config": lora()} if adapter else {}
    stock = DistillationTrainer(
        tiny_model, teacher_model, config(tmp_path / "a", DistillationConfig, **settings), rows, **peft
    )
    ours = ValidityKDTrainer(
        tiny_model,
        teacher_model,
        config(tmp_path / "b", lmbda=1.0, control="uniform", kernel=kernel, **settings),
        rows,
        **peft,
    )
    ours.model.train()
    inputs = ours._generate_and_score_completions([rows[i] for i in range(4)])
    assert float(inputs["kd_weights"].min()) == float(inputs["kd_weights"].max()) == 1.0
    expected, expected_gradients = loss_and_gradients(stock, inputs, 50)
    found, found_gradients = loss_and_gradients(ours, inputs, 50)
    assert found == pytest.approx(expected, abs=1e-6)
    assert found_gradients.keys() == expected_gradients.keys()
    for name, gradient in found_gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-5, rtol=1e-5)
    assert any(gradient.abs().max() > 1e-4 for gradient in found_gradients.values())


@pytest.mark.slow
def test_the_uniform_control_on_rollouts_trains_as_trl_does(tiny_model, teacher_model, rows, tmp_path) -> None:
    settings = {"max_steps": 2, "beta": 0.5, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    stock = DistillationTrainer(
        tiny_model, teacher_model, config(tmp_path / "a", DistillationConfig, **settings), rows
    )
    stock.train()
    expected = [parameter.detach().clone() for parameter in stock.model.parameters()]
    settings |= {"control": "uniform", "lmbda": 1.0, "fast_path": "never"}
    ours = ValidityKDTrainer(tiny_model, teacher_model, config(tmp_path / "b", **settings), rows)
    ours.train()
    for one, other in zip(expected, ours.model.parameters(), strict=True):
        torch.testing.assert_close(other, one, atol=2e-5, rtol=1e-4)
    assert [record["policy"] for record in read_steps(ours.rollouts_path)] == ["student"] * 8


def test_weights_scale_each_tokens_share_of_the_loss(tiny_model, teacher_model, rows, tmp_path) -> None:
    trainer = ValidityKDTrainer(tiny_model, teacher_model, config(tmp_path, lmbda=0.0, control="uniform"), rows)
    trainer.model.train()
    inputs = trainer._generate_and_score_completions([rows[i] for i in range(4)])
    whole, gradients = loss_and_gradients(trainer, inputs, 10)
    half, half_gradients = loss_and_gradients(trainer, inputs | {"kd_weights": inputs["kd_weights"] / 2}, 10)
    assert half == pytest.approx(whole / 2, rel=1e-5)
    for name, gradient in half_gradients.items():
        torch.testing.assert_close(gradient, gradients[name] / 2, atol=1e-6, rtol=1e-4)
    # The sum over rows, one at a time, with the others at 0.
    alone = []
    for row in range(4):
        weights = torch.zeros_like(inputs["kd_weights"])
        weights[row] = 1
        alone.append(loss_and_gradients(trainer, inputs | {"kd_weights": weights}, 10)[0])
    assert sum(alone) == pytest.approx(whole, rel=1e-5)


def test_rows_that_are_all_masked_cost_nothing_and_still_have_a_graph(
    tiny_model, teacher_model, rows, tmp_path
) -> None:
    trainer = ValidityKDTrainer(tiny_model, teacher_model, config(tmp_path, lmbda=0.0, control="uniform"), rows)
    trainer.model.train()
    inputs = trainer._generate_and_score_completions([rows[i] for i in range(4)])
    nothing = inputs | {"tool_mask": torch.zeros_like(inputs["completion_mask"])}
    loss, gradients = loss_and_gradients(trainer, nothing, 10)
    assert loss == 0.0
    assert gradients.keys() == {name for name, _ in trainer.model.named_parameters()}
    assert all(float(gradient.abs().max()) == 0.0 for gradient in gradients.values())


def test_an_off_policy_batch_is_the_teachers_trace_as_the_cache_tokenises_it(
    tiny_model, teacher_model, rows, tmp_path
) -> None:
    trainer = ValidityKDTrainer(
        tiny_model, teacher_model, config(tmp_path, lmbda=0.0, max_completion_length=300, control="uniform"), rows
    )
    trainer.model.train()
    inputs = trainer._generate_and_score_completions([rows[i] for i in range(4)])
    tokenizer = trainer._tokenizer
    for place in range(4):
        prompt, completion = traces(tokenizer, rows[place], 300)
        ids, mask = inputs["completion_ids"][place], inputs["completion_mask"][place].bool()
        assert ids[mask].tolist() == completion
        assert ids[mask].tolist()[-1] == tokenizer.eos_token_id
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)  # padded behind
        ids, mask = inputs["prompt_ids"][place], inputs["prompt_mask"][place].bool()
        assert ids[mask].tolist() == prompt
        assert mask.tolist() == sorted(mask.tolist())  # padded in front
    assert int(inputs["num_items_in_batch"]) == int(inputs["completion_mask"].sum())
    assert not bool(inputs["on_policy"])


def test_a_trace_beyond_the_limit_is_truncated_and_does_not_end(tiny_model, teacher_model, rows, tmp_path) -> None:
    trainer = ValidityKDTrainer(tiny_model, teacher_model, config(tmp_path, lmbda=0.0, control="uniform"), rows)
    trainer.train()
    (entry,) = [entry for entry in read_steps(trainer.metrics_path) if "loss" in entry]
    assert entry["traces/clipped_ratio"] == 1.0
    assert entry["traces/mean_length"] == 16


def test_a_step_that_the_student_gets_worse_than_expected_pulls_harder(
    tiny_model, teacher_model, rows, tmp_path
) -> None:
    args = config(tmp_path, lmbda=0.0, max_completion_length=300)
    trainer = ValidityKDTrainer(tiny_model, teacher_model, args, rows)
    trainer.train()
    records = read_steps(trainer.rollouts_path)
    assert {record["policy"] for record in records} == {"teacher"}
    steps = [step for record in records for step in record["steps"]]
    assert len(steps) > 8
    floor = [step for step in steps if step["teacher"] < -1.7]  # log .2 is -1.61
    assert floor
    for step in steps:
        assert step["margin"] == pytest.approx(step["teacher"] - step["student"], abs=1e-5)
        compared = 1 + 0.8 * torch.tanh(torch.tensor(step["margin"] / 0.2 / 2)).item()
        trust = min(1.0, float(torch.tensor(step["teacher"]).exp()) / 0.2)
        assert step["weight"] == pytest.approx(compared * trust, abs=1e-4)


def test_the_weights_of_steps_lie_on_their_tokens_and_all_others_have_weight_1(
    tiny_model, teacher_model, rows, tmp_path
) -> None:
    args = config(tmp_path, lmbda=0.0, max_completion_length=300)
    trainer = ValidityKDTrainer(tiny_model, teacher_model, args, rows)
    trainer.model.train()
    inputs = trainer._generate_and_score_completions([rows[i] for i in range(4)])
    for record, ids, weights in zip(
        read_steps(trainer.rollouts_path), inputs["completion_ids"], inputs["kd_weights"], strict=True
    ):
        place = 0
        for step in record["steps"]:
            text = trainer._tokenizer.decode(ids[place : place + step["tokens"]])
            assert text.strip() == step["text"]
            assert weights[place : place + step["tokens"]].tolist() == pytest.approx([step["weight"]] * step["tokens"])
            place += step["tokens"]
        behind = weights[place:]
        assert len(behind)
        assert behind.tolist() == [1.0] * len(behind)
        assert trainer._tokenizer.decode(ids[place:]).startswith("####")


def test_tool_output_has_weight_1_and_no_influence_on_other_weights(tiny_model, teacher_model, rows, tmp_path) -> None:
    args = config(tmp_path, lmbda=0.0, max_completion_length=300)
    trainer = ValidityKDTrainer(tiny_model, teacher_model, args, rows)
    trainer.model.train()
    asked = [rows[i] for i in range(4)]
    batch = trainer._generate_and_score_completions(asked)
    whole = read_steps(trainer.rollouts_path)[0]["steps"]
    first = whole[0]["tokens"]
    tool_mask = batch["completion_mask"].clone()
    tool_mask[0, :first] = 0
    weighted = trainer.token_weights(asked, batch | {"tool_mask": tool_mask}, on_policy=False, step=0)
    assert weighted.weights[0, :first].tolist() == [1.0] * first
    assert [record.text for record in weighted.records if record.row == 0] == [step["text"] for step in whole[1:]]
    torch.testing.assert_close(weighted.weights[0, first:], batch["kd_weights"][0, first:])
    assert batch["kd_weights"][0, 0] != 1.0


@pytest.mark.parametrize("control", ["shuffled", "teacher_only", "position", "entropy", "divergence"])
@pytest.mark.parametrize("lmbda", [0.0, 1.0], ids=["traces", "rollouts"])
@pytest.mark.slow
def test_every_control_trains(tiny_model, teacher_model, rows, tmp_path, control, lmbda) -> None:
    args = config(tmp_path, lmbda=lmbda, control=control, max_completion_length=200)
    trainer = ValidityKDTrainer(tiny_model, teacher_model, args, rows)
    trainer.train()
    entry = read_steps(trainer.metrics_path)[0]
    assert entry["grad_norm"] > 0
    assert entry["kd/on_policy"] == lmbda
    steps = [step for record in read_steps(trainer.rollouts_path) for step in record["steps"]]
    weights = [step["weight"] for step in steps]
    margins = torch.tensor([step["margin"] for step in steps])
    compared = (1 + 0.8 * torch.tanh(margins / 0.2 / 2)).tolist()
    if control == "teacher_only":
        validities = torch.tensor([step["teacher"] for step in steps])
        assert margins.tolist() == pytest.approx(
            (validities - statistics.median(validities.tolist())).tolist(), abs=1e-5
        )
        trust = (validities.exp() / 0.2).clamp(max=1).tolist() if lmbda == 0 else [1.0] * len(steps)
        assert weights == pytest.approx([c * t for c, t in zip(compared, trust, strict=True)], abs=1e-4)
    elif control in ("entropy", "divergence"):
        assert weights == pytest.approx(compared, abs=1e-4)
        assert any(abs(weight - 1) > 1e-3 for weight in weights)
    elif lmbda == 0:  # rollouts of 200 random characters may have a single step
        assert len(set(weights)) > 1


def test_weights_that_normalise_keep_the_size_of_the_step(tiny_model, teacher_model, rows, tmp_path) -> None:
    args = config(tmp_path, lmbda=0.0, normalise="weights", max_completion_length=200)
    trainer = ValidityKDTrainer(tiny_model, teacher_model, args, rows)
    trainer.model.train()
    inputs = trainer._generate_and_score_completions([rows[i] for i in range(4)])
    weights = inputs["kd_weights"][inputs["completion_mask"].bool()]
    assert float(inputs["num_items_in_batch"]) == pytest.approx(float(weights.sum()), rel=1e-6)
    assert float(weights.sum()) != pytest.approx(len(weights), rel=1e-2)
    scaled = inputs | {"kd_weights": 3 * inputs["kd_weights"]}
    whole, _ = loss_and_gradients(trainer, inputs, inputs["num_items_in_batch"])
    tripled, _ = loss_and_gradients(trainer, scaled, 3 * inputs["num_items_in_batch"])
    assert tripled == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("kept", [True, False])
def test_teacher_states_of_the_weights_serve_the_loss_too(tiny_model, teacher_model, rows, tmp_path, kept) -> None:
    args = config(tmp_path, lmbda=0.0, keep_teacher_states=kept, max_completion_length=64)
    trainer = ValidityKDTrainer(tiny_model, teacher_model, args, rows)
    forwards = []
    trainer.teacher_model.register_forward_hook(lambda *_: forwards.append(1))
    trainer.teacher_model.model.register_forward_hook(lambda *_: forwards.append(1))
    trainer.train()
    assert len(forwards) == (1 if kept else 2)


@pytest.mark.slow
def test_the_loss_is_the_same_whether_the_teachers_states_are_cached(
    tiny_model, teacher_model, rows, tmp_path
) -> None:
    losses = []
    for kept in (True, False):
        args = config(tmp_path / str(kept), lmbda=0.0, keep_teacher_states=kept, max_completion_length=64)
        trainer = ValidityKDTrainer(tiny_model, teacher_model, args, rows)
        trainer.train()
        losses.append(read_steps(trainer.metrics_path)[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


@pytest.mark.slow
def test_a_padded_head_is_compared_over_the_shared_rows(tiny_model, rows, tmp_path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    padded, plain = tmp_path / "padded", tmp_path / "plain"
    save_llama(plain, tokenizer, seed=2, initializer_range=0.2)
    model = AutoModelForCausalLM.from_pretrained(plain)
    model.resize_token_embeddings(len(tokenizer) + 7, mean_resizing=False)
    model.save_pretrained(padded)
    tokenizer.save_pretrained(padded)
    losses = {}
    for name, student, teacher in (
        ("equal", tiny_model, plain),
        ("teacher padded", tiny_model, padded),
        ("student padded", padded, plain),
        ("both plain", plain, plain),
    ):
        args = config(tmp_path / name, lmbda=0.0, max_completion_length=64, control="uniform", learning_rate=0.0)
        trainer = ValidityKDTrainer(str(student), str(teacher), args, rows)
        trainer.train()
        losses[name] = read_steps(trainer.metrics_path)[0]["loss"]
    assert losses["teacher padded"] == pytest.approx(losses["equal"], abs=1e-5)
    assert losses["student padded"] == pytest.approx(losses["both plain"], abs=1e-5)
    assert losses["both plain"] == pytest.approx(0, abs=1e-6)
    # Rows that only pad are not written either.
    args = config(tmp_path / "rollouts", lmbda=1.0, max_completion_length=64)
    trainer = ValidityKDTrainer(str(padded), str(plain), args, rows)
    trainer.model.train()
    batch = trainer._generate_and_score_completions([rows[i] for i in range(4)])
    assert int(batch["completion_ids"].max()) < len(tokenizer)


def test_a_padded_student_writes_no_padding_for_a_top_k_teacher(tiny_model, teacher_model, rows, tmp_path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    student = AutoModelForCausalLM.from_pretrained(tiny_model)
    student.resize_token_embeddings(len(tokenizer) + 300, mean_resizing=False)
    student.save_pretrained(tmp_path / "padded")
    tokenizer.save_pretrained(tmp_path / "padded")
    teacher = LocalTeacher(AutoModelForCausalLM.from_pretrained(teacher_model), tokenizer, k=8)
    args = config(tmp_path / "run", lmbda=1.0, max_completion_length=32)
    trainer = ValidityKDTrainer(str(tmp_path / "padded"), teacher, args, rows)
    trainer.train()
    trainer.model.train()
    batch = trainer._generate_and_score_completions([rows[i] for i in range(4)])
    assert int(batch["completion_ids"].max()) < len(tokenizer)


@pytest.mark.slow
def test_a_top_k_teacher_that_knows_all_tokens_is_as_good_as_its_weights(
    tiny_model, teacher_model, rows, tmp_path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(teacher_model)
    tokenizer = AutoTokenizer.from_pretrained(teacher_model)
    everything = LocalTeacher(model, tokenizer, k=len(tokenizer))
    found = []
    for name, teacher in (("dense", teacher_model), ("sparse", everything)):
        args = config(tmp_path / name, lmbda=0.0, max_completion_length=120)
        trainer = ValidityKDTrainer(tiny_model, teacher, args, rows)
        trainer.train()
        found.append(read_steps(trainer.metrics_path)[0])
    for name in ("loss", "grad_norm", "kd_weight/mean", "validity/margin"):
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-3), name


def test_an_evaluation_rolls_out_and_measures_the_plain_divergence(tiny_model, teacher_model, rows, tmp_path) -> None:
    args = config(tmp_path, lmbda=0.0, per_device_eval_batch_size=4, max_completion_length=32)
    trainer = ValidityKDTrainer(tiny_model, teacher_model, args, rows, eval_dataset=rows.select(range(4)))
    trainer.train()
    figures = trainer.evaluate()
    assert figures["eval_loss"] > 0
    assert {record["policy"] for record in read_steps(trainer.rollouts_path)} == {"teacher"}


def test_the_logged_figures_are_there_and_hang_together(tiny_model, teacher_model, rows, tmp_path) -> None:
    args = config(tmp_path, lmbda=0.0, max_completion_length=300, tau="adapt")
    trainer = ValidityKDTrainer(tiny_model, teacher_model, args, rows)
    trainer.train()
    entry = read_steps(trainer.metrics_path)[0]
    records = read_steps(trainer.rollouts_path)
    steps = [step for record in records for step in record["steps"]]
    assert entry["kd/steps_per_trace"] == pytest.approx(len(steps) / 4)
    assert entry["traces/right"] == 1.0
    assert "kd/right" not in entry  # which is about rollouts
    assert entry["validity/margin"] == pytest.approx(sum(step["margin"] for step in steps) / len(steps))
    assert entry["validity/margin_right"] == pytest.approx(entry["validity/margin"])
    assert "validity/margin_wrong" not in entry
    assert entry["kd_weight/q10"] <= entry["kd_weight/q50"] <= entry["kd_weight/q90"]
    assert entry["validity/failed"] == 0
    assert entry["traces/tau"] == pytest.approx(trainer.token_weights.weighting.adaptive_off_policy.value)
    assert "validity/tau" not in entry  # which is that of rollouts
    assert {"kd_weight/first_third", "kd_weight/middle_third", "kd_weight/last_third"} <= entry.keys()
    assert 0 <= entry["kd_weight/floored"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"tau": "adapt"}, {"control": "position"}], ids=["tau", "position"])
def test_a_resumed_run_ends_as_the_uninterrupted_one_bit_for_bit(
    tiny_model, teacher_model, rows, tmp_path, changes
) -> None:
    settings = changes | {
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
        "lmbda": 0.5,
        "max_completion_length": 120,
        "proposals": "generate",
        "max_step_tokens": 8,
    }

    def trainer(folder: str) -> ValidityKDTrainer:
        args = config(tmp_path / folder, **settings)
        return ValidityKDTrainer(tiny_model, teacher_model, args, rows, peft_config=lora())

    whole = trainer("run")
    whole.train()
    first = read_steps(whole.metrics_path)
    assert {entry["kd/on_policy"] for entry in first if "loss" in entry} == {0.0, 1.0}
    # As a kill after step 4 leaves it: the later checkpoint is not there yet.
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoint-6")
    resumed = trainer("again")
    resumed.train(resume_from_checkpoint=True)
    for (name, one), (_, other) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    drop = ("step_time", "epoch")
    plain = [{k: v for k, v in entry.items() if k not in drop} for entry in first if "loss" in entry]
    again = [entry for entry in read_steps(resumed.metrics_path) if "loss" in entry]
    assert [{k: v for k, v in entry.items() if k not in drop} for entry in again] == plain
    assert read_steps(whole.rollouts_path) == read_steps(resumed.rollouts_path)


@pytest.mark.slow
def test_the_table_of_completions_has_the_traces_of_the_teacher_too(tiny_model, rows, tmp_path) -> None:
    args = config(tmp_path, lmbda=0.0, max_completion_length=300, log_completions=True, num_completions_to_print=0)
    trainer = ValidityKDTrainer(tiny_model, tiny_model, args, rows)
    trainer.train()
    table = pandas.read_parquet(tmp_path / "completions" / "completions_00001.parquet")
    assert table["completion"].tolist() == [record["completion"] for record in read_steps(trainer.rollouts_path)]
    assert all(len(prompt) > 20 for prompt in table["prompt"])
