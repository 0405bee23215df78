"""What cannot work is named before a model loads."""

import shutil

import pytest
from datasets import Dataset
from peft import PromptTuningConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from rlkd.errors import UsageError
from tests.helpers.quick_retries import shorten_pauses
from tests.helpers.top_k_server import TopKServer
from trainers import ValidityKDConfig, ValidityKDTrainer
from trainers.validity_kd.preflight import check_dataset
from trainers.validity_kd.progress import kd_line

ROWS = [{"prompt": f"{i} + 1?", "rationales": [f"It is {i + 1}."], "answer": str(i + 1)} for i in range(8)]


def config(tmp_path, **changes) -> ValidityKDConfig:
    values = {
        "output_dir": str(tmp_path / "run"),
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": 2,
        "max_completion_length": 8,
        "max_steps": 1,
        "report_to": "none",
    }
    return ValidityKDConfig(**values | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"control": "shufled"}, "Did you mean 'shuffled'"),
        ({"normalise": "words"}, "Known: tokens, weights"),
        ({"proposals": "expect"}, "Did you mean 'expected'"),
        ({"divergence": "kl"}, "Known: jsd, skewed_forward, skewed_reverse"),
        ({"kernel": "triton"}, "Known: chunked, trl"),
        ({"lmbda": 1.5}, "lmbda 1.5: expected a number from 0 to 1"),
        ({"beta_off_policy": -1.0}, "beta_off_policy -1.0"),
        ({"tau": "adopt"}, "tau 'adopt': expected a number above 0, or adapt"),
        ({"tau": 0.0}, "tau=0.0: expected a number above 0"),
        ({"w_min": 2.0}, "w_min=2.0, w_max=1.8"),
        ({"skew": 1.0}, r"skew=1.0 must lie in \[0, 1\)"),
        ({"v_0": 3.0}, "v_0=3.0"),
        ({"max_step_tokens": 0}, "max_step_tokens 0: expected at least 1"),
        ({"validity_kwargs": "{bad"}, "is no JSON object"),
        ({"validity_kwargs": "[1]"}, "expected a mapping"),
        ({"teacher": "a", "teacher_model_name_or_path": "b"}, "name two teachers"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(tmp_path, changes, message) -> None:
    with pytest.raises(UsageError, match=message):
        config(tmp_path, **changes)


def test_tau_comes_as_text_from_the_command_line(tmp_path) -> None:
    assert config(tmp_path, tau="0.5").step_weighting("log").weight_map.tau == 0.5
    assert config(tmp_path, tau=0.5).step_weighting("log").weight_map.tau == 0.5
    assert config(tmp_path, tau="adapt").step_weighting("log").adaptive is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": None}, "there is no teacher"),
        ({"remove_unused_columns": True}, "removes the teacher's traces"),
        ({"restore_callback_states_from_checkpoint": True}, "leave it at False"),
        ({"kernel": "trl", "divergence_off_policy": "skewed_forward"}, "kernel: trl has the divergence jsd only"),
        ({"teacher": "http://127.0.0.1:9/v1#x", "temperature": 0.5}, "temperature 0.5 with a top-k teacher"),
        ({"teacher": "http://127.0.0.1:9/v1#x", "kernel": "trl"}, "needs a teacher's whole distribution"),
        ({"validity": "likelyhood"}, "likelihood"),
        ({"validity": "rollout", "validity_kwargs": {"engine": "transformers:x"}}, "Set proposals: generate"),
        ({"validity_kwargs": {"reduktion": "max"}}, "reduktion"),
        ({"per_device_train_batch_size": 16}, "has 8 prompts, but one generation batch takes 16"),
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}, "one generation batch takes 16"),
        ({"teacher": "no-such-teacher"}, "teacher 'no-such-teacher' cannot be read"),
        ({"teacher": "http://127.0.0.1:9/v1#x"}, "teacher check failed: .*127.0.0.1:9"),
        ({"teacher": "http://127.0.0.1:9/v1#x", "teacher_model_init_kwargs": {"dtype": "float32"}}, "Leave the key"),
        ({"proposals": "generate", "proposal_engine": "transformer:foo"}, "transformer:foo"),
        ({"proposals": "generate", "proposal_engine": "http://127.0.0.1:9/v1#x"}, "proposal_engine: .*127.0.0.1:9"),
        ({"teacher_model_revision": "no-such-revision", "teacher": "some/model"}, "teacher 'some/model' cannot"),
        ({"eval_strategy": "steps"}, "eval_strategy steps without an eval_dataset"),
        ({"report_to": "wandb"}, "report_to wandb: the package is not installed"),
        (
            {"teacher_model_init_kwargs": {"load_in_4bit": True}},
            "teacher_model_init_kwargs: .*install bitsandbytes",
        ),
        ({"model_init_kwargs": {"load_in_4bit": True}}, "model_init_kwargs: .*pip install bitsandbytes"),
    ],
)
def test_what_cannot_work_fails_before_a_model_loads(tiny_model, tmp_path, monkeypatch, changes, message) -> None:
    shorten_pauses(monkeypatch)
    monkeypatch.setattr("trainers.common.models.importlib.util.find_spec", lambda name: None)  # no bitsandbytes
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    args = config(tmp_path, **({"teacher": tiny_model} | changes))
    with pytest.raises(UsageError, match=message):
        ValidityKDTrainer(tiny_model, args=args, train_dataset=Dataset.from_list(ROWS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: {"prompt": row["prompt"]}, "has no column 'rationales'.*Set lmbda: 1"),
        (lambda row: row | {"rationales": []}, "8 of 8 rows have no teacher trace"),
        (lambda row: row | {"rationales": [" "]}, "8 of 8 rows have no teacher trace"),
        (lambda row: row | {"completions": "x"}, "'completions' is reserved"),
        (lambda row: row | {"image": "x"}, "has images"),
        (lambda row: {"question": "x", "rationales": ["y"]}, "has no column 'prompt'"),
    ],
)
def test_a_dataset_that_does_not_fit_is_refused(tiny_model, tmp_path, change, message) -> None:
    dataset = Dataset.from_list([change(row) for row in ROWS])
    with pytest.raises(UsageError, match=message):
        ValidityKDTrainer("no-such-model", args=config(tmp_path, teacher=tiny_model), train_dataset=dataset)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": "{url}#other"}, "teacher check failed: .*other"),
        ({"teacher": "{url}#tiny", "teacher_top_k": 30}, "Start it with --max-logprobs 30"),
        ({"proposals": "generate", "proposal_engine": "{url}#other"}, r"has no model 'other'; it offers tiny"),
    ],
)
def test_a_server_is_checked_before_a_model_loads(tiny_model, tmp_path, monkeypatch, settings, message) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    server = TopKServer(AutoModelForCausalLM.from_pretrained(tiny_model), tokenizer)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    try:
        filled = {k: v.format(url=server.url) if isinstance(v, str) else v for k, v in settings.items()}
        args = config(tmp_path, **({"teacher": tiny_model} | filled))
        with pytest.raises(UsageError, match=message):
            ValidityKDTrainer(tiny_model, args=args, train_dataset=Dataset.from_list(ROWS))
    finally:
        server.http.shutdown()
        server.http.server_close()


