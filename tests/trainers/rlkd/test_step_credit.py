"""Credit of steps: the formulas against a slow loop, and through a real trainer."""

import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.tiny import byte_tokenizer, training_arguments
from rewards import Outcome, RewardError, Scored, StepScore, build_reward
from rewards.batch import ScoredBatch
from trainers import RLKDConfig, RLKDTrainer
from trainers.common.run_files import read_steps
from trainers.rlkd.step_credit import StepCredit, advantage_scales, token_credit

CALCULATIONS = ["1 + 1 = 2. ", "2 * 3 = 6. ", "6 + 1 = 7. ", "7 - 2 = 5. "]
completions_of_steps = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from([0.0, 0.25, 0.5, 1.0])), min_size=1, max_size=5
)


def slow_credit(scores, owners, kind):
    """The definition, token by token."""
    in_steps = [owner for owner in owners if owner >= 0]
    found = []
    for owner in owners:
        if owner < 0:
            found.append(0.0)
            continue
        mean = sum(scores[other] for other in in_steps) / len(in_steps)
        own = scores[owner]
        if kind == "to_go":
            for later in range(owner + 1, len(scores)):
                own += scores[later]
        found.append(own - mean)
    return found


@given(st.lists(completions_of_steps, min_size=1, max_size=4), st.sampled_from(["local", "to_go"]))
def test_credit_is_that_of_a_loop_over_tokens(drawn, kind) -> None:
    """Steps of 0 to 4 tokens (a step without tokens was not found), with a token outside steps behind each."""
    scores = [[score for _, score in steps] for steps in drawn]
    owners = [[o for i, (n, _) in enumerate(steps) for o in [i] * n + [-1]] for steps in drawn]
    width, length = max(map(len, scores)), max(map(len, owners))
    found = token_credit(
        torch.tensor([own + [0.0] * (width - len(own)) for own in scores], dtype=torch.float64),
        torch.tensor([own + [-1] * (length - len(own)) for own in owners]),
        kind,
    )
    for row, own in enumerate(owners):
        assert found[row].tolist() == pytest.approx(slow_credit(scores[row], own, kind) + [0.0] * (length - len(own)))
        if kind == "local":
            assert float(found[row].sum()) == pytest.approx(0, abs=1e-12)


def test_credit_to_go_is_local_credit_and_what_comes_after() -> None:
    scores, owners = torch.tensor([[0.25, 0.5, 0.125]]), torch.tensor([[0, 0, 1, -1, 2]])
    difference = token_credit(scores, owners, "to_go") - token_credit(scores, owners, "local")
    assert difference.tolist() == [[0.625, 0.625, 0.125, 0.0, 0.0]]


# The scale of a reward


def grouped(values):
    return torch.tensor(values, dtype=torch.float64)


def test_a_group_without_spread_has_no_scale_and_a_missing_reward_does_not_count() -> None:
    settled = grouped([[0.3, 1.0], [0.3, 1.0], [0.1, math.nan], [0.5, math.nan]])
    weights = torch.tensor([1.0, 2.0])
    found = advantage_scales(settled, weights, 2, scale_rewards="group", aggregation="sum_then_normalize")
    assert found[:2].tolist() == [[0.0, 0.0]] * 2
    assert found[2].tolist() == pytest.approx([1 / (0.4 / math.sqrt(2) + 1e-4), 2 / (0.4 / math.sqrt(2) + 1e-4)])
    plain = advantage_scales(settled, weights, 2, scale_rewards="none", aggregation="sum_then_normalize")
    assert plain.tolist() == [[1.0, 2.0]] * 4


