"""Errand: a reward of your own, one file and YAML, is tested by the command and trains through the recipe."""

from pathlib import Path

import pytest
from trl import ModelConfig

from recipes.rlkd import RLKDScriptArguments, main
from rewards.cli import main as rewards_command
from trainers import RLKDConfig
from trainers.common.arguments import parse
from trainers.common.run_files import read_steps

REWARD = '''
"""Short answers, and nothing to score without a gold answer."""

from rewards import RewardOptions, Scored


class Brevity:
    reward_options = RewardOptions(per_sample=True)

    def __init__(self, limit: int = 10):
        self.limit = limit

    def __call__(self, completions, answer, **columns):
        lengths = [len(c if isinstance(c, str) else c[0]["content"]) for c in completions]
        return [
            None if gold is None else Scored(max(0.0, 1 - length / self.limit), {"characters": length})
            for length, gold in zip(lengths, answer, strict=True)
        ]
'''


@pytest.mark.slow
def test_a_reward_from_a_file_trains_through_the_recipe(tiny_model: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "mine.py").write_text(REWARD)
    spec = f"short={tmp_path / 'mine.py'}:Brevity"
    assert rewards_command(["test", spec, "--rows", "1"]) == 0

    config = tmp_path / "my.yaml"
    config.write_text(
        f"model_name_or_path: {tiny_model}\noutput_dir: {tmp_path / 'run'}\n"
        f"reward_funcs: ['{spec}', accuracy]\nreward_kwargs: {{short: {{limit: 400}}}}\n"
        "reward_weights: [0.5, 1.0]\nreward_gates: {accuracy: short}\n"
        "use_cpu: true\nbf16: false\ngradient_checkpointing: false\nreport_to: none\ndisable_tqdm: true\n"
        "per_device_train_batch_size: 4\nnum_generations: 4\nmax_completion_length: 8\nmax_steps: 1\n"
        "save_strategy: 'no'\nlogging_steps: 1\n"
    )
    kinds = (RLKDScriptArguments, RLKDConfig, ModelConfig)
    main(*parse([], kinds, default_config=config))

    [metrics] = read_steps(tmp_path / "run" / "metrics.jsonl")
    assert 0 < metrics["rewards/short/mean"] < 1
    records = read_steps(tmp_path / "run" / "rollouts" / "rank0.jsonl")
    assert len(records) == 4
    for record in records:
        outcome = record["rewards"]["short"]
        assert outcome["value"] == 1 - len(record["completion"]) / 400
        assert outcome["detail"] == {"characters": len(record["completion"])}
    assert f"rollouts: {tmp_path / 'run' / 'rollouts'}" in capsys.readouterr().out
