"""The teacher's signal: its formula, and through a real trainer against a slow policy gradient."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from benchmarks.tiny import save_llama, training_arguments
from rlkd.engines import EngineError
from rlkd.errors import UsageError
from tests.helpers.quick_retries import shorten_pauses
from tests.helpers.top_k_server import TopKServer
from trainers import RLKDConfig, RLKDTrainer
from trainers.common.run_files import read_steps
from trainers.rlkd.memory import memory_plan
from trainers.rlkd.preflight import check_teacher_kl
from trainers.rlkd.teacher_kl import teacher_advantages

ROWS = Dataset.from_list([{"prompt": f"{n} + 1?", "answer": str(n + 1)} for n in range(8)])


@pytest.fixture(scope="module")
def teacher_model(tiny_model, tmp_path_factory) -> str:
    """Another model with the student's tokenizer, of another width."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    return save_llama(tmp_path_factory.mktemp("teacher"), tokenizer, seed=5, hidden_size=48, initializer_range=0.2)


def equal(completions, **columns):
    return [1.0] * len(completions)


def letters(completions, **columns):
    return [sum(map(ord, text)) % 97 / 97 for text in completions]


def trainer_of(model, folder, reward, **changes) -> RLKDTrainer:
    small = {"max_steps": 2, "per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 6}
    args = RLKDConfig(**training_arguments(folder, **small | changes))
    return RLKDTrainer(model, reward_funcs=[reward], args=args, train_dataset=ROWS)


def weights_of(trainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def test_a_token_gets_the_weighted_difference_within_the_clip_and_others_nothing() -> None:
    student, teacher = torch.tensor([[-1.0, -4.0, -0.1, -1.0]]), torch.tensor([[-2.0, -1.0, -9.1, -5.0]])
    mask = torch.tensor([[True, True, True, False]])
    assert teacher_advantages(student, teacher, mask, weight=0.5).tolist() == [[-0.5, 1.5, -4.5, 0.0]]
    assert teacher_advantages(student, teacher, mask, weight=0.5, clip=2.0).tolist() == [[-0.5, 1.0, -1.0, 0.0]]
    validity = torch.tensor([[1.0, 0.5, 2.0, 3.0]])
    weighted = teacher_advantages(student, teacher, mask, weight=0.5, clip=2.0, validity_BC=validity)
    assert weighted.tolist() == [[-0.5, 0.5, -2.0, 0.0]]
    # Only the second token becomes likelier.
    raising = torch.tensor([[0.0, 0.25, 0.0, 0.0]])
    weighted = teacher_advantages(
        student, teacher, mask, weight=0.5, clip=2.0, validity_BC=validity, raising_BC=raising
    )
    assert weighted.tolist() == [[-0.5, 0.25, -2.0, 0.0]]


@pytest.mark.slow
def test_without_weight_a_run_is_the_plain_one_to_the_last_bit(tiny_model, teacher_model, tmp_path) -> None:
    def trained(name, **changes):
        trainer = trainer_of(tiny_model, tmp_path / name, letters, learning_rate=1e-2, **changes)
        trainer.train()
        return weights_of(trainer)

    plain = trained("plain")
    off = trained("off", teacher_kl=0.0, teacher=teacher_model, teacher_kl_clip=1.0)
    on = trained("on", teacher_kl=1.0, teacher=teacher_model)
    assert all(torch.equal(one, other) for one, other in zip(plain, off, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(plain, on, strict=True))


def slow_distillation(student_name, teacher_name, records, tokenizer, temperature) -> tuple[list[torch.Tensor], float]:
    """The gradients of on-policy distillation, token by token, and the mean log pi_student - log pi_teacher."""
    student, teacher = (AutoModelForCausalLM.from_pretrained(name).eval() for name in (student_name, teacher_name))
    terms, gaps = [], []
    for prompt, completion in records:
        ids = [*prompt, *completion]
        for place in range(len(prompt), len(ids)):
            before = torch.tensor([ids[:place]])
            own = (student(before).logits[0, -1] / temperature).log_softmax(-1)[ids[place]]
            with torch.no_grad():
                other = (teacher(before).logits[0, -1] / temperature).log_softmax(-1)[ids[place]]
            advantage = other - own.detach()
            terms.append(-advantage * own)
            gaps.append(-float(advantage))
    (sum(terms) / len(terms)).backward()
    return [parameter.grad for parameter in student.parameters()], sum(gaps) / len(gaps)


@pytest.mark.slow
@pytest.mark.parametrize("fast_path", ["auto", "never"])
def test_with_equal_rewards_the_gradient_is_that_of_on_policy_distillation(
    tiny_model, teacher_model, tmp_path, fast_path
) -> None:
    """Completions of different lengths, in a loss that is the mean over all tokens."""
    trainer = trainer_of(
        tiny_model,
        tmp_path,
        equal,
        teacher_kl=1.0,
        teacher=teacher_model,
        temperature=0.7,
        fast_path=fast_path,
        loss_type="dapo",
        max_steps=1,
        max_grad_norm=1e9,
    )
    texts = ["ab c", "xyz", "q", "4 + 5!"]
    ids = [trainer.processing_class(text, add_special_tokens=False)["input_ids"] for text in texts]
    trainer._generate_single_turn = lambda *_: (ids, None)
    seen = {}

    def keep(model, inputs, *rest, inner=trainer._compute_loss):
        seen.update(inputs)
        return inner(model, inputs, *rest)

    trainer._compute_loss = keep
    gradients = []
    step = trainer.training_step

    def training_step(*arguments):
        loss = step(*arguments)
        gradients.extend(parameter.grad.clone() for parameter in trainer.model.parameters())
        return loss

    trainer.training_step = training_step
    trainer.train()
    records = []
    for row in range(4):
        prompt = seen["prompt_ids"][row][seen["prompt_mask"][row].bool()].tolist()
        records.append((prompt, seen["completion_ids"][row][seen["completion_mask"][row].bool()].tolist()))
    expected, mean = slow_distillation(tiny_model, teacher_model, records, trainer.processing_class, 0.7)
    for found, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert max(float(one.abs().max()) for one in expected) > 1e-3
    assert trainer.state.log_history[0]["teacher_kl/mean"] == pytest.approx(mean, abs=1e-4)
    kept = read_steps(trainer.rollouts_path)
    lengths = [len(one["completion"]) for one in kept]
    total = sum(one["teacher_kl"] * length for one, length in zip(kept, lengths, strict=True))
    assert total / sum(lengths) == pytest.approx(mean, abs=1e-4)
    assert all(one["advantage"] == 0 for one in kept)


@pytest.mark.slow
def test_a_server_gives_the_signal_of_its_model_and_its_failure_keeps_the_rollouts(
    tiny_model, teacher_model, tmp_path, monkeypatch
) -> None:
    server = TopKServer(
        AutoModelForCausalLM.from_pretrained(teacher_model).eval(), AutoTokenizer.from_pretrained(teacher_model)
    )
    shorten_pauses(monkeypatch)
    try:
        found = []
        for name, teacher in (("here", teacher_model), ("served", f"{server.url}#tiny")):
            trainer = trainer_of(tiny_model, tmp_path / name, letters, teacher_kl=0.3, teacher=teacher)
            trainer.train()
            found.append((weights_of(trainer), [one["teacher_kl/mean"] for one in trainer.state.log_history[:2]]))
        for one, other in zip(found[0][0], found[1][0], strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
        assert found[0][1] == pytest.approx(found[1][1], abs=1e-4)

        trainer = trainer_of(tiny_model, tmp_path / "fails", letters, teacher_kl=0.3, teacher=f"{server.url}#tiny")
        server.fault = lambda body: (400, {"error": {"message": "out of order"}})
        with pytest.raises(EngineError, match="out of order"):
            trainer.train()
        assert len(read_steps(trainer.rollouts_path)) == 4
    finally:
        server.http.shutdown()
        server.http.server_close()


@pytest.mark.slow
def test_each_row_gets_the_signal_of_its_own_teacher_here_or_on_a_server(tiny_model, teacher_model, tmp_path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    other = save_llama(tmp_path / "other", tokenizer, seed=6, initializer_range=0.3)
    server = TopKServer(AutoModelForCausalLM.from_pretrained(other).eval(), tokenizer)
    rows = Dataset.from_list([{"prompt": f"{n} + 1?", "domain": "ab"[n % 2]} for n in range(2)])

    def advantages(name, **changes) -> dict[str, list[list[float]]]:
        small = {"max_steps": 1, "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 6}
        args = RLKDConfig(**training_arguments(tmp_path / name, **small, teacher_kl=1.0, **changes))
        trainer = RLKDTrainer(tiny_model, reward_funcs=[letters], args=args, train_dataset=rows)
        ids = [[5 + n, 7, 9 + n % 3, *range(20, 20 + n % 4)] for n in range(8)]
        trainer._generate_single_turn = lambda *_: (ids, None)
        found = {}

        def keep(model, inputs, inner=trainer._compute_loss):
            for prompt, values in zip(inputs["prompt_ids"], inputs["advantages"], strict=True):
                found.setdefault(tokenizer.decode(prompt[-6:]), []).append(values.tolist())
            return inner(model, inputs)

        trainer._compute_loss = keep
        trainer.train()
        return {prompt: sorted(values) for prompt, values in found.items()}

    try:
        alone = {"a": advantages("a", teacher=teacher_model), "b": advantages("b", teacher=other)}
        for name, second in (("here", other), ("served", f"{server.url}#tiny")):
            teachers = {"a": teacher_model, "b": second}
            found = advantages(name, teachers=teachers, teacher_column="domain")
            assert found.keys() == alone["a"].keys()
            for prompt, values in found.items():
                own, foreign = (alone["ab"[(int(prompt[0]) + shift) % 2]][prompt] for shift in (0, 1))
                torch.testing.assert_close(torch.tensor(values), torch.tensor(own), atol=1e-5, rtol=0)
                assert max(map(abs, torch.tensor(values).sub(torch.tensor(foreign)).flatten().tolist())) > 0.1
        assert len(server.requests) == 1 + 4  # at the start, and its rows
    finally:
        server.http.shutdown()
        server.http.server_close()


@pytest.mark.slow
def test_a_row_of_a_stream_without_a_teacher_is_refused_before_its_rollouts(
    tiny_model, teacher_model, tmp_path
) -> None:
    rows = Dataset.from_list([{"prompt": f"{n} + 1?", "domain": "math"} for n in range(8)]).to_iterable_dataset()
    small = {"max_steps": 1, "per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 6}
    teachers = {"teachers": {"law": teacher_model}, "teacher_column": "domain"}
    args = RLKDConfig(**training_arguments(tmp_path, **small, teacher_kl=1.0, **teachers))
    trainer = RLKDTrainer(tiny_model, reward_funcs=[letters], args=args, train_dataset=rows)
    trainer._generate = lambda *_: pytest.fail("it generates")
    with pytest.raises(UsageError, match="has 'math' in the column 'domain'"):
        trainer.train()


@pytest.mark.slow
def test_the_signal_joins_the_credit_of_steps_and_the_share_of_clipped_tokens_is_logged(
    tiny_model, teacher_model, tmp_path
) -> None:
    from rewards import StepScore

    def reward(completions, **columns):
        return letters(completions)

    reward.step_scores = lambda text, detail: [StepScore(1.0, (0, 2)), StepScore(0.0, (2, len(text)))]
    changes = {"teacher": teacher_model, "teacher_kl_clip": 1e-6, "step_credit": "local", "max_steps": 1}
    advantages = {}
    for weight in (0.0, 1e6):
        trainer = trainer_of(tiny_model, tmp_path / str(weight), reward, teacher_kl=weight, **changes)

        def keep(model, inputs, weight=weight, inner=trainer._compute_loss):
            advantages[weight] = inputs["advantages"]
            return inner(model, inputs)

        trainer._compute_loss = keep
        trainer.train()
    added = advantages[1e6] - advantages[0.0]
    torch.testing.assert_close(added.abs(), torch.ones_like(added))
    assert trainer.state.log_history[0]["teacher_kl/clipped"] == 1.0
    record = read_steps(trainer.rollouts_path)[0]
    assert {"credit", "teacher_kl"} <= set(record)


@pytest.mark.slow
def test_a_student_with_a_padded_head_samples_what_the_teacher_knows(tiny_model, teacher_model, tmp_path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    padded = save_llama(tmp_path / "padded", tokenizer, vocab_size=4 * len(tokenizer))
    trainer = trainer_of(padded, tmp_path / "run", letters, teacher_kl=0.5, teacher=teacher_model, max_steps=1)
    trainer.train()
    assert trainer.generation_config.suppress_tokens == list(range(len(tokenizer), 4 * len(tokenizer)))
    assert trainer.state.log_history[0]["teacher_kl/mean"] < 100


# Refusals


@pytest.fixture
def nothing_loads(monkeypatch):
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", lambda *_, **__: pytest.fail("a model loads"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_type": "sapo"}, "teacher_kl 0.5 with loss_type 'sapo'.*or teacher_kl: 0"),
        ({"off_policy_mask_threshold": 0.5}, "teacher_kl 0.5 with off_policy_mask_threshold 0.5"),
        ({"teacher": "http://127.0.0.1:1/v1#m", "temperature": 0.7}, "temperature 0.7 with a top-k teacher"),
        ({"teacher": "http://127.0.0.1:1/v1#m", "teacher_model_init_kwargs": {"dtype": "float32"}}, "Leave the key"),
        ({"teacher": "no/such/teacher"}, "teacher 'no/such/teacher' cannot be read"),
        (
            {"teacher": None, "teachers": {"7": "lab-expert"}, "teacher_column": "answer"},
            "train_dataset: row 0 has '1' in the column 'answer'.*teachers has '7'",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_loads(
    nothing_loads, tiny_model, tmp_path, changes, message
) -> None:
    with pytest.raises(UsageError, match=message):
        trainer_of(tiny_model, tmp_path, equal, **{"teacher_kl": 0.5, "teacher": tiny_model} | changes)


def test_a_cache_and_another_vocabulary_are_refused_before_a_model_loads(
    nothing_loads, tiny_model, template_model, tmp_path
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "index.json").write_text("{}")
    with pytest.raises(UsageError, match="it has no log-probabilities of the student's completions"):
        trainer_of(tiny_model, tmp_path, equal, teacher_kl=0.5, teacher=str(cache))
    with pytest.raises(UsageError, match="student and teacher have different tokenizers"):
        trainer_of(tiny_model, tmp_path, equal, teacher_kl=0.5, teacher=template_model("chatml"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_kl": 0.5}, "teacher_kl 0.5: there is no teacher"),
        ({"teacher_kl": -1.0}, "teacher_kl -1.0: expected a weight of at least 0"),
        ({"teacher_kl_clip": 0.0}, "teacher_kl_clip 0.0: expected nats above 0"),
    ],
)
def test_values_that_mean_nothing_are_refused_by_the_config(tmp_path, changes, message) -> None:
    with pytest.raises(UsageError, match=message):
        RLKDConfig(**training_arguments(tmp_path, **changes))


@pytest.mark.slow
def test_the_estimate_of_memory_counts_the_teacher(tiny_model, teacher_model, tmp_path) -> None:
    def roles(**changes):
        args = RLKDConfig(**training_arguments(tmp_path, num_generations=4, per_device_train_batch_size=4, **changes))
        plan = memory_plan(args, tiny_model, prompt_tokens=16, rewards=[equal])
        return plan.roles, [phase.name for phase in plan.phases]

    plain, phases = roles(teacher=teacher_model)
    assert "teacher weights" not in plain
    assert "teacher" not in phases
    counted, phases = roles(teacher=teacher_model, teacher_kl=0.1)
    parameters = AutoModelForCausalLM.from_pretrained(teacher_model).num_parameters()
    assert counted["teacher weights"] == pytest.approx(4 * parameters, rel=0.01)
    assert {"teacher", "log-probabilities"} <= set(phases)
    served, phases = roles(teacher="http://127.0.0.1:1/v1#m", teacher_kl=0.1)
    assert served.get("teacher weights", 0) == 0
    assert "teacher" not in phases


def test_a_teacher_without_a_weight_is_named_as_unused(tmp_path, caplog) -> None:
    check_teacher_kl(RLKDConfig(**training_arguments(tmp_path), teacher="lab-expert"))
    assert "teacher lab-expert is not used: teacher_kl is 0. Set teacher_kl: 0.5" in caplog.text
    check_teacher_kl(RLKDConfig(**training_arguments(tmp_path), teacher="http://me:pw@host/v1#m"))
    assert "teacher http://***@host/v1#m is not used" in caplog.text
    assert "pw" not in caplog.text
