"""The trainer on a tiny model: real TRL, real rewards, real files."""

import math
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, LlamaForSequenceClassification, TrainerCallback
from transformers.integrations import INTEGRATION_TO_CALLBACK
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import think_format_reward
from trl.trainer.utils import nanstd

from benchmarks.tiny import byte_tokenizer, save_llama
from rewards import Failed, RewardError, build_reward
from rlkd.data.loading import load_rows, to_dataset
from rlkd.errors import UsageError
from trainers import RLKDConfig, RLKDTrainer
from trainers.common.run_files import read_steps


def letters(completions, **columns):
    """Deterministic, and not equal within a group."""
    return [sum(map(ord, c[0]["content"])) % 97 / 97 for c in completions]


def fails_on_even(completions, **columns):
    return [Failed("even") if i % 2 == 0 else float(i) for i in range(len(completions))]


def raises(completions, **columns):
    raise ConnectionError("judge is down")


def is_nan(completions, **columns):
    return [math.nan] * len(completions)


def scored_by_place(completions, **columns):
    return [float(i) for i in range(len(completions))]


@pytest.fixture
def rows() -> Dataset:
    return to_dataset(load_rows("gsm8k-sample")[:8])


def config(tmp_path: Path, kind=RLKDConfig, **changes):
    values = {
        "output_dir": str(tmp_path / "run"),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 8,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 3,
    }
    return kind(**values | changes)


def trained_parameters(trainer) -> list[torch.Tensor]:
    trainer.train()
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


@pytest.mark.slow
def test_with_a_complete_reward_it_trains_exactly_as_grpo_trainer_does(tiny_model, rows, tmp_path) -> None:
    # One after the other: the seed is set when a trainer is built, and the random state is the process's.
    stock = GRPOTrainer(tiny_model, reward_funcs=letters, args=config(tmp_path / "a", GRPOConfig), train_dataset=rows)
    before = [parameter.detach().clone() for parameter in stock.model.parameters()]
    expected = trained_parameters(stock)
    args = config(tmp_path / "b", fast_path="never")
    ours = RLKDTrainer(tiny_model, reward_funcs=letters, args=args, train_dataset=rows)
    found = trained_parameters(ours)
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(before, found, strict=True))


def test_a_failed_sample_lies_at_the_mean_of_its_group(tiny_model, rows, tmp_path) -> None:
    trainer = RLKDTrainer(
        tiny_model,
        reward_funcs=[fails_on_even],
        args=config(tmp_path, scale_rewards="none", max_steps=1),
        train_dataset=rows,
    )
    trainer.train()
    records = read_steps(trainer.rollouts_path)
    assert [record["advantage"] for record in records] == pytest.approx([0.0, -1.0, 0.0, 1.0])
    assert [record["rewards"]["fails_on_even"]["status"] for record in records] == ["failed", "score"] * 2
    assert records[0]["rewards"]["fails_on_even"]["cause"] == "even"


def test_a_raising_reward_is_counted_as_failed_and_the_run_continues(tiny_model, rows, tmp_path) -> None:
    trainer = RLKDTrainer(tiny_model, reward_funcs=[letters, raises], args=config(tmp_path), train_dataset=rows)
    trainer.train()
    metrics = read_steps(trainer.metrics_path)
    assert [entry["step"] for entry in metrics] == [1, 2]
    assert all(entry["rewards/raises/failed"] == 1.0 for entry in metrics)
    assert all(entry["rewards/raises/mean"] is None for entry in metrics)
    outcome = read_steps(trainer.rollouts_path)[0]["rewards"]["raises"]
    assert outcome == {"status": "failed", "cause": "ConnectionError: judge is down"}


def test_a_nan_score_is_a_failure_with_its_cause(tiny_model, rows, tmp_path) -> None:
    trainer = RLKDTrainer(tiny_model, reward_funcs=[letters, is_nan], args=config(tmp_path), train_dataset=rows)
    trainer.train()
    outcome = read_steps(trainer.rollouts_path)[0]["rewards"]["is_nan"]
    assert outcome["status"] == "failed"
    assert outcome["cause"] == "returned nan, which is no score"


