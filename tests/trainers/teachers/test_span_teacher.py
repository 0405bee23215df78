"""Teachers with another tokenizer, in real runs of the trainer."""

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from benchmarks.tiny import CHAT_TEMPLATE, SPECIAL, save_llama, training_arguments
from rlkd.errors import UsageError
from rlkd.rendering import prompt_ids
from trainers import ValidityKDConfig, ValidityKDTrainer
from trainers.common.run_files import read_steps
from trainers.teachers.span_teacher import SpanTeacher
from trainers.teachers.teachers import DenseTeacher

ROWS = [
    {
        "id": f"row-{i}",
        "prompt": [{"role": "user", "content": f"{i} apples and {i} pears?"}],
        "answer": str(2 * i),
        "rationales": [f"There are {i} apples, naïve 🙂.\nWith the pears it is {i} + {i} = {2 * i}."],
    }
    for i in range(8)
]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with merges, other ids and other special tokens than those of the tiny student."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", *SPECIAL[2:]]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special, initial_alphabet=alphabet)
    made.train_from_iterator([text for row in ROWS for text in row["rationales"]] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<s>", eos_token="</s>")
    tokenizer.chat_template = CHAT_TEMPLATE.replace("<|end|>", "</s>")
    return tokenizer


@pytest.fixture(scope="module")
def other_teacher(tmp_path_factory) -> str:
    return save_llama(tmp_path_factory.mktemp("other"), word_tokenizer(), seed=2, initializer_range=0.2)


@pytest.fixture(scope="module")
def like_the_student(tmp_path_factory) -> str:
    return save_llama(tmp_path_factory.mktemp("like"), seed=1, hidden_size=48, initializer_range=0.2)


def trainer_of(student, teacher, folder, tools=None, **changes) -> ValidityKDTrainer:
    values = {
        "per_device_train_batch_size": 4,
        "max_completion_length": 100,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "teacher": teacher,
        "lmbda": 0.0,
    }
    args = ValidityKDConfig(**training_arguments(folder, **values | changes))
    return ValidityKDTrainer(student, args=args, train_dataset=Dataset.from_list(ROWS), tools=tools)


def loss_and_gradients(trainer, rows=ROWS[:4]):
    trainer.model.train()
    batch = trainer._generate_and_score_completions(rows)
    trainer.model.eval()
    trainer.model.zero_grad()
    loss, entropy, _ = trainer._compute_loss(trainer.model, batch, 50)
    loss.backward()
    return batch, loss.item(), entropy.item(), [p.grad.clone() for p in trainer.model.parameters()]


@pytest.mark.parametrize(
    "changes",
    [
        {"beta_off_policy": 0.0},
        {"beta_off_policy": 0.4, "temperature": 0.8},
        {"divergence_off_policy": "skewed_reverse"},
    ],
    ids=["forward", "jsd", "skewed"],
)
def test_with_one_tokenizer_weights_loss_and_gradients_are_the_plain_ones(
    tiny_model, like_the_student, tmp_path, changes
) -> None:
    plain = trainer_of(tiny_model, like_the_student, tmp_path / "a", **changes)
    spans = trainer_of(tiny_model, like_the_student, tmp_path / "b", cross_tokenizer="always", **changes)
    assert isinstance(plain._teacher, DenseTeacher)
    assert isinstance(spans._teacher, SpanTeacher)
    expected, found = loss_and_gradients(plain), loss_and_gradients(spans)
    torch.testing.assert_close(found[0]["kd_weights"], expected[0]["kd_weights"], atol=1e-5, rtol=1e-4)
    assert found[1] == pytest.approx(expected[1], abs=1e-5)
    assert found[2] == pytest.approx(expected[2], rel=1e-5)
    for one, other in zip(found[3], expected[3], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def test_the_share_of_aligned_tokens_counts_those_in_the_loss() -> None:
    # Two completions of five tokens: spans of two and one tokens in the first, of three in the second.
    spans = torch.zeros(2, 5, 3, dtype=torch.long)
    spans[0, 0], spans[0, 2], spans[1, 1] = torch.tensor([[2, 0, 1], [3, 1, 2], [4, 0, 3]])
    states = {"spans": spans, "span_ids": torch.zeros(2, 4, dtype=torch.long)}
    teacher = SpanTeacher.__new__(SpanTeacher)
    mask = torch.ones(2, 5, dtype=torch.bool)
    assert teacher.aligned(states, mask).tolist() == [6, 10]
    mask[0, 3:] = mask[1, 2] = False  # padding, and the output of a tool within a span
    assert teacher.aligned(states, mask).tolist() == [3, 7]


def test_the_share_of_aligned_tokens_is_logged(tiny_model, other_teacher, tmp_path) -> None:
    trainer = trainer_of(tiny_model, other_teacher, tmp_path)
    trainer.model.train()
    batch = trainer._generate_and_score_completions(ROWS[:2])
    trainer.compute_loss(trainer.model, batch)
    # One-byte tokens of the student: the emoji and the accent need several of them, in one span.
    assert trainer._metrics["train"]["teacher/aligned"] == [1.0]


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "read-again"])
@pytest.mark.slow
def test_a_student_learns_from_a_teacher_with_another_tokenizer(
    tiny_model, other_teacher, tmp_path, caplog, keep
) -> None:
    changes = {"max_steps": 12, "logging_steps": 1, "keep_teacher_states": keep, "gradient_accumulation_steps": 2}
    trainer = trainer_of(tiny_model, other_teacher, tmp_path, per_device_train_batch_size=2, **changes)
    assert "is compared on spans of text, over shared tokens and the 64 likeliest" in caplog.text
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-4:]) < 0.97 * sum(losses[:4])
    weights = [step["weight"] for record in read_steps(trainer.rollouts_path) for step in record["steps"]]
    assert len(set(weights)) > 4


