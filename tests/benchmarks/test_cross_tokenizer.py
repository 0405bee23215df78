import os
from unittest import mock

import pytest

from tests.helpers.scripts import load_script, quick_figures
from tiny import byte_tokenizer, save_llama, training_arguments


@pytest.mark.slow
def test_the_loss_on_spans_teaches_every_student_and_golds_those_that_share_the_teachers_words(tmp_path) -> None:
    figures = quick_figures("cross_tokenizer.py", tmp_path)
    for pair, arms in (
        ("bytes", ["ours"]),
        ("digits", ["ours", "gold_bayesian"]),
        ("words", ["ours", "gold_bayesian"]),
    ):
        learnt = {arm: figures[pair][arm]["nats_per_character"] for arm in ("teacher", "start", *arms)}
        assert learnt["teacher"] < learnt["start"]
        assert all(learnt[arm] < learnt["start"] for arm in arms), learnt
    # Of bytes, the teacher's tokens are nearly all ones that the student lacks; of words, few are.
    assert figures["bytes"]["teacher"]["unshared"] > 0.5 > figures["words"]["teacher"]["unshared"]


@pytest.mark.slow
@pytest.mark.parametrize("merge", ["bayesian", "observed"])
def test_gold_has_the_value_that_its_trainer_computes(tmp_path, merge) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl.experimental.gold import GOLDConfig, GOLDTrainer

    with mock.patch.dict(os.environ):
        script = load_script("benchmarks/cross_tokenizer.py")
    texts = [script.sums(number) for number in range(4)]
    own, other = byte_tokenizer(), script.words(texts)
    student = AutoModelForCausalLM.from_pretrained(save_llama(tmp_path / "student", own))
    teacher = AutoModelForCausalLM.from_pretrained(save_llama(tmp_path / "teacher", other, seed=1))
    settings = {"beta": 0.0, "uld_token_merge_strategy": merge}
    value = script.gold(own, other, teacher, **settings)(student, texts).item()
    arguments = training_arguments(
        tmp_path / "out",
        learning_rate=0.0,
        max_steps=1,
        per_device_train_batch_size=len(texts),
        lmbda=0.0,  # the texts of the data set
        use_uld_loss=True,
        uld_use_hybrid_loss=True,
        teacher_tokenizer_name_or_path=str(tmp_path / "teacher"),
        **settings,
    )
    trainer = GOLDTrainer(
        model=student,
        teacher_model=teacher,
        args=GOLDConfig(**arguments),
        processing_class=own,
        train_dataset=Dataset.from_list([{"prompt": script.PROMPT, "completion": text} for text in texts]),
    )
    assert trainer.train().training_loss == pytest.approx(value, rel=1e-5)
