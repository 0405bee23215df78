"""Several teachers give what each of them alone gives on its rows."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from benchmarks.tiny import save_llama, training_arguments
from rlkd.divergence import Divergence
from rlkd.errors import UsageError
from rlkd.teachers.cache import CachedTrace, build_cache
from rlkd.teachers.local import LocalTeacher
from rlkd.teachers.traces import trace_ids, trace_text
from tests.helpers.top_k_server import TopKServer
from trainers import ValidityKDConfig, ValidityKDTrainer
from trainers.common.run_files import read_steps
from trainers.teachers.batches import padded_batch
from trainers.teachers.models import head_of
from trainers.teachers.several_teachers import NUMBER, SeveralTeachers
from trainers.teachers.teachers import DenseTeacher, SparseTeacher
from trainers.validity_kd.memory import memory_plan

ROWS = [
    {
        "id": f"row-{i}",
        "prompt": f"{i} + {i}?",
        "answer": str(2 * i),
        "rationales": [f"It is {i} and {i}.\nThat is {2 * i}."],
        "domain": "ab"[i % 2],
    }
    for i in range(8)
]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """Two teachers with the student's tokenizer, of different width."""
    wide = {"seed": 1, "hidden_size": 48, "initializer_range": 0.2}
    return {
        "a": save_llama(tmp_path_factory.mktemp("a"), **wide),
        "b": save_llama(tmp_path_factory.mktemp("b"), seed=2, initializer_range=0.3),
    }


def loaded(name: str):
    return AutoModelForCausalLM.from_pretrained(name).eval()


def dense(model) -> DenseTeacher:
    def read(batch):
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        with torch.no_grad():
            states = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
        return states[:, batch["prompt_ids"].shape[1] - 1 : -1]

    return DenseTeacher(model, read, temperature=1.0, vocabulary=None, rows=2, pad_id=0)


def test_tokens_of_a_batch_are_scored_by_the_teacher_of_their_row(tiny_model, models) -> None:
    """Two widths and a teacher that gives three log-probabilities, on rows of different length."""
    tokenizer, student = AutoTokenizer.from_pretrained(tiny_model), loaded(tiny_model)
    teachers = [
        dense(loaded(models["a"])),
        dense(loaded(models["b"])),
        SparseTeacher(LocalTeacher(loaded(models["a"]), tokenizer, k=3), len(tokenizer)),
    ]
    random, numbers = torch.Generator().manual_seed(0), torch.tensor([2, 0, 1, 1, 2, 0])

    def ids(length):
        return torch.randint(5, len(tokenizer), (length,), generator=random).tolist()

    batch = padded_batch([ids(2 + i) for i in range(6)], [ids(7 - i) for i in range(6)], 0, "cpu")
    mask = batch["completion_mask"].bool()
    hidden, head = torch.randn(int(mask.sum()), 32, generator=random), head_of(student)
    weights, taken = torch.rand(len(hidden), generator=random), batch["completion_ids"][mask]
    divergence = Divergence("jsd", beta=0.3)

    def scored(teacher, given):
        leaf = hidden.clone().requires_grad_()
        states = teacher.observe(given)
        per_token, entropy = teacher.compare(states, mask, leaf, head, divergence, weights)
        (per_token * weights).sum().backward()
        values = teacher.statistics(states, mask, taken, hidden, head)
        return per_token.detach(), entropy, leaf.grad, values.teacher_logprob, values.teacher_entropy, values.kl

    found = scored(SeveralTeachers(teachers), batch | {NUMBER: numbers})
    owners = numbers[:, None].expand(mask.shape)[mask]
    for number, teacher in enumerate(teachers):
        own = owners == number
        for one, alone in zip(found, scored(teacher, batch), strict=True):
            torch.testing.assert_close(one[own], alone[own], atol=1e-6, rtol=1e-6)
    sequences, starts, whose = [ids(6), ids(4), ids(5)], [2, 3, 1], [1, 0, 1]
    values = SeveralTeachers(teachers).logprobs(sequences, starts, whose)
    for sequence, start, number, value in zip(sequences, starts, whose, values, strict=True):
        assert value == pytest.approx(teachers[number].logprobs([sequence], [start])[0], abs=1e-5)


class OneStep:
    """A run of one optimizer step: the sum of its tokens' gradients, and its records by row."""

    def __init__(self, student, folder, rows, **changes):
        few = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": len(rows) // 4}
        values = training_arguments(folder, max_steps=1, max_grad_norm=1e9, max_completion_length=40, lmbda=0.0)
        args = ValidityKDConfig(**values | few | changes)
        self.trainer = ValidityKDTrainer(student, args=args, train_dataset=Dataset.from_list(rows))
        tokens = []

        def keep(model, inputs, count, inner=self.trainer._compute_loss):
            tokens.append(int(count))
            return inner(model, inputs, count)

        self.trainer._compute_loss = keep
        self.gradients: list[torch.Tensor] = []
        step = self.trainer.create_optimizer()
        step.register_step_pre_hook(lambda *_: self.gradients.extend(self._sums(tokens[0])))
        self.trainer.train()
        self.records = {record["id"]: record for record in read_steps(self.trainer.rollouts_path)}

    def _sums(self, tokens: int) -> list[torch.Tensor]:
        return [parameter.grad.clone() * tokens for parameter in self.trainer.model.parameters()]


