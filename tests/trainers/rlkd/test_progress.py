"""The line per step of an RLKD run."""

from trainers.rlkd.progress import step_line

LOGS = {
    "reward": 0.3,
    "rewards/accuracy/mean": 0.125,
    "rewards/accuracy/failed": 0.25,
    "rewards/accuracy/not_applicable": 0.0,
    "rewards/structure/mean": float("nan"),
    "rewards/structure/not_applicable": 1.0,
    "frac_reward_zero_std": 0.5,
    "completions/clipped_ratio": 0.625,
    "step_time": 40.4,
}


def test_the_line_shows_means_missing_rewards_zero_std_groups_and_truncation() -> None:
    assert step_line(2, 10, LOGS) == (
        "step 2/10 | accuracy 0.125 | structure n/a | missing rewards: accuracy 25% failed, structure 100% not "
        "applicable | zero-std groups 50% | truncated 62% | 40 s"
    )


def test_without_missing_rewards_the_line_does_not_mention_them() -> None:
    assert step_line(1, 2, {"reward": 0.5, "rewards/a/mean": 0.5}) == (
        "step 1/2 | a 0.500 | zero-std groups 0% | truncated 0% | 0 s"
    )


def test_with_a_teacher_the_line_shows_its_kl() -> None:
    assert "zero-std groups 0% | teacher KL 0.25 |" in str(step_line(1, 2, {"reward": 0.5, "teacher_kl/mean": 0.251}))


def test_other_logs_than_those_of_a_step_have_no_line() -> None:
    assert step_line(2, 2, {"train_runtime": 3.0}) is None


def test_with_resampling_the_line_is_about_the_batch_that_is_trained_on() -> None:
    logs = {
        "reward": 0.5,
        "rewards/a/frac_zero_std": 0.5,
        "frac_reward_zero_std": 0.6,
        "resampling/frac_zero_std": 0.1,
    }
    assert "zero-std groups 10% |" in str(step_line(1, 2, logs))
