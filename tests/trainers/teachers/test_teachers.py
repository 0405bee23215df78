"""Teachers out of training memory, and scorers of all kinds, in real runs of the trainer."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlkd.engines import Completion, Sampling
from rlkd.errors import UsageError
from rlkd.teachers.cache import CachedTeacher, CachedTrace, build_cache
from rlkd.teachers.local import LocalTeacher
from rlkd.teachers.topk import TopK
from rlkd.teachers.traces import trace_ids, trace_text
from tests.helpers.quick_retries import shorten_pauses
from tests.helpers.top_k_server import TopKServer
from trainers import ValidityKDConfig, ValidityKDTrainer
from trainers.common.run_files import read_steps
from trainers.teachers.batches import unpadded
from trainers.teachers.models import common_width
from trainers.teachers.proposals import first_step, write_by_engine
from trainers.teachers.token_steps import token_steps

ROWS = [
    {
        "id": f"row-{i}",
        "prompt": f"{i} apples and {i} pears?",
        "answer": str(2 * i),
        "rationales": [f"There are {i} apples.\nWith the pears it is {i} + {i} = <<{i}+{i}={2 * i}>>{2 * i}."],
    }
    for i in range(8)
]


@pytest.fixture(scope="module")
def teacher_model(tiny_model, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("another-model")
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return str(folder)


def run(student: str, teacher, folder: Path, **changes) -> tuple[ValidityKDTrainer, list[dict]]:
    values = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 4,
        "max_completion_length": 100,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 3,
        "lmbda": 0.0,
    }
    trainer = ValidityKDTrainer(
        student, teacher, ValidityKDConfig(**values | changes), train_dataset=Dataset.from_list(ROWS)
    )
    trainer.train()
    return trainer, [entry for entry in read_steps(trainer.metrics_path) if "loss" in entry]


def make_cache(folder: Path, teacher, tokenizer) -> None:
    traces = []
    for row in ROWS:
        prompt, completion = trace_ids(tokenizer, row["prompt"], trace_text(row["rationales"][0], row["answer"]), 100)
        traces.append(CachedTrace(row["id"], [*prompt, *completion], len(prompt)))
    build_cache(folder, teacher, traces, vocabulary_size=len(tokenizer), made_by={})


@pytest.mark.slow
@pytest.mark.parametrize("control", ["none", "uniform"])
def test_training_from_a_cache_is_training_from_the_live_top_k_teacher(
    tiny_model, teacher_model, tmp_path, control
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(teacher_model)
    live = LocalTeacher(AutoModelForCausalLM.from_pretrained(teacher_model), tokenizer, k=8)
    make_cache(tmp_path / "cache", live, tokenizer)
    cache = CachedTeacher(tmp_path / "cache", tokenizer=tokenizer)

    class Rounded:
        """What is left of the live teacher's words in 16 bits."""

        name, k, vocabulary = live.name, live.k, live.vocabulary

        def top_k(self, sequences, starts):
            from rlkd.teachers.coding import quantised

            return [quantised(top) for top in live.top_k(sequences, starts)]

    found = {
        name: run(tiny_model, teacher, tmp_path / name, control=control)
        for name, teacher in (("live", live), ("rounded", Rounded()), ("named", str(tmp_path / "cache")))
    }
    for one, other in zip(found["rounded"][1], found["named"][1], strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-6)
        assert other["kd_weight/mean"] == pytest.approx(one["kd_weight/mean"], abs=1e-6)
    for one, other in zip(found["live"][1], found["named"][1], strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)
    assert cache.k == 8


