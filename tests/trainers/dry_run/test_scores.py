import json

import pytest
from datasets import Dataset

from rewards import Failed, RewardOptions, build_rewards
from rlkd.data.loading import to_dataset
from rlkd.data.samples import sample_rows
from tests.helpers.dry_runs import plain
from tests.helpers.local_server import LocalServer
from trainers.dry_run.dry_run import DryRun
from trainers.dry_run.scores import RewardTrial, show_scores, solution, solved_rows, try_reward

HERE = RewardOptions(isolate=False, timeout=None, cache=False)


def boxed(completions, **columns):
    return [float("boxed" in c[0]["content"]) for c in completions]


def broken(completions, **columns):
    return [Failed("no server")] * len(completions)


def wrong_type(completions, **columns):
    return ["good"] * len(completions)


for reward in (boxed, broken, wrong_type):
    reward.reward_options = HERE


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return to_dataset(sample_rows("rl")[:12])


def shown(rewards, dataset, capsys, mode="check", tokenizer=None):
    run = DryRun(mode)
    show_scores(run, rewards, dataset, tokenizer)
    return run, plain(capsys.readouterr().out)


def test_a_right_solution_earns_more_than_that_of_another_row(dataset, capsys):
    run, text = shown(build_rewards(["accuracy", "structure"], cache=False), dataset, capsys)
    assert "tried on 12 rows: their rationales, and those of other rows" in text
    assert "accuracy right solution 1.00 (0 for 0 of 12); another row's 0.0" in text
    assert "structure right solution 1.00" in text
    assert run.warnings == []


def test_a_reward_that_gives_right_solutions_nothing_is_named(dataset, capsys):
    run, _ = shown(build_rewards([boxed, "accuracy"], cache=False), dataset, capsys)
    assert [warning.split(":")[0] for warning in run.warnings] == [
        "reward 'boxed' gives 0 to 12 of 12 right solutions (the rows' own rationales)"
    ]


def test_a_reward_that_fails_shows_its_cause(dataset, capsys):
    run, text = shown(build_rewards([broken], cache=False), dataset, capsys)
    assert "24 without a score, such as: no server" in text
    assert "gives no score to any" in run.warnings[0]


def test_a_reward_that_breaks_the_contract_is_refused(dataset, capsys):
    run, _ = shown(build_rewards([wrong_type], cache=False), dataset, capsys)
    assert "returned 'good' (str)" in run.messages[0]


def test_a_reward_that_loads_a_model_waits_for_the_probe(dataset, capsys):
    arguments = {"structure": {"decomposer": "generative", "engine": "transformers:no/model"}}
    _, text = shown(build_rewards(["structure"], arguments, cache=False), dataset, capsys)
    assert "structure loads no/model: tried by --dry_run probe" in text
    served = {"structure": {"decomposer": "generative", "engine": "http://127.0.0.1:9/v1#m", "deadline": 1}}
    [reward] = build_rewards(["structure"], served, cache=False)
    assert not reward.function.loads_models
    assert reward.function.sends_requests


class Scorer(LocalServer):
    """Gives each sample the score 1; `requests`: the number of samples in each request."""

    def __init__(self):
        self.requests = []
        super().__init__()

    def answer(self, method, path, content):
        self.requests.append(len(json.loads(content)["samples"]))
        return 200, json.dumps({"scores": [1.0] * self.requests[-1]})


@pytest.fixture
def scorer():
    server = Scorer()
    yield server
    server.close()


def test_a_reward_that_asks_a_server_waits_for_the_probe_and_is_tried_on_two_rows(dataset, capsys, scorer):
    def rewards():
        return build_rewards(["http", "accuracy"], {"http": {"url": scorer.url}}, cache=False)

    _, text = shown(rewards(), dataset, capsys)
    assert "http sends requests to a server: tried by --dry_run probe" in text
    assert "accuracy right solution 1.00 (0 for 0 of 12)" in text
    assert scorer.requests == []
    show_scores(DryRun(), rewards(), dataset, None, has_probe=False)
    assert "http sends requests to a server: tried by rlkd rewards test" in plain(capsys.readouterr().out)
    _, text = shown(rewards(), dataset, capsys, mode="probe")
    assert "http right solution 1.00 (0 for 0 of 2)" in text
    assert scorer.requests == [4]


