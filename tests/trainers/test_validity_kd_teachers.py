"""Teachers out of training memory, and scorers of all kinds, in real runs of the trainer."""

import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlkd.errors import UsageError
from rlkd.teacher_cache import CachedTeacher, Trace, build
from rlkd.teachers import local_teacher, trace_ids, trace_text
from trainers import ValidityKDConfig, ValidityKDTrainer
from trainers.logs import read_steps

sys.path.insert(0, str(Path(__file__).parents[1] / "rlkd"))
from test_teachers import TopKServer

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
        traces.append(Trace(row["id"], [*prompt, *completion], len(prompt)))
    build(folder, teacher, traces, vocabulary_size=len(tokenizer), made_by={})


@pytest.mark.parametrize("control", ["none", "uniform"])
def test_training_from_a_cache_is_training_from_the_live_top_k_teacher(
    tiny_model, teacher_model, tmp_path, control
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(teacher_model)
    live = local_teacher(AutoModelForCausalLM.from_pretrained(teacher_model), tokenizer, k=8)
    make_cache(tmp_path / "cache", live, tokenizer)
    cache = CachedTeacher(tmp_path / "cache", tokenizer=tokenizer)

    class Rounded:
        """What is left of the live teacher's words in 16 bits."""

        name, k, vocabulary = live.name, live.k, live.vocabulary

        def top_k(self, sequences, starts):
            from rlkd.teacher_cache import quantised

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
    live = local_teacher(AutoModelForCausalLM.from_pretrained(teacher_model), tokenizer, k=4)
    make_cache(tmp_path / "cache", live, tokenizer)
    for changes, message in (
        ({"lmbda": 0.5}, "lmbda 0.5 with the teacher cache .* Set lmbda: 0"),
        ({"proposals": "generate"}, "the teacher cannot be asked about steps"),
        ({"temperature": 0.7}, "temperature 0.7 with a top-k teacher"),
    ):
        with pytest.raises(UsageError, match=message):
            run(tiny_model, str(tmp_path / "cache"), tmp_path / "run", **changes)


@pytest.fixture
def server(teacher_model, monkeypatch):
    monkeypatch.setattr("rlkd.engines.server._FIRST_PAUSE", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    tokenizer = AutoTokenizer.from_pretrained(teacher_model)
    started = TopKServer(AutoModelForCausalLM.from_pretrained(teacher_model), tokenizer)
    yield started
    started.http.shutdown()
    started.http.server_close()


@pytest.mark.parametrize("lmbda", [0.0, 1.0], ids=["traces", "rollouts"])
def test_a_server_teaches_as_the_same_model_here_does(tiny_model, teacher_model, tmp_path, server, lmbda) -> None:
    tokenizer = AutoTokenizer.from_pretrained(teacher_model)
    here = local_teacher(AutoModelForCausalLM.from_pretrained(teacher_model), tokenizer, k=6)
    _, expected = run(tiny_model, here, tmp_path / "here", lmbda=lmbda)
    _, found = run(tiny_model, f"{server.url}#tiny", tmp_path / "server", lmbda=lmbda, teacher_top_k=6)
    for one, other in zip(expected, found, strict=True):
        for key in ("loss", "grad_norm", "kd_weight/mean", "validity/margin"):
            assert other[key] == pytest.approx(one[key], rel=1e-4), key
    assert len(server.asked) == 8  # once a trace, for the weights and the loss


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
        assert proposed == pytest.approx(max(0.0, 1 - len(step["proposal"]) / 60), abs=0.06)  # white space counts
        assert in_trace == pytest.approx(max(0.0, 1 - len(step["text"]) / 60), abs=0.06)
        assert len(step["proposal"]) <= 10
    unscored = [step for step in steps if step["margin"] is None]
    assert all(step["weight"] == 1.0 and step["proposal"] == "" for step in unscored)
    assert sum(entry["validity/failed"] * entry["kd/steps_per_trace"] * 4 for entry in entries) == pytest.approx(
        len(unscored)
    )


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
        text = record["completion"][: first["tokens"]]  # a token is a character here
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


def test_an_engine_writes_the_teachers_steps(tiny_model, teacher_model, tmp_path) -> None:
    settings = {"proposals": "generate", "proposal_engine": f"transformers:{teacher_model}", "max_step_tokens": 6}
    trainer, entries = run(tiny_model, teacher_model, tmp_path, lmbda=1.0, **settings)
    steps = [step for record in read_steps(trainer.rollouts_path) for step in record["steps"]]
    assert any(step["proposal"] for step in steps)
    assert all(entry["validity/failed"] < 1 for entry in entries)