def test_a_cache_needs_the_teachers_traces_alone(tiny_model, teacher_model, tmp_path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(teacher_model)
    live = LocalTeacher(AutoModelForCausalLM.from_pretrained(teacher_model), tokenizer, k=4)
    make_cache(tmp_path / "cache", live, tokenizer)
    for changes, message in (
        ({"lmbda": 0.5}, "lmbda 0.5 with the teacher cache .* Set lmbda: 0"),
        ({"proposals": "generate"}, "a cache has none of them"),
        ({"temperature": 0.7}, "temperature 0.7 with a top-k teacher"),
    ):
        with pytest.raises(UsageError, match=message):
            run(tiny_model, str(tmp_path / "cache"), tmp_path / "run", **changes)


@pytest.fixture
def server(teacher_model, monkeypatch):
    shorten_pauses(monkeypatch)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    tokenizer = AutoTokenizer.from_pretrained(teacher_model)
    started = TopKServer(AutoModelForCausalLM.from_pretrained(teacher_model), tokenizer)
    yield started
    started.http.shutdown()
    started.http.server_close()


@pytest.mark.slow
@pytest.mark.parametrize("lmbda", [0.0, 1.0], ids=["traces", "rollouts"])
def test_a_server_teaches_as_the_same_model_here_does(tiny_model, teacher_model, tmp_path, server, lmbda) -> None:
    tokenizer = AutoTokenizer.from_pretrained(teacher_model)
    here = LocalTeacher(AutoModelForCausalLM.from_pretrained(teacher_model), tokenizer, k=6)
    _, expected = run(tiny_model, here, tmp_path / "here", lmbda=lmbda)
    _, found = run(tiny_model, f"{server.url}#tiny", tmp_path / "server", lmbda=lmbda, teacher_top_k=6)
    for one, other in zip(expected, found, strict=True):
        for key in ("loss", "grad_norm", "kd_weight/mean", "validity/margin"):
            assert other[key] == pytest.approx(one[key], rel=1e-4), key
    assert len(server.requests) == 1 + 8  # at the start, and once a trace, for the weights and the loss


def brevity(questions, limit=40):
    return [max(0.0, 1 - len(question.step) / limit) for question in questions]


def constant(questions, value=0.5):
    return [value] * len(questions)


def breaks_on_the_first(questions):
    return [None if not question.prefix else 0.5 for question in questions]


def wrong(questions):
    return [7.0 for _ in questions]


@pytest.mark.parametrize("lmbda", [0.0, 1.0], ids=["traces", "rollouts"])
def test_a_users_scorer_compares_what_both_really_wrote(tiny_model, teacher_model, tmp_path, lmbda) -> None:
    settings = {"proposals": "generate", "validity": f"{__file__}:brevity", "validity_kwargs": {"limit": 60}}
    trainer, entries = run(tiny_model, teacher_model, tmp_path, lmbda=lmbda, max_step_tokens=10, **settings)
    steps = [step for record in read_steps(trainer.rollouts_path) for step in record["steps"]]
    scored = [step for step in steps if step["margin"] is not None]
    assert scored
    for step in scored:
        here, there = step["teacher"], step["student"]
        in_trace, proposed = (here, there) if lmbda == 0 else (there, here)
        assert proposed == pytest.approx(max(0.0, 1 - len(step["proposal"]) / 60), abs=0.06)  # white space before it
        assert in_trace == pytest.approx(max(0.0, 1 - len(step["text"]) / 60), abs=0.06)
        assert len(step["proposal"]) <= 10
    unscored = [step for step in steps if step["margin"] is None]
    # The model is random: where a step ends within a character, texts are not those of its tokens.
    assert all(step["weight"] == 1.0 for step in unscored)
    assert all(step["proposal"] == "" or "\ufffd" in step["proposal"] + step["text"] for step in unscored)
    assert sum(entry["validity/failed"] * entry["kd/steps_per_trace"] * 4 for entry in entries) == pytest.approx(
        len(unscored)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "bounds", "weight"),
    [(0.2, {}, 1.0), (0.9, {}, 1.0), (0.1, {}, 0.5), (0.9, {"w_max": 2.8}, 1.5)],
    ids=["just trusted", "trusted", "not trusted", "other bounds"],
)
def test_a_constant_validity_is_plain_distillation_where_it_is_trusted_and_the_bounds_surround_1(
    tiny_model, teacher_model, tmp_path, value, bounds, weight
) -> None:
    settings = {"proposals": "generate", "max_step_tokens": 8, "max_steps": 1, "max_completion_length": 120}
    scorer = {"validity": f"{__file__}:constant", "validity_kwargs": {"value": value}}
    _, (plain,) = run(tiny_model, teacher_model, tmp_path / "plain", control="uniform", **settings)
    trainer, (found,) = run(tiny_model, teacher_model, tmp_path / "constant", **settings, **scorer, **bounds)
    steps = [step for record in read_steps(trainer.rollouts_path) for step in record["steps"]]
    scored = [step["weight"] for step in steps if step["margin"] is not None]
    assert scored
    assert scored == pytest.approx([weight] * len(scored), abs=1e-12)
    assert (found["loss"] == pytest.approx(plain["loss"], abs=1e-6)) == (weight == 1)