def compare(whole: OneStep, parts: list[OneStep]) -> None:
    sums = [sum(each) for each in zip(*(part.gradients for part in parts), strict=True)]
    scale = max(float(one.abs().max()) for one in sums)
    assert scale > 1e-3
    for one, other in zip(whole.gradients, sums, strict=True):
        torch.testing.assert_close(one / scale, other / scale, atol=1e-6, rtol=0)
    records = {name: record for part in parts for name, record in part.records.items()}
    assert whole.records.keys() == records.keys()
    for name, record in records.items():
        found = whole.records[name]
        assert [step["proposal"] for step in found["steps"]] == [step["proposal"] for step in record["steps"]]
        for key in ("weight", "teacher", "student"):
            values = [[step[key] for step in one["steps"]] for one in (found, record)]
            assert values[0] == pytest.approx(values[1], abs=1e-5), (name, key)


def of_domain(value: str) -> list[dict]:
    return [row for row in ROWS if row["domain"] == value]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lmbda": 1.0, "proposals": "generate", "top_k": 1, "max_step_tokens": 8, "keep_teacher_states": False},
    ],
    ids=["traces", "rollouts"],
)
def test_a_run_with_two_teachers_is_the_sum_of_two_runs_with_one(tiny_model, models, tmp_path, changes) -> None:
    whole = OneStep(tiny_model, tmp_path / "all", ROWS, teachers=models, teacher_column="domain", **changes)
    parts = [OneStep(tiny_model, tmp_path / one, of_domain(one), teacher=models[one], **changes) for one in "ab"]
    compare(whole, parts)
    if changes:
        assert any(step["proposal"] for record in whole.records.values() for step in record["steps"])


@pytest.mark.slow
def test_a_cache_and_a_server_serve_their_own_rows_only(tiny_model, models, tmp_path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    traces = []
    for row in of_domain("a"):
        prompt, completion = trace_ids(tokenizer, row["prompt"], trace_text(row["rationales"][0], row["answer"]), 40)
        traces.append(CachedTrace(row["id"], [*prompt, *completion], len(prompt)))
    recorded = LocalTeacher(loaded(models["a"]), tokenizer, k=4)
    build_cache(tmp_path / "cache", recorded, traces, vocabulary_size=len(tokenizer), made_by={})
    server = TopKServer(loaded(models["b"]), tokenizer)
    try:
        teachers = {"a": str(tmp_path / "cache"), "b": f"{server.url}#tiny"}
        settings = {"teacher_top_k": 4, "teachers": teachers, "teacher_column": "domain"}
        whole = OneStep(tiny_model, tmp_path / "all", ROWS, **settings)
        assert len(server.requests) == 1 + 4  # at the start, and its rows
        settings = {"teacher_top_k": 4}
        parts = [
            OneStep(tiny_model, tmp_path / one, of_domain(one), teacher=teachers[one], **settings) for one in "ab"
        ]
        compare(whole, parts)
    finally:
        server.http.shutdown()
        server.http.server_close()


@pytest.mark.slow
def test_rows_for_evaluation_have_their_teachers_and_both_models_are_counted(tiny_model, models, tmp_path) -> None:
    values = training_arguments(tmp_path, per_device_train_batch_size=4, max_completion_length=6, max_steps=1)
    args = ValidityKDConfig(**values, teachers=models, teacher_column="domain", per_device_eval_batch_size=4)
    rows = Dataset.from_list(ROWS)
    trainer = ValidityKDTrainer(tiny_model, args=args, train_dataset=rows, eval_dataset=rows)
    assert trainer.evaluate()["eval_loss"] > 0
    plan = memory_plan(args, tiny_model, prompt_tokens=8)
    expected = sum(4 * loaded(name).num_parameters() for name in models.values())
    assert plan.roles["teacher weights"] == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_column": "id"}, "train_dataset: row 0 .id 'row-0'. has 'row-0' in the column 'id'.*'a', 'b'"),
        ({"teacher_column": "kind"}, "train_dataset has no column 'kind'"),
        ({"cross_tokenizer": "always"}, "cross_tokenizer: always with several teachers"),
        ({"lmbda": 0.5, "cached": True}, "lmbda 0.5 with the teacher cache"),
        ({"other": True}, "student and teacher have different tokenizers"),
    ],
)
def test_what_several_teachers_cannot_do_is_refused_before_a_model_loads(
    tiny_model, models, template_model, tmp_path, monkeypatch, changes, message
) -> None:
    teachers = dict(models)
    if changes.pop("other", False):
        teachers["b"] = template_model("chatml")
    if changes.pop("cached", False):
        (tmp_path / "index.json").write_text("{}")
        teachers["b"] = str(tmp_path)
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", lambda *_, **__: pytest.fail("a model loads"))
    values = {"teachers": teachers, "teacher_column": "domain", "lmbda": 0.0, "per_device_train_batch_size": 4}
    args = ValidityKDConfig(**training_arguments(tmp_path / "run", **values | changes))
    with pytest.raises(UsageError, match=message):
        ValidityKDTrainer(tiny_model, args=args, train_dataset=Dataset.from_list(ROWS))
