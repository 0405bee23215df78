"""Privileged context: the teacher reads more than the student, and both score the same tokens."""

from contextlib import nullcontext

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.tiny import training_arguments
from rlkd.errors import UsageError
from rlkd.rendering import prompt_ids
from tests.helpers.adapters import save_adapter
from trainers import ValidityKDConfig, ValidityKDTrainer
from trainers.common.prompts import PromptCheck
from trainers.common.student import read_model
from trainers.teachers.batches import unpadded
from trainers.teachers.context import TeacherContext
from trainers.validity_kd.preflight import check_config
from trainers.validity_kd.preparation import prepare

ROWS = [
    {
        "id": f"row-{i}",
        "prompt": [{"role": "user", "content": f"{i}+{i}?"}],
        "answer": str(2 * i),
        "rationales": [f"{i}+{i} = <<{i}+{i}={2 * i}>>{2 * i}"],
        "hint": f"hint {i} {{prompt}}",
    }
    for i in range(8)
]


def config(folder, **changes) -> ValidityKDConfig:
    values = {
        "per_device_train_batch_size": 4,
        "max_completion_length": 12,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "teacher": "self",
        "lmbda": 1.0,
    }
    return ValidityKDConfig(**training_arguments(folder, **values | changes))


def trainer_of(model, folder, rows=ROWS, **changes) -> ValidityKDTrainer:
    peft = {name: changes.pop(name) for name in ("peft_config", "tools") if name in changes}
    dataset = Dataset.from_list(rows) if isinstance(rows, list) else rows
    return ValidityKDTrainer(model, args=config(folder, **changes), train_dataset=dataset, **peft)


def lora(**changes) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | changes)


def batch_of(trainer: ValidityKDTrainer, count: int = 4) -> dict:
    trainer.model.train()
    return trainer._generate_and_score_completions(ROWS[:count])


def loss(trainer: ValidityKDTrainer, batch: dict) -> float:
    trainer.model.eval()
    return trainer._compute_loss(trainer.accelerator.unwrap_model(trainer.model), batch, None)[0].item()


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_without_context_the_own_start_teaches_nothing(tiny_model, tmp_path, adapter) -> None:
    peft = {"peft_config": lora()} if adapter else {}
    trainer = trainer_of(tiny_model, tmp_path, **peft)
    assert loss(trainer, batch_of(trainer)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_the_teacher_stays_as_it_was_while_the_student_learns(tiny_model, tmp_path, adapter) -> None:
    peft = {"peft_config": lora()} if adapter else {}
    trainer = trainer_of(tiny_model, tmp_path, teacher_context="answer", **peft)
    batch = batch_of(trainer)
    before = trainer._teacher.observe(batch)["teacher_hidden"]
    start = loss(trainer, batch)
    trainer.train()
    torch.testing.assert_close(trainer._teacher.observe(batch)["teacher_hidden"], before, atol=1e-6, rtol=1e-6)
    assert loss(trainer, batch) != pytest.approx(start, rel=1e-3)
    assert trainer.model.training is False


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "read-again"])
def test_the_teacher_scores_the_same_tokens_after_its_own_prompt(tiny_model, tmp_path, keep) -> None:
    trainer = trainer_of(
        tiny_model,
        tmp_path,
        teacher_context="rationale",
        teacher_context_template="{context} | {prompt}",
        beta=0.0,
        keep_teacher_states=keep,
    )
    batch = batch_of(trainer)
    assert ("teacher_hidden" in batch) == keep
    batch["kd_weights"] = torch.ones_like(batch["kd_weights"])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    total = count = 0
    completions = unpadded(batch["completion_ids"], batch["completion_mask"])
    for row, completion in zip(ROWS, completions, strict=False):
        own = prompt_ids(tokenizer, row["prompt"])
        i = row["answer"]
        text = f"{int(i) // 2}+{int(i) // 2} = {i}"
        told = prompt_ids(
            tokenizer, [{"role": "user", "content": f"{text}\n#### {i} | {row['prompt'][0]['content']}"}]
        )
        sides = []
        for prompt in (own, told):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
            sides.append(logits.log_softmax(-1))
        student, teacher = sides
        total += (teacher.exp() * (teacher - student)).sum().item()
        count += len(completion)
    assert loss(trainer, batch) == pytest.approx(total / count, rel=1e-3)
    assert total / count > 1e-4