def test_after_a_refusal_no_server_is_asked(dataset, capsys, scorer):
    run = DryRun("probe")
    run.add("the server has no model 'mine'")
    show_scores(run, build_rewards(["http"], {"http": {"url": scorer.url}}, cache=False), dataset, None)
    assert "http sends requests to a server: not tried, since the run is refused (below)" in plain(
        capsys.readouterr().out
    )
    assert scorer.requests == []


def test_a_judge_says_whether_it_asks_a_server_or_loads_a_model(dataset, capsys):
    for engine, line in (
        ("http://127.0.0.1:9/v1#m", "sends requests to a server"),
        ("transformers:no/model", "loads no/model"),
    ):
        judge = build_rewards(["judge"], {"judge": {"engine": engine, "criteria": "Is it right?"}}, cache=False)
        _, text = shown(judge, dataset, capsys)
        assert f"judge {line}: tried by --dry_run probe" in text


def asking(completions, *, url="", **columns):
    pytest.fail("a server is asked")


asking.sends_requests = True


def test_a_reward_of_your_own_says_that_it_asks_a_server(dataset, capsys):
    for arguments in ({}, {"asking": {"url": "http://127.0.0.1:9"}}):
        _, text = shown(build_rewards([f"{__name__}.asking"], arguments, cache=False), dataset, capsys)
        assert "asking sends requests to a server: tried by --dry_run probe" in text


def test_a_reward_model_is_not_loaded(dataset, capsys):
    _, text = shown(["some/reward-model"], dataset, capsys)
    assert "reward-model a reward model, which is not loaded here" in text


def test_rows_without_rationales_are_tried_with_their_answers(capsys):
    rows = Dataset.from_list([{"prompt": "1 + 1?", "answer": "2"}, {"prompt": "1 + 2?", "answer": "3"}])
    run, text = shown(build_rewards(["accuracy"], cache=False), rows, capsys)
    assert "their gold answers" in text
    assert "right solution 1.00" in text
    assert run.warnings == []
    _, text = shown(build_rewards([boxed], cache=False), Dataset.from_list([{"prompt": "a"}]), capsys)
    assert "no row has a rationale or an answer" in text


def test_after_an_opened_thought_the_solution_ends_it():
    row = {"rationales": ["<think>\n1 + 1 = 2"], "answer": "2"}
    assert solution(row, opened=True) == "1 + 1 = 2\n#### 2\n</think>\n\n1 + 1 = 2\n#### 2"
    assert solution({"rationales": ["Hm.</think>\n#### 2"], "answer": "2"}, opened=True) == "Hm.</think>\n#### 2"
    assert solution({"rationales": None, "answer": "2"}) == "#### 2"


def test_rewards_of_ids_get_the_students_tokens(dataset, template_model):
    from functools import partial

    from rlkd.rendering import text_ids
    from trainers.common.student import read_model

    tokenizer = read_model(template_model("chatml")).tokenizer
    [reward] = build_rewards(["soft_overlong"], {"soft_overlong": {"max_completion_len": 60, "soft_punish_cache": 10}})
    trial = try_reward(reward, solved_rows(dataset), partial(text_ids, tokenizer, special=False))
    assert min(trial.right) < 0


def test_accuracy_that_prefers_nothing_is_named():
    trial = RewardTrial("accuracy", [1.0, 1.0], [1.0, 1.0])
    assert "as much as the right ones" in trial.warning()
    assert RewardTrial("accuracy", [1.0], [0.0]).warning() is None