def test_tokenizers_are_read_at_the_revisions_that_the_models_have(tiny_model, tmp_path, monkeypatch) -> None:
    asked = []

    def read(name, **settings):
        asked.append((name, settings))
        raise OSError("out of reach")

    args = config(
        tmp_path,
        teacher="some/teacher",
        teacher_model_revision="t1",
        model_init_kwargs={"revision": "s1"},
        trust_remote_code=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", read)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *_, **__: None)  # the student is there
    with pytest.raises(UsageError, match="cannot be read"):
        ValidityKDTrainer("some/student", args=args, train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer)
    with pytest.raises(UsageError, match=r"tokenizer of 'some/student' cannot be read: out of reach\."):
        ValidityKDTrainer("some/student", args=args, train_dataset=Dataset.from_list(ROWS))
    assert asked == [
        ("some/teacher", {"revision": "t1", "trust_remote_code": True}),
        ("some/student", {"revision": "s1", "trust_remote_code": True}),
    ]


def test_two_teachers_are_named_without_their_passwords(tmp_path) -> None:
    with pytest.raises(UsageError, match="name two teachers") as refused:
        config(tmp_path, teacher="http://me:TOPSECRET@h:1/v1#x", teacher_model_name_or_path="b")
    assert "TOPSECRET" not in str(refused.value)


@pytest.mark.parametrize("rollouts", [True, False])
def test_the_line_of_a_step_shows_how_many_were_truncated(rollouts) -> None:
    logs = {"kd/on_policy": float(rollouts), "kd_weight/mean": 1.0}
    logs["completions/clipped_ratio" if rollouts else "traces/clipped_ratio"] = 0.75
    assert " | truncated 75% | " in kd_line(1, 2, logs)


def test_a_missing_student_and_an_adapter_of_virtual_tokens_are_refused(tiny_model, tmp_path) -> None:
    dataset = Dataset.from_list(ROWS)
    with pytest.raises(UsageError, match="model_name_or_path 'some/model' cannot be read"):
        ValidityKDTrainer("some/model", args=config(tmp_path, teacher=tiny_model), train_dataset=dataset)
    prompts = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(UsageError, match=r"PromptTuningConfig adds virtual tokens.*Use LoRA"):
        ValidityKDTrainer(
            tiny_model, args=config(tmp_path, teacher=tiny_model), train_dataset=dataset, peft_config=prompts
        )


@pytest.mark.parametrize("images", [{"image": None}, {"images": None}, {"images": []}])
def test_an_empty_column_of_images_is_no_image(tiny_model, tmp_path, images) -> None:
    rows = Dataset.from_list([row | images for row in ROWS])
    assert check_dataset(config(tmp_path, teacher=tiny_model), rows, "train_dataset") is None


def test_images_within_messages_are_refused(tiny_model, tmp_path) -> None:
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "How many?"}]
    plain = [{"type": "text", "text": "How many?"}]
    args = config(tmp_path, teacher=tiny_model)

    def dataset(content: list[dict]) -> Dataset:
        return Dataset.from_list([row | {"prompt": [{"role": "user", "content": content}]} for row in ROWS])

    check_dataset(args, dataset(plain), "train_dataset")
    with pytest.raises(UsageError, match="train_dataset has images"):
        check_dataset(args, dataset(parts), "train_dataset")