class Prescribed:
    """Returns what a test has put in `values`, with a step for each half of the text."""

    def __init__(self, name: str = "prescribed"):
        self.__name__ = name
        self.values: list[float] = []

    def __call__(self, completions, **columns):
        return [Scored(value, {"value": value}) for value in self.values]

    def step_scores(self, text, detail):
        return [StepScore(detail["value"], (0, len(text) // 2)), StepScore(0.0, (len(text) // 2, len(text)))]


@pytest.fixture
def rows() -> Dataset:
    return Dataset.from_list([{"prompt": f"{n} + 1?", "answer": str(n + 1)} for n in range(8)])


def config(folder, **changes) -> RLKDConfig:
    small = {"max_steps": 2, "per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 8}
    return RLKDConfig(**training_arguments(folder, **small | changes))


@pytest.mark.slow
def test_scales_are_those_by_which_trl_multiplies_rewards(tiny_model, rows, tmp_path) -> None:
    rewards = [Prescribed(name) for name in "ab"]
    args = config(
        tmp_path,
        reward_weights=[1.0, 0.5],
        per_device_train_batch_size=8,
        save_rollouts=False,
        max_completion_length=2,
    )
    trainer = RLKDTrainer(tiny_model, reward_funcs=rewards, args=args, train_dataset=rows)
    trainer.model.train()
    random = torch.Generator().manual_seed(0)
    modes = [("group", "sum_then_normalize"), ("batch", "sum_then_normalize"), ("none", "sum_then_normalize")]
    for scale, aggregation in [*modes, ("group", "normalize_then_sum")]:
        trainer.scale_rewards, trainer.multi_objective_aggregation = scale, aggregation
        scores = torch.rand(8, 2, generator=random)
        for column, reward in enumerate(rewards):
            reward.values = scores[:, column].tolist()
        found = trainer._generate_and_score_completions([rows[i // 4] for i in range(8)])["advantages"]
        scales = advantage_scales(scores, torch.tensor([1.0, 0.5]), 4, scale_rewards=scale, aggregation=aggregation)
        deviations = scores - scores.view(2, 4, 2).mean(dim=1).repeat_interleave(4, dim=0)
        torch.testing.assert_close(found, (scales * deviations).sum(dim=1), atol=1e-4, rtol=1e-4)


# A batch


def credited(texts, steps, *, advantages=None, scale=1.0, mask=None, tools=None, tokenizer=None, **changes):
    """The advantages of the tokens of completions whose steps are given as (score, place)."""
    tokenizer = tokenizer or byte_tokenizer()
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
    length = max(map(len, ids))
    output = {
        "completion_ids": torch.tensor([row + [0] * (length - len(row)) for row in ids]),
        "completion_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in ids]),
        "advantages": torch.tensor(advantages or [0.5] * len(texts)),
    }
    if mask is not None:
        output["completion_mask"] *= torch.tensor(mask)[:, None]
    if tools is not None:
        output["tool_mask"] = torch.tensor(tools)
    named = SimpleNamespace(
        __name__="r", function=SimpleNamespace(step_scores=lambda text, _: steps[texts.index(text)])
    )
    args = SimpleNamespace(
        **{"step_credit": "local", "shuffle_credit": None, "step_credit_clip": None, "process_index": 0} | changes
    )
    credit = StepCredit(args, {0: named}, tokenizer)
    credit._scales_NF = torch.full((len(texts), 1), scale, dtype=torch.float64)
    outcomes = {"r": [Outcome("score", 1.0)] * len(texts)}
    return credit(ScoredBatch([{"id": i} for i in range(len(texts))], texts, outcomes), output), output, credit


# Not the laboratory's, whose unknown words have no text: there, most steps would have no tokens.
@pytest.mark.parametrize("tokenizer", ["like Qwen", "SmolLM2", "bytes"], indirect=True)
@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.lists(
            st.tuples(st.sampled_from([*CALCULATIONS, "Hm. ", "é漢🙂 "]), st.sampled_from([0.0, 0.25, 1.0])),
            max_size=5,
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([0.0, -1.5, 0.7]),
    st.sampled_from([0.0, 0.5, 3.0]),
)
def test_local_credit_keeps_the_total_of_every_completion(tokenizer, drawn, advantage, scale) -> None:
    texts, steps = [], []
    for row, parts in enumerate(drawn):
        text, own = f"{row}: ", []
        for part, score in parts:
            own.append(StepScore(score, (len(text), len(text) + len(part.strip()))))
            text += part
        texts.append(text)
        steps.append([one for one in own if text[slice(*one.place)] != "Hm."])
    found, output, _ = credited(texts, steps, advantages=[advantage] * len(texts), scale=scale, tokenizer=tokenizer)
    mask = output["completion_mask"]
    torch.testing.assert_close(
        (found.advantages * mask).sum(dim=1), advantage * mask.sum(dim=1).float(), atol=1e-4, rtol=1e-5
    )
    for row, own in enumerate(steps):
        assert len(found.records[row]) == len(own)
        assert all(one["tokens"] for one in found.records[row])
        assert (found.advantages[row] != advantage).sum() <= sum(one["tokens"] for one in found.records[row])


def test_a_limit_makes_the_credit_of_a_completion_smaller_as_a_whole() -> None:
    texts = ["aa bb cc", "dd bb cc"]
    steps = [[StepScore(score, (0, 2)), StepScore(0.0, (3, 8))] for score in (1.0, 0.1)]
    free, _, _ = credited(texts, steps, advantages=[0.0, 0.0], scale=40.0)
    found, _, _ = credited(texts, steps, advantages=[0.0, 0.0], scale=40.0, step_credit_clip=5.0)
    largest = free.advantages[0].abs().max()
    assert largest > 5 > free.advantages[1].abs().max()
    torch.testing.assert_close(found.advantages[0], free.advantages[0] * 5 / largest)
    torch.testing.assert_close(found.advantages[1], free.advantages[1])
    assert max(abs(one["credit"]) for one in found.records[0]) == pytest.approx(5.0)
    assert found.records[1] == free.records[1]


def test_tokens_outside_steps_keep_the_advantage_and_rows_without_a_score_too() -> None:
    text = "Hm. 1 + 1 = 2. 2 * 3 = 6. #### 6"
    steps = [StepScore(0.5, (4, 14)), StepScore(0.0, (15, 25))]
    found, _, credit = credited([text, "nothing"], [steps, []], scale=2.0)
    values = found.advantages[0].tolist()
    # Both have eleven bytes, with the space behind the step, and 0.5 and 0 in the mean.
    assert values[4:15] == [0.5 + 2 * (0.5 - 0.25)] * 11
    assert values[15:26] == [0.5 - 2 * 0.25] * 11
    assert values[26:] == [0.5] * (len(values) - 26)
    assert found.advantages[1].tolist() == [0.5] * len(values)
    assert credit.metrics(found.counts)["step_credit/aligned"] == 1.0


def test_a_completion_that_is_left_out_of_the_loss_gets_none_and_counts_nowhere() -> None:
    steps = [[StepScore(0.5, (0, 3)), StepScore(0.0, (3, 6))]] * 2
    found, output, _ = credited(["abcdef", "ghijkl"], steps, mask=[1, 0])
    assert (found.advantages[1] == 0.5).all()
    assert found.records[1] == []
    assert found.counts.tolist()[:4] == [2, 2, int(output["completion_mask"].sum()), 6]


def test_the_tokens_of_tools_are_in_no_step() -> None:
    steps = [[StepScore(0.5, (0, 4)), StepScore(0.0, (4, 6))]]
    found, _, _ = credited(["abcdef"], steps, tools=[[1, 1, 0, 0, 1, 1, 1]])
    assert found.advantages[0].tolist() == [0.75, 0.75, 0.5, 0.5, 0.25, 0.25, 0.5]


def test_the_control_moves_the_scores_of_a_completion_among_its_steps_the_same_way_each_time() -> None:
    steps = [[StepScore(float(i), (2 * i, 2 * i + 2)) for i in range(6)]]
    text = "a1b2c3d4e5f6"
    runs = [credited([text], steps, shuffle_credit=seed)[0].records[0] for seed in (1, 1, 2)]
    scores = [[one["score"] for one in records] for records in runs]
    assert scores[0] == scores[1] != scores[2]
    assert sorted(scores[0]) == [0, 1, 2, 3, 4, 5] != scores[0]
    assert [one["place"] for one in runs[0]] == [one.place for one in steps[0]]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            [StepScore(1.0, (0, 9))],
            r"reward 'r': step_scores on a completion of row 0: ValueError: places \[0, 9\] in 3",
        ),
        ([StepScore(1.0, (1, 3)), StepScore(1.0, (0, 1))], "expected ascending ones"),
        ([0.5], "AttributeError.*Correct it, or set step_credit: none"),
    ],
)
def test_a_reward_whose_steps_are_no_steps_ends_the_run(steps, message) -> None:
    with pytest.raises(RewardError, match=message):
        credited(["abc"], [steps])


def test_steps_that_are_mostly_not_found_are_a_warning_once(caplog) -> None:
    steps = [[StepScore(1.0), StepScore(0.0, (0, 1)), StepScore(1.0)]]
    found, _, credit = credited(["abc"], steps)
    assert credit.metrics(found.counts)["step_credit/aligned"] == pytest.approx(1 / 3)
    credit.metrics(found.counts)
    assert caplog.text.count("only 1 of 3 scored steps were found") == 1
    assert found.records[0][0] == {"reward": "r", "score": 1.0, "place": None, "tokens": 0, "credit": None}


# Through the trainer


def write(trainer, texts):
    """Let the student write these texts, whatever the prompts."""
    ids = [trainer.processing_class(text, add_special_tokens=False)["input_ids"] for text in texts]
    trainer._generate_single_turn = lambda *_: (ids, None)


def steps_of_equal_worth(completions, **columns):
    return [sum(map(ord, text)) % 97 / 97 for text in completions]


steps_of_equal_worth.step_scores = lambda text, detail: [StepScore(0.5, (0, 3)), StepScore(0.5, (3, len(text)))]


@pytest.mark.slow
def test_steps_of_equal_worth_train_as_without_credit_to_the_last_bit(tiny_model, rows, tmp_path) -> None:
    def trained(name, **changes):
        args = config(tmp_path / name, learning_rate=1e-2, **changes)
        trainer = RLKDTrainer(tiny_model, reward_funcs=[steps_of_equal_worth], args=args, train_dataset=rows)
        write(trainer, ["ab. cd.", "abc. d.", "xyz. w.", "q. rst."])
        trainer.train()
        return [parameter.detach().clone() for parameter in trainer.model.parameters()]

    plain, local, to_go = trained("none"), trained("local", step_credit="local"), trained("to", step_credit="to_go")
    assert all(torch.equal(one, other) for one, other in zip(plain, local, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(plain, to_go, strict=True))


@pytest.mark.slow
def test_a_gate_scales_the_credit_and_a_failed_score_gives_none(tiny_model, rows, tmp_path) -> None:
    structure, gate = Prescribed("structure"), Prescribed("gate")
    structure.values, gate.values = [0.8, 0.8, 0.0, 0.4], [1.0, 0.5, 1.0, 0.0]
    args = config(tmp_path, reward_gates={"structure": "gate"}, step_credit="local", scale_rewards="none", max_steps=1)
    trainer = RLKDTrainer(tiny_model, reward_funcs=[structure, gate], args=args, train_dataset=rows)
    write(trainer, ["abcdefgh"] * 4)
    trainer.train()
    records = read_steps(trainer.rollouts_path)
    first = [[one["credit"] for one in record["credit"] if one["reward"] == "structure"] for record in records]
    assert first[0] == pytest.approx([2 * value for value in first[1]])
    assert first[0][0] > 0 > first[0][1]
    assert first[3] == [0.0, 0.0]
    assert all(len(record["credit"]) == 4 and isinstance(record["advantage"], float) for record in records)


@pytest.mark.slow
def test_the_structure_reward_gives_credit_to_the_steps_of_real_completions(tiny_model, tmp_path, monkeypatch) -> None:
    text = "Ann has 2 + 3 = 5. So she has 5 * 2 = 11. And 5 + 1 = 6.\n#### 6"
    teacher = "Ann has 2 + 3 = 5. So she has 5 * 2 = 10.\n#### 10"
    rows = Dataset.from_list([{"prompt": "How many?", "rationales": [teacher], "answer": "10"}] * 4)
    args = config(tmp_path, step_credit="local", max_completion_length=80, max_steps=1)
    reward = build_reward("structure", {"alignment": "ordered"})
    trainer = RLKDTrainer(tiny_model, reward_funcs=[reward], args=args, train_dataset=rows)
    texts = [text, text, teacher, "no steps"]
    write(trainer, texts)
    seen = []
    inner = trainer._compute_loss
    monkeypatch.setattr(
        trainer, "_compute_loss", lambda model, inputs: seen.append(inputs["advantages"]) or inner(model, inputs)
    )
    trainer.train()
    records = {record["completion"]: record for record in read_steps(trainer.rollouts_path)}
    right, half, none = records[text]["credit"]
    assert right["credit"] > 0 > none["credit"]
    assert right["score"] == 2 * half["score"] > none["score"] == 0
    assert text[slice(*half["place"])] == "So she has 5 * 2 = 11."
    assert records["no steps"]["credit"] == []
    (advantages,) = seen
    assert advantages.shape == (4, len(text))
    for row in advantages.tolist():
        own = next(record for record in records.values() if record["advantage"] == pytest.approx(row[-1]))
        length = len(own["completion"])
        assert sum(row[:length]) == pytest.approx(length * own["advantage"], abs=1e-3)
    assert trainer.state.log_history[0]["step_credit/aligned"] == 1.0