def test_a_failed_scorer_means_weight_1_there_and_is_counted(tiny_model, teacher_model, tmp_path) -> None:
    settings = {"proposals": "generate", "validity": f"{__file__}:breaks_on_the_first", "max_step_tokens": 8}
    trainer, entries = run(tiny_model, teacher_model, tmp_path, **settings)
    for record in read_steps(trainer.rollouts_path):
        assert record["steps"][0]["weight"] == 1.0
        assert record["steps"][0]["teacher"] is None
    assert all(entry["validity/failed"] >= 0.5 for entry in entries)


def test_a_scorer_that_breaks_its_scale_ends_the_run_by_name(tiny_model, teacher_model, tmp_path) -> None:
    with pytest.raises(UsageError, match="wrong"):
        run(tiny_model, teacher_model, tmp_path, proposals="generate", validity=f"{__file__}:wrong")


def test_likelihood_of_written_steps_is_the_teachers_own(tiny_model, teacher_model, tmp_path) -> None:
    trainer, _ = run(
        tiny_model, teacher_model, tmp_path, proposals="generate", max_step_tokens=10, max_steps=1, temperature=0.7
    )
    teacher = AutoModelForCausalLM.from_pretrained(teacher_model)
    tokenizer = trainer._tokenizer

    def logprobs(ids: list[int], start: int) -> list[float]:
        with torch.no_grad():
            table = (teacher(torch.tensor([ids])).logits[0] / 0.7).log_softmax(-1)
        return [table[place - 1, ids[place]].item() for place in range(start, len(ids))]

    for record in read_steps(trainer.rollouts_path):
        first = record["steps"][0]
        text = record["completion"][: first["tokens"]].rstrip()  # a token is a character here
        assert text.strip() == first["text"]
        prompt, step = (tokenizer(part, add_special_tokens=False).input_ids for part in (record["prompt"], text))
        taken = logprobs([*prompt, *step], len(prompt))
        assert first["teacher"] is None or first["teacher"] == pytest.approx(sum(taken) / len(taken), abs=1e-4)
    # Those that are written have no text that could be tokenised again, so the trainer's teacher is asked itself.
    sequences = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14, 15, 16, 17, 18], [20, 21, 22]]
    starts = [2, 1, 6, 1]
    found = trainer._teacher.logprobs(sequences, starts)
    for ids, start, values in zip(sequences, starts, found, strict=True):
        assert values == pytest.approx(logprobs(ids, start), abs=1e-4)


@pytest.mark.slow
def test_an_engine_writes_the_teachers_steps(tiny_model, teacher_model, tmp_path) -> None:
    settings = {"proposals": "generate", "proposal_engine": f"transformers:{teacher_model}"}
    trainer, entries = run(tiny_model, teacher_model, tmp_path, lmbda=1.0, **settings)
    steps = [step for record in read_steps(trainer.rollouts_path) for step in record["steps"]]
    assert any(step["proposal"] for step in steps)
    assert all(entry["validity/failed"] < 1 for entry in entries)


def text_seen(questions):
    return [len(question.step) / 1000 + 0.2 for question in questions]


