"""Validity weights of the teacher's signal, against a slow loop over tokens and against runs without them."""

import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from benchmarks.tiny import save_llama, training_arguments
from rlkd.engines import Completion, Engine
from rlkd.errors import UsageError
from rlkd.steps import sentence_spans
from rlkd.validity import ValidityError
from tests.helpers.top_k_server import TopKServer
from trainers import RLKDConfig, RLKDTrainer
from trainers.common.run_files import read_steps

TEXTS = ["It is 2. So 2.\nab", "ab\ncd ef.\n#### 7", "1 + 1 = 2", "no. No."]
ROWS = Dataset.from_list([{"prompt": f"{n} + 1?", "answer": str(n + 1), "domain": "ab"[n % 2]} for n in range(2)])


@pytest.fixture(scope="module")
def models(tiny_model, tmp_path_factory) -> dict[str, str]:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    return {
        "a": save_llama(tmp_path_factory.mktemp("a"), tokenizer, seed=5, hidden_size=48, initializer_range=0.2),
        "b": save_llama(tmp_path_factory.mktemp("b"), tokenizer, seed=6, initializer_range=0.3),
    }


def equal(completions, **columns):
    return [1.0] * len(completions)


def letters(completions, **columns):
    return [sum(map(ord, text)) % 97 / 97 for text in completions]


def trainer_of(model, folder, reward=letters, texts=(), peft_config=None, **changes) -> RLKDTrainer:
    small = {"max_steps": 1, "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 12}
    args = RLKDConfig(**training_arguments(folder, **small | {"teacher_kl": 1.0} | changes))
    trainer = RLKDTrainer(model, reward_funcs=[reward], args=args, train_dataset=ROWS, peft_config=peft_config)
    if texts:
        ids = [trainer.processing_class(text, add_special_tokens=False)["input_ids"] for text in texts]
        trainer._generate_single_turn = lambda *_: (ids, None)
    return trainer


def distribution(model, ids, place, temperature) -> torch.Tensor:
    """The log-probabilities of the token at this place, from the tokens before it alone."""
    with torch.no_grad():
        return (model(torch.tensor([ids[:place]])).logits[0, -1] / temperature).log_softmax(-1)


def slow_advantages(student, teacher, prompt, ids, text, temperature, tau) -> list[float]:
    """w_min 0.5 and w_max 2; a token is a character here."""
    assert len(ids) == len(text)
    every = [*prompt, *ids]
    places = range(len(prompt), len(every))
    tables = [distribution(teacher, every, place, temperature) for place in places]
    surprisals = [-float(table[token]) for table, token in zip(tables, ids, strict=True)]
    entropies = [-float((table.exp() * table).sum()) for table in tables]
    own = [float(distribution(student, every, place, temperature)[every[place]]) for place in places]
    weights = [1.0] * len(ids)
    spans = sentence_spans(text)
    for index, (start, stop) in enumerate(spans):
        margin = sum(surprisals[start:stop]) / (stop - start) - sum(entropies[start:stop]) / (stop - start)
        end = spans[index + 1][0] if index + 1 < len(spans) else stop + len(text[stop:]) - len(text[stop:].lstrip())
        weights[start:end] = [0.5 + 1.5 / (1 + math.exp(-margin / tau))] * (end - start)
    return [weight * (-surprisal - value) for weight, surprisal, value in zip(weights, surprisals, own, strict=True)]


@pytest.mark.slow
def test_each_token_has_the_weight_of_its_step_under_the_teacher_of_its_row(tiny_model, models, tmp_path) -> None:
    settings = {"validity": "likelihood", "w_min": 0.5, "w_max": 2.0, "tau": "0.5", "temperature": 0.7}
    settings |= {"teachers": models, "teacher_column": "domain", "max_completion_length": 20}
    trainer = trainer_of(tiny_model, tmp_path, equal, TEXTS * 2, **settings)
    seen = {}

    def keep(model, inputs, inner=trainer._compute_loss):
        seen.update(inputs)
        return inner(model, inputs)

    trainer._compute_loss = keep
    trainer.train()
    loaded = {name: AutoModelForCausalLM.from_pretrained(folder).eval() for name, folder in models.items()}
    student, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model).eval(), trainer.processing_class
    found = set()
    for row in range(8):
        prompt = seen["prompt_ids"][row][seen["prompt_mask"][row].bool()].tolist()
        ids = seen["completion_ids"][row][seen["completion_mask"][row].bool()].tolist()
        domain = "ab"[int(tokenizer.decode(prompt)[0]) % 2]
        text = tokenizer.decode(ids)
        expected = slow_advantages(student, loaded[domain], prompt, ids, text, 0.7, 0.5)
        assert seen["advantages"][row][: len(ids)].tolist() == pytest.approx(expected, abs=1e-4)
        found.add((domain, text))
    assert found == {(domain, text) for domain in "ab" for text in TEXTS}
    [entry] = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert 0.5 < entry["kd_weight/q10"] < entry["kd_weight/q90"] < 2.0
    assert entry["validity/failed"] == 0
    record = next(one for one in read_steps(trainer.rollouts_path) if one["completion"] == TEXTS[0])
    assert [step["text"] for step in record["kd_steps"]] == ["It is 2.", "So 2.", "ab"]
    assert {"weight", "margin", "teacher", "student", "proposal"} <= set(record["kd_steps"][0])