def test_rollouts_alone_need_no_traces(tiny_model, tmp_path) -> None:
    dataset = Dataset.from_list([{"prompt": row["prompt"]} for row in ROWS])
    args = config(tmp_path, teacher=tiny_model, lmbda=1.0)
    trainer = ValidityKDTrainer(tiny_model, args=args, train_dataset=dataset)
    trainer.train()
    assert trainer.state.global_step == trainer.state.max_steps > 0


def test_a_teacher_with_another_tokenizer_is_refused_though_its_head_is_as_wide(
    tiny_model, tmp_path, monkeypatch
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True)
    words = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", *letters]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>").save_pretrained(
        other
    )
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    args = config(tmp_path, teacher=str(other), cross_tokenizer="never")
    with pytest.raises(UsageError, match="student and teacher have different tokenizers: id 5 is"):
        ValidityKDTrainer(tiny_model, args=args, train_dataset=Dataset.from_list(ROWS))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernel": "trl"}, "kernel: trl with FSDP2"),
        ({"proposals": "generate"}, "proposals: generate with FSDP2"),
        ({"teacher": "self", "teacher_context": "answer"}, "teacher: self without an adapter with FSDP2"),
        ({"teacher_model_init_kwargs": {"load_in_4bit": True}}, "a teacher in 4 or 8 bit with FSDP2"),
    ],
)
def test_what_needs_whole_models_is_refused_with_sharded_ones(
    tiny_model, tmp_path, monkeypatch, settings, message
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    args = config(tmp_path, **{"teacher": tiny_model} | settings)
    with pytest.raises(UsageError, match=message):
        ValidityKDTrainer(tiny_model, args=args, train_dataset=Dataset.from_list(ROWS))
