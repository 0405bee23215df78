"""The fine-grained loss against a slow reference, and in TRL's training loop."""

import copy
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig

from rlkd.data.samples import sample_rows
from rlkd.gsrm.augmentation import training_pairs
from trainers.gsrm.trainer import IGNORED, StructureCollator, StructureSFTTrainer, fine_grained_loss, structure_tokens

PAIRS = training_pairs(sample_rows("gsrm")[:8], copies=1, seed=0)


def slow_loss(logits, labels, meta) -> float:
    per_sequence = []
    for sequence in range(labels.shape[0]):
        groups: dict[int, list[float]] = {0: [], 1: []}
        for t in range(1, labels.shape[1]):
            if labels[sequence, t] != IGNORED:
                logp = torch.log_softmax(logits[sequence, t - 1], -1)[labels[sequence, t]]
                groups[int(meta[sequence, t])].append(-float(logp))
        means = [sum(group) / len(group) for group in groups.values() if group]
        if means:
            per_sequence.append(sum(means) / len(means))
    return sum(per_sequence) / max(1, len(per_sequence))


@pytest.mark.parametrize("chunk", [1, 4, 1024])
def test_chunks_change_neither_the_loss_nor_its_gradient(chunk, monkeypatch) -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(3, 9, 11, generator=generator)
    labels = torch.randint(0, 11, (3, 9), generator=generator)
    meta = torch.randint(0, 2, (3, 9), generator=generator)
    found = []
    for size in (chunk, 10**6):
        monkeypatch.setattr("trainers.gsrm.trainer.CHUNK", size)
        leaf = logits.clone().requires_grad_()
        loss = fine_grained_loss(leaf, labels, meta)
        loss.backward()
        found.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(found[0], found[1])


def test_logits_are_made_from_the_first_labelled_token_on(tiny_model, tmp_path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, remove_unused_columns=False)
    args.dataset_kwargs = {"skip_prepare_dataset": True}
    examples = [structure_tokens(tokenizer, pair) for pair in PAIRS[:2]]
    trainer = StructureSFTTrainer(
        model=model, args=args, train_dataset=Dataset.from_list(examples), processing_class=tokenizer
    )
    batch = StructureCollator(tokenizer.pad_token_id)(examples)
    prompts = [sum(label == IGNORED for label in example["labels"]) for example in examples]
    loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)
    assert outputs.logits.shape[1] == batch["labels"].shape[1] - min(prompts) + 1
    whole = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(loss, fine_grained_loss(whole, batch["labels"], batch["meta"]))


@pytest.mark.parametrize("case", ["both", "one group", "a row without labels", "nothing"])
def test_the_loss_equals_its_definition(case) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(3, 7, 11, generator=generator)
    labels = torch.randint(0, 11, (3, 7), generator=generator)
    labels[:, :2] = IGNORED
    meta = torch.tensor([0, 0, 1, 1, 1, 0, 0]).repeat(3, 1)
    if case == "one group":
        meta[1] = 0
    if case in ("a row without labels", "nothing"):
        labels[2 if case != "nothing" else slice(None)] = IGNORED
    assert float(fine_grained_loss(logits, labels, meta)) == pytest.approx(slow_loss(logits, labels, meta), abs=1e-5)


def test_meta_tokens_are_the_sub_questions_and_the_prompt_has_no_labels(tiny_model) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for pair in PAIRS:
        tokens = structure_tokens(tokenizer, pair)
        chosen = [t for t, m in zip(tokens["input_ids"], tokens["meta"], strict=True) if m]
        lines = pair["completion"][0]["content"].split("\n")
        assert tokenizer.decode(chosen) == "".join(line.split(" |")[0] for line in lines)
        labelled = [label for label in tokens["labels"] if label != IGNORED]
        assert tokenizer.decode(labelled) == pair["completion"][0]["content"] + "<|end|>"


def train(model_folder: str, folder: Path, *, batch: int, accumulation: int) -> dict[str, torch.Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    args = SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_steps=2,
        learning_rate=1e-2,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        train_sampling_strategy="sequential",
        report_to="none",
        save_strategy="no",
        optim="sgd",
    )
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    trainer = StructureSFTTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list([structure_tokens(tokenizer, pair) for pair in PAIRS]),
        data_collator=StructureCollator(tokenizer.pad_token_id),
        processing_class=tokenizer,
    )
    before = copy.deepcopy(model.state_dict())
    trainer.train()
    after = model.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in after)
    return after


@pytest.mark.slow
def test_one_batch_and_accumulated_ones_train_the_same(tiny_model, tmp_path) -> None:
    whole = train(tiny_model, tmp_path / "a", batch=4, accumulation=1)
    parts = train(tiny_model, tmp_path / "b", batch=1, accumulation=4)
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], atol=2e-6, rtol=1e-4)
