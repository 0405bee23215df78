"""A process reward model for the laboratory's dependency problems: its expert with a classification head.

    python recipes/lab/prm.py --out runs/lab-prm

Needs no GPU and no download; three minutes on a core. The result is shipped as the model `lab-prm`. It is a checkpoint
for token classification, read as those of TRL's former PRMTrainer: the reward `prm` takes the probability that a step
is true at the line break after it. rlkd/lab/step_labels.py says what that means, and makes the solutions with faults
that it learns from.

The labels are at every token of a step, not at its end alone: `good` as long as a true step begins so. The model then
learns at which token a step goes wrong, from many times more labels.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlkd.lab.problems import DependencyProblem
from rlkd.lab.step_labels import faulty_solutions, true_steps

SEED = 42
BATCH = 32


def examples(words: Any, solutions: Sequence[tuple[DependencyProblem, Sequence[str]]]) -> list[dict[str, list[int]]]:
    """The ids of each question and its steps, a line break after each, and the labels.

    The ids are joined as the reward `prm` does it (`layout: plain`). A label is 1 (good) or 0 (bad); -100 in the
    question.
    """
    texts = {"\n"}
    for problem, steps in solutions:
        texts |= {problem.question, *steps, *true_steps(problem)}
    listed = sorted(texts)
    ids_of = dict(zip(listed, map(tuple, words(listed, add_special_tokens=False)["input_ids"]), strict=True))
    mark, found = ids_of["\n"], []
    for problem, steps in solutions:
        true = [ids_of[line] for line in true_steps(problem)]
        ids = list(ids_of[problem.question])
        labels = [-100] * len(ids)
        for step in steps:
            own = ids_of[step]
            labels += [int(any(line[:end] == own[:end] for line in true)) for end in range(1, len(own) + 1)]
            labels += [int(own in true)] * len(mark)
            ids += [*own, *mark]
        found.append({"input_ids": ids, "labels": labels})
    return found


def batches_of_similar_length(rows: Sequence[dict[str, list[int]]], size: int) -> list[dict[str, list[int]]]:
    """The rows in an order whose batches have rows of about one length, the batches in random order."""
    ordered = sorted(rows, key=lambda row: len(row["labels"]))
    batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    random.Random(SEED).shuffle(batches)
    return [row for batch in batches for row in batch]


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--model", default="lab-expert", help="model to begin with (default: %(default)s)")
    parser.add_argument("--solutions", type=int, default=16_000, help="solutions to train on (default: %(default)s)")
    parser.add_argument("--learning_rate", type=float, default=1.5e-3, help="largest one (default: %(default)s)")
    arguments = parser.parse_args()

    import torch
    from transformers import AutoConfig, AutoTokenizer, DataCollatorForTokenClassification, Trainer, TrainingArguments

    from rlkd.lfm2 import Lfm2ForTokenClassification
    from rlkd.models import resolve_model

    start = resolve_model(arguments.model)
    words = AutoTokenizer.from_pretrained(start)
    torch.manual_seed(SEED)
    config = AutoConfig.from_pretrained(start, num_labels=2, id2label={0: "bad", 1: "good"})
    config.label2id, config.classifier_dropout = {"bad": 0, "good": 1}, 0.0
    model = Lfm2ForTokenClassification.from_pretrained(start, config=config)
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(arguments.out),
            num_train_epochs=1,
            per_device_train_batch_size=BATCH,
            learning_rate=arguments.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=50,
            adam_beta2=0.98,
            weight_decay=0.01,
            train_sampling_strategy="sequential",
            logging_steps=50,
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=False,
            seed=SEED,
        ),
        train_dataset=batches_of_similar_length(
            examples(words, faulty_solutions(arguments.solutions, faults=0.3, flawless=0.2)), BATCH
        ),
        data_collator=DataCollatorForTokenClassification(words),
    )
    trainer.train()
    model.half().save_pretrained(arguments.out)  # float32 would be twice the size, and says no more
    words.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