class Prescribed:
    """Returns, in turn, what a test has put in `values`; None there means failed."""

    def __init__(self, name: str):
        self.__name__ = name
        self.values: list[float | None] = []

    def __call__(self, completions, **columns):
        return [Failed("prescribed") if value is None else value for value in self.values]


@pytest.mark.slow
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 0.0)], ids=["prizes", "penalties"])
@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_missing_rewards_are_neutral_in_what_trl_really_computes(tiny_model, rows, tmp_path, low, high, aggregation):
    """The properties of a missing reward, on the advantages that come out of TRL, over random holes."""
    rewards = [Prescribed(name) for name in "abc"]
    weights = torch.tensor([1.0, 0.5, 2.0])
    args = config(
        tmp_path,
        scale_rewards="none",
        multi_objective_aggregation=aggregation,
        reward_weights=weights.tolist(),
        save_rollouts=False,
        max_completion_length=2,
        per_device_train_batch_size=12,
        num_generations=6,
    )
    trainer = RLKDTrainer(tiny_model, reward_funcs=rewards, args=args, train_dataset=rows)
    trainer.model.train()
    batch = [rows[i // 6] for i in range(12)]
    generator = torch.Generator().manual_seed(0)

    def advantages(scores_NF: torch.Tensor) -> torch.Tensor:
        for column, reward in enumerate(rewards):
            reward.values = [None if math.isnan(v) else v for v in scores_NF[:, column].tolist()]
        return trainer._generate_and_score_completions(batch)["advantages"]

    for _ in range(20):
        scores = low + (high - low) * torch.rand(12, 3, generator=generator)
        holes = torch.rand(12, 3, generator=generator) < 0.3
        scores[holes] = math.nan
        groups = scores.view(2, 6, 3)
        deviations = (groups - groups.nanmean(dim=1, keepdim=True)).view(12, 3)
        found = advantages(scores)
        scorable = ~torch.isnan(scores).all(dim=1)
        if aggregation == "sum_then_normalize":
            # A centred reward is the sum over columns of (score - mean of the observed); a failed entry adds 0.
            expected = (deviations * weights).nansum(dim=1)
        else:
            # Each column is scaled by the spread of what was observed of its group, then added up and scaled by that
            # of the batch. A completion without any reward stays outside.
            scaled = (deviations.view(2, 6, 3) / (nanstd(groups, dim=1, keepdim=True) + 1e-4)).view(12, 3)
            total = (scaled * weights).nansum(dim=1)
            total[~scorable] = math.nan
            expected = (total - total.nanmean()) / (nanstd(total) + 1e-4)
        assert torch.allclose(found[scorable], expected[scorable], atol=1e-4)
        # Equal completions stay equal, whoever fails: exactly as if nobody had.
        equal = scores[:1].nan_to_num(nan=(low + high) / 2).expand(12, 3).clone()
        nobody_failed = advantages(equal)
        equal[holes & ~holes.all(dim=1, keepdim=True)] = math.nan
        assert torch.equal(advantages(equal), nobody_failed)


def test_on_failure_drop_leaves_the_completion_out(tiny_model, rows, tmp_path) -> None:
    trainer = RLKDTrainer(
        tiny_model,
        reward_funcs=[fails_on_even, scored_by_place],
        args=config(tmp_path, on_failure="drop", scale_rewards="none", max_steps=1),
        train_dataset=rows,
    )
    trainer.train()
    # Samples 1 and 3 stay, with 1 + 1 and 3 + 3.
    assert [r["advantage"] for r in read_steps(trainer.rollouts_path)] == pytest.approx([0.0, -2.0, 0.0, 2.0])


def test_on_failure_raise_names_reward_cause_and_rows(tiny_model, rows, tmp_path) -> None:
    trainer = RLKDTrainer(
        tiny_model, reward_funcs=fails_on_even, args=config(tmp_path, on_failure="raise"), train_dataset=rows
    )
    with pytest.raises(RewardError, match=r"'fails_on_even' failed on 2 of 4 completions.*even.*gsm8k-train-"):
        trainer.train()
    # The batch that it is about is there to be read.
    records = read_steps(trainer.rollouts_path)
    assert [record["rewards"]["fails_on_even"]["status"] for record in records] == ["failed", "score"] * 2
    assert [record["advantage"] for record in records] == [None] * 4


def test_a_gate_lets_a_reward_count_only_under_its_condition(tiny_model, rows, tmp_path) -> None:
    def right(completions, **columns):
        return [1.0, 0.0] * (len(completions) // 2)

    trainer = RLKDTrainer(
        tiny_model,
        reward_funcs=[right, scored_by_place],
        args=config(
            tmp_path,
            reward_gates={"scored_by_place": "right"},
            reward_weights=[0.0, 1.0],
            scale_rewards="none",
            max_steps=1,
        ),
        train_dataset=rows,
    )
    trainer.train()
    # Scores 0, 1, 2, 3 become 0, 0, 2, 0.
    advantages = [record["advantage"] for record in read_steps(trainer.rollouts_path)]
    assert advantages == pytest.approx([-0.5, -0.5, 1.5, -0.5])


@pytest.mark.parametrize("spec", ["accuracy", "structure", "think_format", "tag_count", "soft_overlong", "prm"])
def test_every_registered_reward_runs_in_an_unmodified_grpo_trainer(
    tiny_model, process_models, rows, tmp_path, spec
) -> None:
    parameters = {
        "soft_overlong": {"max_completion_len": 8, "soft_punish_cache": 4},
        "prm": {"model": process_models["token"]},
    }
    reward = build_reward(spec, parameters.get(spec, {}))
    trainer = GRPOTrainer(
        tiny_model, reward_funcs=reward, args=config(tmp_path, GRPOConfig, max_steps=1), train_dataset=rows
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    assert math.isfinite(logged[f"rewards/{spec}/mean"])
    assert logged[f"rewards/{spec}/failed"] == 0.0
    assert logged[f"rewards/{spec}/not_applicable"] == 0.0


def test_trl_rewards_run_in_ours(tiny_model, rows, tmp_path) -> None:
    trainer = RLKDTrainer(
        tiny_model,
        reward_funcs=[think_format_reward, "trl.rewards.accuracy_reward"],
        args=config(tmp_path, max_steps=1),
        train_dataset=rows.add_column("solution", [rf"$\boxed{{{answer}}}$" for answer in rows["answer"]]),
    )
    trainer.train()
    (entry,) = read_steps(trainer.metrics_path)
    assert entry["rewards/think_format_reward/mean"] == 0.0
    assert entry["rewards/accuracy_reward/failed"] == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward_funcs": ["acuracy"]}, "Did you mean 'accuracy'"),
        (
            {"reward_funcs": ["structure"], "reward_kwargs": {"structure": {"alignmnet": "f1"}}},
            "Did you mean 'alignment'",
        ),
        (
            {"reward_funcs": ["structure"], "reward_kwargs": {"structure": {"alignment": "f2"}}},
            "answers, f1, ordered, sum, teacher",
        ),
        ({"reward_funcs": ["accuracy"], "reward_kwargs": {"structure": {}}}, "'structure', which is no reward"),
        ({"reward_funcs": ["accuracy", "accuracy"]}, "give one of them an alias"),
        ({"reward_funcs": ["accuracy"], "reward_weights": [1.0, 2.0]}, "2 entries .* for 1 rewards"),
        ({"reward_gates": {"structure": "acuracy"}}, "Did you mean 'accuracy'"),
        ({"remove_unused_columns": True}, "remove_unused_columns"),
        ({"use_vllm": True}, r"pip install \"rlkd\[vllm\]\""),
        ({"per_device_train_batch_size": 36}, "has 8 prompts, but one generation batch takes 9"),
    ],
)
def test_what_cannot_work_fails_before_a_model_loads(rows, tmp_path, changes, message) -> None:
    with pytest.raises(UsageError, match=message):
        RLKDTrainer("there-is-no-such-model", args=config(tmp_path, **changes), train_dataset=rows)


@pytest.mark.parametrize(
    ("column", "message"),
    [("answer", "'answer', which the data does not have"), ("prompt", "no column 'prompt'")],
)
def test_a_missing_column_is_named_before_a_model_loads(rows, tmp_path, column, message) -> None:
    with pytest.raises(UsageError, match=message):
        RLKDTrainer("no-model", args=config(tmp_path), train_dataset=rows.remove_columns([column]))


def test_gold_answers_that_are_all_empty_are_named(rows, tmp_path) -> None:
    empty = rows.remove_columns(["answer"]).add_column("answer", [None] * len(rows))
    with pytest.raises(RewardError, match=r"'accuracy' needs the column 'answer', which is empty in all 8 rows"):
        RLKDTrainer("no-model", args=config(tmp_path), train_dataset=empty)


def test_a_reserved_column_is_named(rows, tmp_path) -> None:
    with pytest.raises(UsageError, match="'completions' is reserved"):
        RLKDTrainer("no-model", args=config(tmp_path), train_dataset=rows.rename_column("id", "completions"))


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_named_before_a_model_loads(rows, tmp_path) -> None:
    structure = {"decomposer": "prompted", "engine": "http://127.0.0.1:9/v1#judge"}
    args = config(tmp_path, reward_funcs=["structure"], reward_kwargs={"structure": structure})
    with pytest.raises(RewardError, match=r"127.0.0.1:9/v1#judge: no connection.*Is the server running"):
        RLKDTrainer("no-model", args=args, train_dataset=rows)


def test_a_batch_that_does_not_divide_is_refused_with_the_fix(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"1 process.*Make per_device_train_batch_size"):
        config(tmp_path, per_device_train_batch_size=6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"on_failure": "ignore"}, "expected 'impute', 'drop' or 'raise'"),
        ({"reward_kwargs": "{not json"}, "not a JSON object"),
        ({"reward_kwargs": {"accuracy": 3}}, "expected a mapping for 'accuracy', found 3"),
    ],
)
def test_a_config_value_of_the_wrong_kind_is_refused(tmp_path, changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **changes)


