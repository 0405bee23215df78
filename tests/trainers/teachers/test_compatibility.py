"""A teacher in this process is compared with the student before a model loads."""

import shutil

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from rlkd.errors import UsageError
from trainers import ValidityKDConfig, ValidityKDTrainer
from trainers.validity_kd.traces import trace_batch

ASK = [{"role": "user", "content": "1+1?"}]


def trainer_of(student: str, teacher: str, folder, prompt=ASK, **changes) -> ValidityKDTrainer:
    rows = [{"id": str(i), "prompt": prompt, "answer": "2", "rationales": ["1+1 = 2"]} for i in range(8)]
    values = {"per_device_train_batch_size": 2, "max_completion_length": 8, "max_steps": 1, "report_to": "none"}
    settings = {"use_cpu": True, "bf16": False, "teacher": teacher} | values | changes
    args = ValidityKDConfig(output_dir=str(folder / "run"), **settings)
    return ValidityKDTrainer(student, args=args, train_dataset=Dataset.from_list(rows))


@pytest.mark.parametrize(
    ("student", "teacher", "prompt", "message"),
    [
        # One vocabulary: an instruct model and its base, in both directions, and with texts.
        ("chatml", "chatml_base", ASK, "ends? with '<.im_end.>', which ends nothing for the teacher"),
        ("chatml_base", "chatml", ASK, "ends? with '<.im_end.>', which ends nothing for the student"),
        ("chatml", "chatml_base", "1+1?", "which ends nothing for the teacher"),
        ("chatml_base", "chatml", "1+1?", "which ends nothing for the teacher"),
        ("two_ends", "base", ASK, "the teacher .* has no chat template"),
        ("base", "two_ends", ASK, "has no chat template"),
    ],
)
def test_a_teacher_that_ends_otherwise_or_reads_no_conversation_is_refused(
    template_model, tmp_path, monkeypatch, student, teacher, prompt, message
) -> None:
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UsageError, match=message):
        trainer_of(template_model(student), template_model(teacher), tmp_path, prompt)


@pytest.mark.parametrize("allowed", [False, True])
def test_a_teacher_with_another_template_is_refused_unless_allowed(template_model, tmp_path, allowed) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(template_model("chatml"), teacher)
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    tokenizer.chat_template = "<|im_start|>system\nYou are a tutor.<|im_end|>\n" + tokenizer.chat_template
    tokenizer.save_pretrained(teacher)
    if allowed:
        trainer_of(template_model("chatml"), str(teacher), tmp_path / "run", allow_other_template=True)
        return
    with pytest.raises(UsageError, match=r"different chat templates: from character 12 on, .*'system.*allow_other"):
        trainer_of(template_model("chatml"), str(teacher), tmp_path / "run")


@pytest.mark.parametrize("name", ["chatml", "thinking", "no_system", "opens_thought", "two_ends"])
def test_a_teacher_of_the_family_passes(template_model, tmp_path, name) -> None:
    assert trainer_of(template_model(name), template_model(name), tmp_path) is not None


def test_the_shorter_context_of_student_and_teacher_counts(template_model, tmp_path) -> None:
    with pytest.raises(UsageError, match="max_completion_length 300 do not fit the 128 tokens"):
        trainer_of(template_model("chatml"), template_model("short"), tmp_path, max_completion_length=300)


def test_two_base_models_with_the_template_of_their_family_end_traces_with_their_own_token(
    template_model, tmp_path, caplog
) -> None:
    base = template_model("chatml_base")
    trainer = trainer_of(base, base, tmp_path, lmbda=0.0, max_completion_length=32)
    assert "the teacher's traces end with '<|endoftext|>' instead" in caplog.text
    row = {"prompt": ASK, "answer": "2", "rationales": ["2"]}
    [ids] = trace_batch(trainer, [row], 0, trainer._trace_end)["completion_ids"].tolist()
    assert ids[-1] == trainer.processing_class.eos_token_id