@pytest.mark.slow
def test_the_same_step_in_the_trace_and_from_an_engine_is_the_same_question(
    tiny_model, teacher_model, tmp_path
) -> None:
    """A line end behind a step, which an engine leaves out, makes no difference to any scorer."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    settings = {"proposals": "generate", "validity": f"{__file__}:text_seen", "max_steps": 1}
    found = {}
    for name, changes in (("texts", settings), ("likelihood", settings | {"validity": "likelihood"})):
        trainer, _ = run(tiny_model, teacher_model, tmp_path / name, **changes)

        asked = [trainer.train_dataset[i] for i in range(4)]
        trainer.model.train()
        trainer.token_weights.propose = lambda on_policy, prefixes, numbers: [[] for _ in prefixes]
        batch = trainer._generate_and_score_completions(asked)
        ids = unpadded(batch["completion_ids"], batch["completion_mask"])
        traces = [token_steps(tokenizer, row) for row in ids]
        assert any(step.text != step.text.rstrip() for trace in traces for step in trace)
        steps = [step.text.rstrip() for trace in traces for step in trace]

        class Engine:
            async def generate(self, prompts, sampling, *, deadline, steps=steps):
                return [Completion(text, "stop", 9) for text in steps]

        def propose(on_policy, prefixes, numbers, engine=Engine()):  # noqa: B008
            written = write_by_engine(engine, prefixes, tokenizer, Sampling(), None)
            return [first_step(tokenizer, *item) for item in written]

        trainer.token_weights.propose = propose
        found[name] = trainer.token_weights(asked, batch, on_policy=False, step=0)
    for weighted in found.values():
        assert len(weighted.records) > 4
        assert [record.margin for record in weighted.records] == pytest.approx([0.0] * len(weighted.records), abs=1e-5)
        assert all(record.teacher is not None for record in weighted.records)


def test_a_truncated_step_is_not_judged(tiny_model, teacher_model, tmp_path) -> None:
    settings = {"proposals": "generate", "validity": f"{__file__}:brevity", "validity_kwargs": {"limit": 200}}
    trainer, _ = run(tiny_model, teacher_model, tmp_path, max_completion_length=30, max_steps=1, **settings)
    trainer.token_weights.propose = lambda on_policy, prefixes, numbers: [[40, 41, 42] for _ in prefixes]
    trainer.model.train()
    asked = [trainer.train_dataset[i] for i in range(4)]
    batch = trainer._generate_and_score_completions(asked)
    assert trainer._tokenizer.eos_token_id not in batch["completion_ids"]
    weighted = trainer.token_weights(asked, batch, on_policy=False, step=0)
    for row in range(4):
        first, last = [record for record in weighted.records if record.row == row]
        assert first.teacher is not None
        assert (last.teacher, last.student, last.weight) == (None, None, 1.0)
    assert weighted.steps.failed == 4


@pytest.mark.parametrize("lmbda", [0.0, 1.0], ids=["traces", "rollouts"])
def test_only_what_the_teacher_wrote_can_be_below_the_floor(tiny_model, teacher_model, tmp_path, lmbda) -> None:
    # Both models are nearly uniform over 261 tokens: 5.5 nats, of which exp is far below any floor.
    trainer, entries = run(tiny_model, teacher_model, tmp_path, lmbda=lmbda)
    steps = [step for record in read_steps(trainer.rollouts_path) for step in record["steps"]]
    assert all(step["teacher"] < -3 for step in steps)
    assert [entry["kd_weight/floored"] for entry in entries] == [1.0 - lmbda] * 2
    assert (min(step["weight"] for step in steps) >= 0.2) == (lmbda == 1)


@pytest.mark.slow
def test_what_a_wider_teacher_says_of_ids_that_only_pad_goes_to_all_others(
    tiny_model, teacher_model, tmp_path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(teacher_model)
    width = len(tokenizer)
    here = LocalTeacher(AutoModelForCausalLM.from_pretrained(teacher_model), tokenizer, k=8)

    class Wider:
        """The same, but that its second likeliest token is one that the student has no row for."""

        name, k, vocabulary = here.name, here.k, here.vocabulary

        def top_k(self, sequences, starts):
            found = here.top_k(sequences, starts)
            for top in found:
                top.ids[:, 1] = width + 39
            return found

    class Fewer(Wider):
        """The same without that token."""

        def top_k(self, sequences, starts):
            keep = [0, *range(2, 8)]
            found = here.top_k(sequences, starts)
            return [TopK(top.ids[:, keep], top.logprobs[:, keep], top.taken) for top in found]

    (_, wider), (_, fewer) = (run(tiny_model, teacher(), tmp_path / teacher.__name__) for teacher in (Wider, Fewer))
    for one, other in zip(wider, fewer, strict=True):
        for key in ("loss", "grad_norm", "kd_weight/mean", "validity/margin"):
            assert one[key] == pytest.approx(other[key], rel=1e-5), key


def test_a_teacher_with_an_adapter_on_its_head_is_refused(tiny_model, teacher_model, tmp_path) -> None:
    teacher = get_peft_model(
        AutoModelForCausalLM.from_pretrained(teacher_model),
        LoraConfig(r=4, target_modules=["lm_head", "q_proj"], init_lora_weights=False),
    )
    with pytest.raises(UsageError, match=r"changes its logits .* into the weights"):
        run(tiny_model, teacher, tmp_path)
    run(tiny_model, teacher.merge_and_unload(), tmp_path, max_steps=1)


def test_a_cache_that_lacks_a_trace_is_refused_before_a_model_loads(
    tiny_model, teacher_model, tmp_path, monkeypatch
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(teacher_model)
    live = LocalTeacher(AutoModelForCausalLM.from_pretrained(teacher_model), tokenizer, k=4)
    make_cache(tmp_path / "cache", live, tokenizer)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UsageError, match="has no row for 8 of 8 traces, the first is row 'row-0', rationale 0"):
        run(tiny_model, str(tmp_path / "cache"), tmp_path / "run", max_completion_length=40)
    monkeypatch.setattr(sys.modules[__name__], "ROWS", [*ROWS, ROWS[0] | {"id": "new", "prompt": "New?"}])
    with pytest.raises(UsageError, match="has no row for 1 of 9 traces, the first is row 'new'"):
        run(tiny_model, str(tmp_path / "cache"), tmp_path / "run")


@pytest.mark.slow
def test_truncated_traces_are_counted_at_the_start(tiny_model, teacher_model, tmp_path, caplog) -> None:
    run(tiny_model, teacher_model, tmp_path / "long", max_steps=1)
    assert "are truncated" not in caplog.text
    run(tiny_model, teacher_model, tmp_path / "short", max_completion_length=40, max_steps=1)
    assert "8 of 8 traces of the teacher are longer than max_completion_length 40" in caplog.text


@pytest.mark.slow
def test_a_second_training_starts_with_a_fresh_tau(tiny_model, teacher_model, tmp_path) -> None:
    trainer, first = run(tiny_model, teacher_model, tmp_path, tau="adapt", learning_rate=0.0)
    trainer.train()
    second = [entry for entry in read_steps(trainer.metrics_path) if "loss" in entry]
    assert [entry["traces/tau"] for entry in second] == [entry["traces/tau"] for entry in first]


@pytest.mark.slow
def test_on_a_cpu_a_teacher_has_float32_whatever_its_checkpoint_has(tiny_model, teacher_model, tmp_path) -> None:
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(teacher_model, dtype=torch.bfloat16).save_pretrained(half)
    AutoTokenizer.from_pretrained(teacher_model).save_pretrained(half)
    trainer, _ = run(tiny_model, str(half), tmp_path / "run", max_steps=1)
    assert trainer.teacher_model.dtype == torch.float32
    trainer, _ = run(
        tiny_model, str(half), tmp_path / "again", max_steps=1, teacher_model_init_kwargs={"dtype": "bfloat16"}
    )
    assert trainer.teacher_model.dtype == torch.bfloat16


def test_a_teacher_whose_head_lies_elsewhere_is_refused(tiny_model, teacher_model, tmp_path) -> None:
    teacher = AutoModelForCausalLM.from_pretrained(teacher_model).to("meta")
    teacher.hf_device_map = {"": "meta"}
    with pytest.raises(UsageError, match="last layer is on meta and the student on cpu"):
        run(tiny_model, teacher, tmp_path)


def test_a_student_that_is_wider_than_its_teacher_is_refused_with_vllm(tiny_model, teacher_model) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    wide, narrow = (AutoModelForCausalLM.from_pretrained(name) for name in (tiny_model, teacher_model))
    wide.resize_token_embeddings(len(tokenizer) + 3, mean_resizing=False)
    args = SimpleNamespace(use_vllm=True)
    with pytest.raises(UsageError, match=r"student's head has 264 rows .* Set use_vllm: false"):
        common_width(args, wide, narrow, tokenizer)
    assert common_width(args, narrow, wide, tokenizer) == len(tokenizer)