def test_rollouts_and_their_steps_are_scored_too(tiny_model, other_teacher, tmp_path) -> None:
    trainer = trainer_of(tiny_model, other_teacher, tmp_path, lmbda=1.0, max_completion_length=24)
    batch, loss, _, gradients = loss_and_gradients(trainer)
    assert torch.isfinite(batch["kd_weights"]).all()
    assert 0 < loss < float("inf")
    assert any(gradient.abs().max() > 0 for gradient in gradients)


def test_the_loss_of_traces_reads_the_teachers_own_prompt_and_tokens(tiny_model, other_teacher, tmp_path) -> None:
    trainer = trainer_of(tiny_model, other_teacher, tmp_path)
    batch, *_ = loss_and_gradients(trainer)
    teacher: SpanTeacher = trainer._teacher
    completion = batch["completion_ids"][0][batch["completion_mask"][0].bool()].tolist()
    own, spans = teacher.align(completion)
    prompt = prompt_ids(teacher.teacher, ROWS[0]["prompt"])
    assert own[-1] == teacher.teacher.eos_token_id
    assert teacher.teacher.decode(own[:-1]).startswith(ROWS[0]["rationales"][0])
    # The last span is the end of both.
    assert spans[-1] == (len(completion) - 1, len(completion), len(own) - 1, len(own))
    model = AutoModelForCausalLM.from_pretrained(other_teacher)
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([prompt + own])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    mask = batch["completion_mask"].bool()
    found = teacher.statistics(batch, mask, batch["completion_ids"][mask], None, None).teacher_logprob
    for start, stop, first, last in spans:
        expected = sum(float(logprobs[i, own[i]]) for i in range(first, last))
        assert float(found[start:stop].sum()) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cross_tokenizer": "never"}, "different tokenizers"),
        (
            {"proposals": "generate"},
            "proposals: generate with the teacher .* another tokenizer.*Set proposals: expected",
        ),
        ({"kernel": "trl"}, "another tokenizer. Set chunked"),
        ({"tools": [print], "lmbda": 1.0}, "tools with the teacher .* another tokenizer: .* Leave the tools out"),
        ({"cross_tokenizer": "sometimes"}, "cross_tokenizer 'sometimes'"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_loads(
    tiny_model, other_teacher, tmp_path, monkeypatch, changes, message
) -> None:
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UsageError, match=message):
        trainer_of(tiny_model, other_teacher, tmp_path, **changes)
