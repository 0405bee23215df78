"""What cannot train is refused before a model loads, and what a template decides is set at the start."""

import pytest
from datasets import Dataset
from transformers import PreTrainedModel

from benchmarks.tiny import CHAT_TEMPLATE, byte_tokenizer, save_llama
from rlkd.errors import UsageError
from trainers import RLKDConfig, RLKDTrainer
from trainers.rlkd.preflight import check_images, check_run

QUESTION = [{"role": "user", "content": "1 + 1?"}]


@pytest.fixture
def nothing_loads(monkeypatch):
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", lambda *_, **__: pytest.fail("a model loads"))


@pytest.fixture
def rows() -> Dataset:
    return Dataset.from_list([{"prompt": QUESTION, "answer": "2"}] * 8)


def config(tmp_path, **changes) -> RLKDConfig:
    values = {
        "output_dir": str(tmp_path / "run"),
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 8,
        "max_steps": 1,
        "report_to": "none",
        "reward_funcs": ["accuracy"],
    }
    return RLKDConfig(**values | changes)


def overlong(longest, cache):
    return {
        "reward_funcs": ["accuracy", "soft_overlong"],
        "reward_kwargs": {"soft_overlong": {"max_completion_len": longest, "soft_punish_cache": cache}},
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            overlong(4096, 512),
            "more than 3584 tokens .* max_completion_length 8 allows none.*Set max_completion_len: 8",
        ),
        (overlong(8, 0), "allows none"),
        (
            overlong(8, 4) | {"mask_truncated_completions": True},
            "left out of the loss. Set mask_truncated_completions",
        ),
        ({"step_credit": "local"}, r"no reward of this run \(accuracy\) scores steps. Add structure to reward_funcs"),
        *(
            (
                {"step_credit": "to_go", "reward_funcs": ["structure"], name: value},
                f"step_credit 'to_go' with {name} {value!r}",
            )
            for name, value in (
                ("loss_type", "sapo"),
                ("loss_type", "vespo"),
                ("importance_sampling_level", "sequence"),
                ("top_entropy_quantile", 0.8),
                ("off_policy_mask_threshold", 0.5),
            )
        ),
        ({"eval_strategy": "steps"}, "eval_strategy steps without an eval_dataset"),
        ({"report_to": "wandb"}, "report_to wandb: the package is not installed"),
        ({"reward_funcs": ["some/reward-model"]}, "reward_funcs 'some/reward-model' cannot be read"),
        ({"reward_funcs": ["good=runs/no/model"]}, "reward_funcs 'runs/no/model' cannot be read: there is no folder"),
        ({}, "model_name_or_path 'some/model-of-nobody' cannot be read"),
    ],
)
def test_a_combination_that_trains_nothing_or_crashes_late_is_refused(
    nothing_loads, rows, tmp_path, changes, message
) -> None:
    with pytest.raises(UsageError, match=message):
        RLKDTrainer("some/model-of-nobody", args=config(tmp_path, **changes), train_dataset=rows)


def test_a_reward_model_is_looked_for_with_the_options_of_the_student(rows, tmp_path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda name, **options: asked.append(options))
    args = config(tmp_path, trust_remote_code=True, model_init_kwargs={"revision": "v1"})
    check_run(args, ["good=some/reward-model"], rows, None)
    assert asked == [{"revision": "v1", "trust_remote_code": True}]


def test_the_first_fsdp_is_refused_with_a_teachers_signal_alone(rows, tmp_path, monkeypatch) -> None:
    plain, with_teacher = config(tmp_path), config(tmp_path, teacher_kl=0.5, teacher="lab-expert")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    check_run(plain, [], rows, None)
    with pytest.raises(UsageError, match="FSDP version 1"):
        check_run(with_teacher, [], rows, None)


def test_answers_that_no_reward_can_read_are_refused(nothing_loads, rows, tmp_path) -> None:
    words = Dataset.from_list([{"prompt": QUESTION, "answer": "many"}] * 8)
    with pytest.raises(UsageError, match="'numeric': 8 of 8 answers cannot be read as gold answers, such as 'many'"):
        RLKDTrainer("x", args=config(tmp_path, reward_funcs=["numeric"]), train_dataset=words)


def test_a_punishment_within_the_limit_passes(nothing_loads, tiny_model, rows, tmp_path) -> None:
    with pytest.raises(pytest.fail.Exception, match="a model loads"):
        RLKDTrainer(tiny_model, args=config(tmp_path, **overlong(8, 4)), train_dataset=rows)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"image": [None] * 8}, "the column 'image' is empty"),
        ({"images": [None] * 8}, "the column 'images' is empty"),
        ({"image": ["a.png"] * 8}, "images in the column 'image', and the student reads text only"),
        ({"image": [None, *["a.png"] * 7]}, "images in the column 'image'"),
        ({"images": [[], *[["a.png"]] * 7]}, "images in the column 'images'"),
    ],
)
def test_image_columns_of_a_text_student_are_refused(
    nothing_loads, tiny_model, rows, tmp_path, column, message
) -> None:
    [(name, values)] = column.items()
    with pytest.raises(UsageError, match=message):
        RLKDTrainer(tiny_model, args=config(tmp_path), train_dataset=rows.add_column(name, values))


def test_lists_of_no_image_and_a_student_that_sees_pass(rows) -> None:
    assert check_images(rows.add_column("images", [[]] * 8), "train_dataset", reads_images=False) is None
    assert check_images(rows.add_column("image", ["a.png"] * 8), "train_dataset", reads_images=True) is None


@pytest.fixture(scope="module")
def reasoning_model(tmp_path_factory) -> str:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE.replace("<|assistant|>{% endif", "<|assistant|><think>\n{% endif")
    return save_llama(tmp_path_factory.mktemp("reasoning-model"), tokenizer)


def test_a_template_that_opens_a_thought_sets_prefilled(reasoning_model, rows, tmp_path, caplog) -> None:
    args = config(tmp_path, reward_funcs=["accuracy", "think_format", "tag_count"])
    trainer = RLKDTrainer(reasoning_model, args=args, train_dataset=rows)
    assert "prompts end with <think>, so prefilled is set for accuracy, think_format, tag_count" in caplog.text
    _, think_format, _ = trainer.reward_funcs
    assert think_format(completions=[[{"role": "assistant", "content": "Two.</think> 2"}]]) == [1.0]


@pytest.mark.parametrize(
    ("scale", "alignment", "warned"),
    [("none", "sum", True), ("group", "sum", False), ("batch", "sum", False), ("none", "teacher", False)],
)
def test_unscaled_sums_of_steps_are_warned_of(tmp_path, caplog, scale, alignment, warned) -> None:
    kwargs = {"structure": {"alignment": alignment}}
    args = config(tmp_path, reward_funcs=["structure"], reward_kwargs=kwargs, scale_rewards=scale)
    rows = Dataset.from_list([{"prompt": QUESTION, "answer": "2", "rationales": ["1 + 1 = 2"]}] * 8)
    check_run(args, args.build_rewards(), rows, None)
    assert ("grow with the number of the teacher's steps" in caplog.text) == warned


def test_a_step_credit_that_does_not_exist_or_does_nothing_is_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match="step_credit 'global': expected 'none', 'local' or 'to_go'"):
        config(tmp_path, step_credit="global")
    with pytest.raises(UsageError, match="shuffle_credit 3: without step_credit there is nothing to shuffle"):
        config(tmp_path, shuffle_credit=3)