@pytest.mark.parametrize("context", ["rationale", "answer", "hint"])
def test_the_students_prompt_is_the_same_with_and_without_context(tiny_model, tmp_path, context) -> None:
    plain = batch_of(trainer_of(tiny_model, tmp_path / "a", control="uniform"))
    told = batch_of(trainer_of(tiny_model, tmp_path / "b", control="uniform", teacher_context=context))
    assert torch.equal(plain["prompt_ids"], told["prompt_ids"])
    assert torch.equal(plain["completion_ids"], told["completion_ids"])
    prompts = unpadded(told["teacher_prompt_ids"], told["teacher_prompt_mask"])
    texts = [AutoTokenizer.from_pretrained(tiny_model).decode(ids) for ids in prompts]
    expected = {"rationale": "1+1 = 2\n#### 2", "answer": "solution:\n2\n", "hint": "hint 1 {prompt}\n"}[context]
    assert expected in texts[1]


def test_another_rows_context_is_the_control() -> None:
    context = TeacherContext("hint", "{prompt} {context}", seed=3, foreign=Dataset.from_list(ROWS))
    for step in range(20):
        [message] = context.prompt(ROWS[0], step)
        assert message["content"].startswith("0+0? hint")
        assert "hint 0" not in message["content"]
    assert context.prompt(ROWS[0], 5) == context.prompt(dict(ROWS[0]), 5)
    assert len({str(context.prompt(ROWS[0], step)) for step in range(20)}) > 2


LENDERS = [row | {"prompt": f"{i}?", "hint": f"hint {i}"} for i, row in enumerate(ROWS)]


def fit_of(template_model, **options) -> PromptCheck:
    """For a model with a context of 128 tokens, one per character."""
    return PromptCheck(read_model(template_model("short")), 8, **options)


def test_rows_that_are_left_out_lend_no_context(template_model) -> None:
    rows = Dataset.from_list([*LENDERS, LENDERS[0] | {"prompt": "long?", "hint": "h" * 120}])
    context = TeacherContext("hint", "{prompt} {context}", foreign=rows)
    context, kept = context.fitted_lenders(fit_of(template_model, leave_out=True), rows, "train_dataset")
    assert kept["hint"] == rows["hint"][:-1] == context.foreign["hint"]
    assert all(len(context.prompt(LENDERS[0], step)) < 20 for step in range(40))


def test_a_run_lends_from_the_rows_that_it_trains_on(template_model, tmp_path) -> None:
    rows = Dataset.from_list([*LENDERS, LENDERS[0] | {"prompt": "p" * 125}])
    changes = {"teacher_context": "hint", "foreign_context": True, "filter_overlong_prompts": True}
    changes |= {"max_completion_length": 8, "teacher_context_template": "{prompt} {context}"}
    args = config(tmp_path, **changes)
    prepared = prepare(args, template_model("short"), "self", rows, rows.select([0, 1]))
    assert prepared.context.foreign["prompt"] == prepared.train_dataset["prompt"] == rows["prompt"][:-1]


@pytest.mark.parametrize("leave_out", [True, False])
def test_the_longest_prompt_has_to_fit_with_the_longest_context_of_any_row(template_model, leave_out) -> None:
    rows = Dataset.from_list([*LENDERS, LENDERS[0] | {"prompt": "p" * 70}, LENDERS[1] | {"hint": "h" * 70}])
    context = TeacherContext("hint", "{prompt} {context}", foreign=rows)
    fit = fit_of(template_model, leave_out=leave_out)
    if leave_out:
        assert context.fitted_lenders(fit, rows, "train_dataset")[1]["prompt"] == [*rows["prompt"][:8], "1?"]
        return
    with pytest.raises(UsageError, match="row 8: a prompt of 141 tokens and max_completion_length 8 do not fit"):
        context.fitted_lenders(fit, rows, "train_dataset")


@pytest.mark.parametrize("foreign", [False, True])
def test_of_several_texts_that_with_the_most_tokens_has_to_fit_not_that_with_the_most_characters(
    template_model, foreign
) -> None:
    fit = fit_of(template_model)
    texts = ["h" * 60, "漢" * 45]
    assert [fit.size(text) for text in texts] == [60, 135]
    rows = Dataset.from_list([row | {"hint": texts} for row in LENDERS])
    context = TeacherContext("hint", "{prompt} {context}", foreign=rows if foreign else None)
    with pytest.raises(UsageError, match="a prompt of 138 tokens and max_completion_length 8 do not fit"):
        context.fitted(fit, rows, "train_dataset")