def test_parameters_reach_a_reward_passed_to_the_trainer_under_its_alias(tiny_model, rows, tmp_path) -> None:
    args = config(tmp_path, reward_kwargs={"short": {"alignment": "f1"}})
    trainer = RLKDTrainer(tiny_model, reward_funcs=["short=structure", letters], args=args, train_dataset=rows)
    assert [reward.__name__ for reward in trainer.reward_funcs] == ["short", "letters"]
    assert trainer.rewards[0].function.gsrm.alignment.name == "f1"
    args = config(tmp_path, reward_kwargs={"structur": {}})
    with pytest.raises(RewardError, match="'structur', which is no reward of this run"):
        RLKDTrainer(tiny_model, reward_funcs=["structure"], args=args, train_dataset=rows)


@pytest.mark.slow
def test_a_second_run_in_one_folder_resumes_from_its_own_checkpoints(tiny_model, rows, tmp_path) -> None:
    def run(**changes):
        args = config(tmp_path, save_strategy="steps", save_steps=2, **changes)
        return RLKDTrainer(tiny_model, reward_funcs=letters, args=args, train_dataset=rows)

    run(max_steps=6).train()
    run(max_steps=3).train()
    resumed = run(max_steps=5)
    resumed.train(resume_from_checkpoint=True)
    assert [entry["step"] for entry in read_steps(resumed.metrics_path)] == [1, 2, 3, 4, 5]
    earlier = tmp_path / "run" / "earlier-1"
    assert [entry["step"] for entry in read_steps(earlier / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert (earlier / "checkpoint-6").is_dir()


class Doubling:
    """An environment of TRL that brings prompts and reward."""

    def reset(self, **row):
        self.number = row.get("number", 1)
        return f"Double {self.number}."

    def double(self, number: int) -> int:
        """Double a number.

        Args:
            number: the number to double
        """
        return 2 * number

    def get_reward(self) -> float:
        return float(self.number)


@pytest.fixture(scope="module")
def model_with_tools(tmp_path_factory) -> str:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (files("trl") / "chat_templates" / "qwen3.jinja").read_text()
    return save_llama(tmp_path_factory.mktemp("model-with-tools"), tokenizer)


@pytest.mark.parametrize("columns", [["prompt", "number"], ["environment"]])
@pytest.mark.slow
def test_an_environment_may_bring_the_only_reward_and_the_prompts(model_with_tools, tmp_path, columns) -> None:
    values = {"prompt": [{"role": "user", "content": ""}], "number": 3, "environment": "doubling"}
    factory = {"doubling": Doubling} if columns == ["environment"] else Doubling
    trainer = RLKDTrainer(
        model_with_tools,
        reward_funcs=[],
        args=config(tmp_path, max_steps=5),  # more batches than the window of failures
        train_dataset=Dataset.from_list([{name: values[name] for name in columns}] * 8),
        environment_factory=factory,
    )
    trainer.train()
    steps = read_steps(trainer.metrics_path)
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4, 5]
    assert all(entry["rewards/Doubling/mean"] == (3.0 if "number" in columns else 1.0) for entry in steps)
    assert len(read_steps(trainer.rollouts_path)) == 20


def test_a_reward_model_may_be_named_and_gets_its_alias(tiny_model, rows, tmp_path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    judge = LlamaForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    judge.config.pad_token_id = tokenizer.pad_token_id
    folder = tmp_path / "a" / "judge"
    judge.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    args = config(tmp_path, max_steps=1, reward_funcs=["think_format", str(folder), f"again={folder}"])
    trainer = RLKDTrainer(tiny_model, args=args, train_dataset=rows)
    assert trainer.reward_func_names == ["think_format", "judge", "again"]
    trainer.train()
    [entry] = read_steps(trainer.metrics_path)
    assert entry["rewards/judge/mean"] == pytest.approx(entry["rewards/again/mean"])


def down(completions, **columns):
    return [-1.0] * len(completions)


def test_a_gate_on_a_penalty_is_refused_or_said_once(tiny_model, rows, tmp_path, caplog) -> None:
    limits = {"soft_overlong": {"max_completion_len": 8, "soft_punish_cache": 4}}
    gates = {"soft_overlong": "accuracy"}
    args = config(tmp_path, reward_funcs=["accuracy", "soft_overlong"], reward_kwargs=limits, reward_gates=gates)
    with pytest.raises(RewardError, match=r"'soft_overlong' is negative .* escapes the penalty"):
        RLKDTrainer("no such model", args=args, train_dataset=rows)
    args = config(tmp_path, reward_gates={"down": "letters"})
    RLKDTrainer(tiny_model, reward_funcs=[letters, down], args=args, train_dataset=rows).train()
    assert sum("escapes the penalty" in record.message for record in caplog.records) == 1


def test_a_run_whose_completions_are_all_masked_says_that_nothing_was_trained(
    tiny_model, rows, tmp_path, caplog
) -> None:
    endless = {"suppress_tokens": [1]}
    args = config(tmp_path, max_steps=3, mask_truncated_completions=True, generation_kwargs=endless)
    trainer = RLKDTrainer(tiny_model, reward_funcs=letters, args=args, train_dataset=rows)
    trainer.train()
    assert [entry["grad_norm"] for entry in read_steps(trainer.metrics_path)] == [0.0] * 3
    assert caplog.text.count("NOTHING WAS TRAINED: all completions were truncated") == 1


@pytest.mark.slow
def test_a_tracker_with_tables_gets_the_rollouts_of_each_step(tiny_model, rows, tmp_path, monkeypatch) -> None:
    tables = []
    tracker = SimpleNamespace(
        Table=lambda dataframe: dataframe, log=lambda logged: tables.append(logged["completions"])
    )
    monkeypatch.setattr("trl.trainer.grpo_trainer.trackio", tracker, raising=False)
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "trackio", TrainerCallback)
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", lambda: ["trackio"])
    args = config(tmp_path, report_to="trackio", log_completions=True, num_completions_to_print=0)
    trainer = RLKDTrainer(tiny_model, reward_funcs=[letters, fails_on_even], args=args, train_dataset=rows)
    trainer.train()
    records = read_steps(trainer.rollouts_path)
    assert list(tables[0].columns) == ["step", "prompt", "completion", "letters", "fails_on_even", "advantage"]
    texts = [completion[0]["content"] for table in tables[:2] for completion in table["completion"]]
    assert texts == [record["completion"] for record in records]
    assert tables[0]["letters"].tolist() == pytest.approx([r["rewards"]["letters"]["value"] for r in records[:4]])