@pytest.mark.slow
def test_with_weight_1_everywhere_a_run_is_the_unweighted_one_to_the_last_bit(tiny_model, models, tmp_path) -> None:
    def trained(name, **changes):
        settings = {"teacher": models["a"], "max_steps": 2, "learning_rate": 1e-2}
        trainer = trainer_of(tiny_model, tmp_path / name, **settings | changes)
        trainer.train()
        return [parameter.detach().clone() for parameter in trainer.model.parameters()]

    plain = trained("plain")
    uniform = trained("uniform", validity="likelihood", control="uniform")
    ones = trained("ones", validity="likelihood", w_min=1.0, w_max=1.0, v_0=0.0)
    weighted = trained("weighted", validity="likelihood")
    for other in (uniform, ones):
        assert all(torch.equal(one, two) for one, two in zip(plain, other, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(plain, weighted, strict=True))


def by_length(questions):
    return [0.2 + len(question.step) / 40 for question in questions]


class Writer(Engine):
    """Proposes the same step everywhere."""

    name = "writer"

    async def generate(self, prompts, sampling, *, deadline=None):
        return [Completion("So it is.", "stop", 9) for _ in prompts]


@pytest.mark.slow
@pytest.mark.parametrize("writer", ["engine", "model"])
def test_a_scorer_of_texts_reads_the_step_that_a_teacher_writes(tiny_model, models, tmp_path, writer) -> None:
    settings = {"proposals": "generate", "validity": f"{__file__}:by_length", "max_step_tokens": 8, "tau": "adapt"}
    settings |= {"teachers": models, "teacher_column": "domain"}
    if writer == "engine":
        settings["proposal_engine"] = f"{__file__}:Writer"
    trainer = trainer_of(tiny_model, tmp_path, texts=TEXTS * 2, **settings)
    trainer.train()
    steps = [step for record in read_steps(trainer.rollouts_path) for step in record["kd_steps"]]
    assert len(steps) == 16
    assert all(step["proposal"] is not None for step in steps)
    if writer == "model":  # its random text has hardly ever a whole step
        return
    scored = [step for step in steps if step["teacher"] is not None]
    assert len(scored) == 10  # the others reach the limit of the completion
    for step in scored:
        # The teacher goes on within the step; a token is a character here.
        begun = step["proposal"].removesuffix("So it is.")
        assert step["text"].startswith(begun.strip())
        assert len(begun) < len(step["text"])
        values = (0.2 + len(step["proposal"]) / 40, 0.2 + len(step["text"]) / 40)
        assert (step["teacher"], step["student"]) == pytest.approx(values)
        assert step["margin"] == pytest.approx(values[0] - values[1])
    order = sorted(scored, key=lambda step: step["margin"])
    assert [step["weight"] for step in order] == sorted(step["weight"] for step in scored)
    assert order[0]["weight"] < order[-1]["weight"]


@pytest.mark.slow
def test_the_teacher_goes_on_from_the_token_of_the_step_that_it_finds_least_likely(tiny_model, models, tmp_path):
    settings = {"proposals": "generate", "validity": f"{__file__}:by_length", "max_step_tokens": 8}
    settings |= {"teacher": models["a"], "proposal_engine": f"{__file__}:Writer", "temperature": 0.7}
    trainer = trainer_of(tiny_model, tmp_path, texts=["ab cd ef gh.\n"] * 8, max_completion_length=20, **settings)
    trainer.train()
    teacher, tokenizer = AutoModelForCausalLM.from_pretrained(models["a"]).eval(), trainer.processing_class
    found = set()
    for record in read_steps(trainer.rollouts_path):
        prompt = tokenizer(record["prompt"], add_special_tokens=False)["input_ids"]
        ids = tokenizer(record["completion"], add_special_tokens=False)["input_ids"]
        every = [*prompt, *ids]
        places = range(len(prompt), len(prompt) + len("ab cd ef gh."))
        logprobs = [float(distribution(teacher, every, place, 0.7)[every[place]]) for place in places]
        begun = record["completion"][: logprobs.index(min(logprobs))]
        [step] = record["kd_steps"]
        assert step["proposal"] == (begun + "So it is.").strip()
        found.add(begun)
    assert found != {""}


@pytest.mark.slow
def test_a_server_with_enough_tokens_weighs_as_its_model_here_does(tiny_model, models, tmp_path) -> None:
    """The control `divergence` reads the student's own distribution, through its adapter."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    server = TopKServer(AutoModelForCausalLM.from_pretrained(models["a"]).eval(), tokenizer)
    server.max_logprobs = len(tokenizer)
    try:
        found = []
        for name, teacher in (("here", models["a"]), ("served", f"{server.url}#tiny")):
            adapter = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
            settings = {"teacher": teacher, "validity": "likelihood", "teacher_top_k": len(tokenizer) - 1}
            settings |= {"tau": "2", "control": "divergence"}
            torch.manual_seed(0)
            trainer = trainer_of(tiny_model, tmp_path / name, texts=TEXTS * 2, peft_config=adapter, **settings)
            trainer.train()
            steps = [step["weight"] for one in read_steps(trainer.rollouts_path) for step in one["kd_steps"]]
            found.append(steps)
        assert found[0] == pytest.approx(found[1], abs=1e-3)
        assert max(found[0]) - min(found[0]) > 0.01
    finally:
        server.http.shutdown()
        server.http.server_close()


def broken(questions):
    return [None for _ in questions]


@pytest.mark.slow
def test_a_scorer_that_keeps_failing_ends_the_run_after_a_checkpoint(tiny_model, models, tmp_path) -> None:
    settings = {"proposals": "generate", "validity": f"{__file__}:broken", "max_steps": 4, "failure_window": 1}
    settings |= {
        "proposal_engine": f"{__file__}:Writer",
        "teacher": models["a"],
        "save_strategy": "steps",
        "save_steps": 50,
    }
    trainer = trainer_of(tiny_model, tmp_path, texts=TEXTS * 2, **settings)
    with pytest.raises(ValidityError, match=r"validity scorer .*broken' failed on .*--resume_from_checkpoint"):
        trainer.train()
    assert (tmp_path / "checkpoint-1").is_dir()
    assert len(read_steps(trainer.rollouts_path)) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validity": "likelihood", "teacher_kl": 0.0}, "validity 'likelihood': it weighs teacher_kl, which is 0"),
        ({"control": "shuffled"}, "control 'shuffled': there are no validity weights"),
        ({"validity": "likelihood", "w_min": 3.0}, "w_min"),
        ({"validity": "likelihood", "tau": "soon"}, "tau 'soon': expected a number above 0, or adapt"),
        ({"validity": "likelihood", "proposals": "guess"}, "proposals 'guess'"),
        ({"validity": "likelihood", "validity_kwargs": "{bad"}, "is no JSON object"),
    ],
)
def test_settings_without_a_meaning_are_refused_by_the_config(tmp_path, changes, message) -> None:
    with pytest.raises(UsageError, match=message):
        RLKDConfig(**training_arguments(tmp_path, **{"teacher_kl": 1.0, "teacher": "lab-expert"} | changes))


def test_a_scorer_that_needs_a_written_step_is_refused_before_a_model_loads(tiny_model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", lambda *_, **__: pytest.fail("a model loads"))
    with pytest.raises(UsageError, match=r"proposals: expected with validity: arithmetic.*Set proposals: generate"):
        trainer_of(tiny_model, tmp_path, teacher=tiny_model, validity="arithmetic")