def test_a_single_prompt_that_fits_has_no_other_row_to_borrow_from(template_model) -> None:
    rows = Dataset.from_list([LENDERS[0], LENDERS[1] | {"prompt": "p" * 125}])
    context = TeacherContext("hint", "{prompt} {context}", foreign=rows)
    with pytest.raises(UsageError, match="train_dataset has one prompt only; expected at least two"):
        context.fitted_lenders(fit_of(template_model, leave_out=True), rows, "train_dataset")


@pytest.mark.parametrize("loaded", [False, True], ids=["folder", "model"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modules_to_save": ["lm_head"]}, "trained modules lm_head of the adapter .*: .* Name the adapter's base"),
        ({"bias": "all"}, r"trained biases \('all'\) of the adapter"),
        ({}, None),
    ],
)
def test_an_adapter_that_is_trained_further_leaves_the_base_as_it_is(
    tiny_model, tmp_path, changes, message, loaded
) -> None:
    folder = str(save_adapter(tiny_model, tmp_path / "adapter", **changes))
    model = folder
    if loaded:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), folder, is_trainable=True)
    args, peft = config(tmp_path / "run"), None if loaded else lora()
    with pytest.raises(UsageError, match=message) if message else nullcontext():
        check_config(args, "self", None, None, peft, model)
    check_config(args, "self", None, None, None, folder)  # merged, and the teacher is a copy


def test_written_steps_and_their_scores_are_the_teachers_with_its_context(tiny_model, tmp_path, monkeypatch) -> None:
    trainer = trainer_of(tiny_model, tmp_path, teacher_context="hint", proposals="generate", max_step_tokens=4)
    seen = []
    scored = trainer._teacher.logprobs
    monkeypatch.setattr(trainer._teacher, "logprobs", lambda s, *rest: seen.extend(s) or scored(s, *rest))
    written = []
    propose = trainer.token_weights.propose
    monkeypatch.setattr(trainer.token_weights, "propose", lambda on, p, n: written.extend(p) or propose(on, p, n))
    batch_of(trainer)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    assert written
    assert all("hint" in tokenizer.decode(ids) for ids in [*written, *seen])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_context": "path"}, "no column 'path', which teacher_context names; the columns are id, prompt"),
        ({"teacher_context": "rationale", "lmbda": 0.5}, "would read the trace that it scores. Set lmbda: 1"),
        ({"teacher_context": "rationales", "lmbda": 0.5}, "rationales with lmbda 0.5: .* the trace that it scores"),
        ({"teacher_context": "answer", "tools": [print]}, "tools with teacher_context: .* Leave out one of the two"),
        ({"foreign_context": True}, "control of teacher_context, which is not set"),
        ({"teacher_context": "empty"}, "8 of 8 rows have no text in 'empty'"),
        ({"teacher_context": "hint", "max_completion_length": 4080}, "train_dataset with teacher_context, row"),
        ({"peft_config": lora(modules_to_save=["lm_head"])}, "trained modules lm_head"),
        ({"peft_config": lora(bias="all")}, "trained biases"),
        ({"teacher_model_init_kwargs": {"dtype": "float32"}}, "teacher_model_init_kwargs"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_loads(tiny_model, tmp_path, monkeypatch, changes, message) -> None:
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UsageError, match=message):
        trainer_of(tiny_model, tmp_path, [row | {"empty": " "} for row in ROWS], **changes)


def test_a_cache_has_no_log_probabilities_after_another_prompt(tiny_model, tmp_path) -> None:
    (tmp_path / "index.json").write_text("{}")
    changes = {"teacher": str(tmp_path), "teacher_context": "answer", "lmbda": 0.0}
    with pytest.raises(UsageError, match="those after the student's prompt"):
        trainer_of(tiny_model, tmp_path / "run", **changes)


def test_a_stream_lends_no_contexts(tmp_path, tiny_model) -> None:
    rows = IterableDataset.from_generator(lambda: iter(ROWS))
    context = TeacherContext("hint", "{prompt} {context}", foreign=rows)
    with pytest.raises(UsageError, match=r"a stream has no length|no column"):
        context.check(rows.cast(Dataset.from_list(ROWS).features), "train_dataset")


def test_a_template_has_both_places() -> None:
    with pytest.raises(UsageError, match=r"lacks \{context\}"):
        ValidityKDConfig("unused", teacher_context_template="{prompt}", use_cpu=True, bf16=False)


def test_the_last_message_must_be_the_users() -> None:
    context = TeacherContext("hint", "{prompt} {context}")
    row = ROWS[0] | {"prompt": [{"role": "assistant", "content": "1"}]}
    with pytest.raises(UsageError, match="must be the user's; found 'assistant'"):
        context.prompt(row, 0)
