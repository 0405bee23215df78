"""The model card: what a run was and gained, without secrets and without paths that nobody typed."""

import pytest
from huggingface_hub import ModelCard

from rlkd.installation import HOME
from tests.helpers.run_folder import evaluation
from trainers.common.model_card import (
    CardFacts,
    DataFacts,
    RunOrigin,
    card_text,
    command_line,
    compose,
    data_facts,
    hub_id,
    license_of,
    masked,
)

OF_TRL = """---
licence: license
tags:
- trl
- grpo
---

# Model Card for None

This model is a fine-tuned version of [None](https://huggingface.co/None).

## Training procedure

This model was trained with RLKD, a method introduced in [a paper](https://huggingface.co/papers/2505.16142).
"""


def facts(**changes) -> CardFacts:
    values = {
        "name": "student",
        "method": "RLKD",
        "base": "embedded",
        "license": "apache-2.0",
        "is_adapter": True,
        "quantized": None,
        "settings": {"optimizer steps": 10, "teacher": None},
        "rewards": [("accuracy", 1.0, {}), ("structure", 0.5, {"alignment": "ordered"})],
        "origin": RunOrigin(
            command="python recipes/rlkd.py --seed 1",
            data=(
                DataFacts("training", "org/data", "train", 2000, "ab12"),
                DataFacts("held out", "my.jsonl", "test", 3, "c"),
            ),
        ),
        "evaluations": [
            evaluation(0, [0.0, 0.0, 1.0], [0.0, 0.5, 1.0]),
            evaluation(10, [1.0, 0.0, 1.0], [0.5, 0.5, 1.0]),
        ],
    }
    return CardFacts(**{**values, **changes})


def test_the_card_says_what_was_trained_on_what_and_what_it_gained() -> None:
    text = card_text(facts())
    assert "A LoRA adapter on `embedded` ([HuggingFaceTB/SmolLM2-135M-Instruct](https://huggingface.co/" in text
    assert "| `structure` | 0.5 | `alignment: ordered` |" in text
    assert "| training | `org/data` | train | 2,000 | `ab12` |" in text
    assert "python recipes/rlkd.py --seed 1" in text
    assert "| licence of the base | apache-2.0 |" in text
    assert "| greedy | 33.3% (95 % interval 10.0% to 90.0%, n = 3) |" in text
    assert "| +33.3% (no interval, n = 3) |" in text
    assert "| sampled |" in text
    assert "3 held-out rows of `my.jsonl`; the interval of the change is paired by row." in text
    assert "teacher" not in text


def test_a_card_without_evaluations_rewards_and_data_has_no_empty_tables() -> None:
    text = card_text(facts(evaluations=[], rewards=[], origin=RunOrigin(), base=None, is_adapter=False, license=None))
    assert "All weights of a model given as an object" in text
    for absent in ("Before and after", "Rewards", "Data", "```"):
        assert absent not in text
    assert "unknown: see the page of the base" in text


def test_a_change_whose_interval_contains_0_is_none() -> None:
    more = [evaluation(0, [0.0] * 20 + [1.0] * 20), evaluation(10, [1.0] * 3 + [0.0] * 19 + [1.0] * 18)]
    assert "which contains 0: no change is shown |" in card_text(facts(evaluations=more))
    more[1] = evaluation(10, [1.0] * 40)
    assert "contains 0" not in card_text(facts(evaluations=more))


def test_a_control_run_says_so_first() -> None:
    text = card_text(facts(origin=RunOrigin(controls={"shuffle_teachers": 3})))
    assert "**A control run** (`shuffle_teachers: 3`)" in text.partition("## ")[0]


def test_trls_part_on_the_method_stays_and_the_metadata_is_the_hubs(tmp_path) -> None:
    (tmp_path / "README.md").write_text(OF_TRL)
    compose(tmp_path / "README.md", facts(quantized="4 bit"))
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.to_dict() == {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "datasets": ["org/data"],
        "library_name": "peft",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["grpo", "lora", "rlkd", "trl"],
        "quantized_base": "4 bit",
    }
    assert "a method introduced in [a paper]" in card.text
    assert "None" not in card.text


@pytest.mark.parametrize(
    ("base", "known"),
    [
        ("embedded-warm", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("org/model", "org/model"),
        ("/home/me/.cache/huggingface/hub/models--org--model/snapshots/1a", "org/model"),
        ("lab-student", None),
        ("runs/sft/checkpoint-3", None),
        ("./model", None),
        (None, None),
    ],
)
def test_the_metadata_name_a_base_of_the_hub_or_none(base, known) -> None:
    assert hub_id(base) == known


def test_secrets_are_masked() -> None:
    given = {
        "engine": "http://me:pw@host:8000/v1#model,http://me:pw@other/v1",
        "api_key": "abc",
        "api_key_env": "JUDGE_KEY",
        "listed": ["https://host/v1?key=1", "hf_abcdefghijklmnopqrstuv", 3],
    }
    shown = str(masked(given))
    for secret in ("pw", "abc'", "key=1", "hf_abc"):
        assert secret not in shown
    for kept in ("***@host:8000/v1#model", "***@other/v1", "JUDGE_KEY", "3"):
        assert kept in shown
    command = ["my.py", "--hub_token", "hf_x", "--hub_token=hf_x", "--teacher", "http://me:pw@host/v1#m"]
    assert command_line(command) == (
        "python my.py --hub_token '***' '--hub_token=***' --teacher 'http://***@host/v1#m'"
    )


def test_secrets_are_found_in_each_spelling_and_in_json() -> None:
    given = {
        "token": "abc",
        "auth_token": "abc",
        "API_KEY": "abc",
        "headers": {"Authorization": "Bearer abc", "X-Api-Key": "abc"},
        "text": '{"password": "abc"}',
    }
    assert "abc" not in str(masked(given))
    assert masked({"token": "SCORER_TOKEN", "hub_token": None}) == {"token": "SCORER_TOKEN", "hub_token": None}
    command = ["my.py", "--api-key=plain", "--Auth-Token", "plain", '--validity_kwargs={"api_key": "plain"}']
    command += ["--reward_kwargs", '{"r": {"api_key": "plain"}}', "--teacher=http://me:plain@host/v1"]
    assert "plain" not in command_line(command)
    kept = ["my.py", "--reward_kwargs", '{"r":  {"weight": 1}}', "--eos_token=</s>", "reward=1"]
    assert command_line(kept) == "python my.py --reward_kwargs '{\"r\":  {\"weight\": 1}}' '--eos_token=</s>' reward=1"


def test_a_value_of_several_lines_is_one_row_of_the_table() -> None:
    text = card_text(facts(rewards=[("judge", 1.0, {"criteria": "Is it right?\n\nIs it | brief?\n"})]))
    assert "| `judge` | 1 | `criteria: Is it right? Is it \\| brief?` |" in text


def test_a_recipe_of_the_package_is_named_without_its_folder_and_another_script_as_typed() -> None:
    assert command_line([str(HOME / "recipes/rlkd.py"), "--max_steps", "2"]) == "python recipes/rlkd.py --max_steps 2"
    assert command_line(["/home/me/mine.py"]) == "python /home/me/mine.py"


def test_the_hash_is_of_the_content_in_order() -> None:
    rows = [{"id": "a", "question": "1?"}, {"id": "b", "question": "2?"}]
    found = data_facts("training", "rows.jsonl", "train", rows)
    assert (found.rows, len(found.sha256)) == (2, 64)
    assert data_facts("x", "y", None, [dict(reversed(row.items())) for row in rows]).sha256 == found.sha256
    assert data_facts("x", ["a.jsonl", "org/data"], None, rows).source == "a.jsonl, org/data"
    assert data_facts("x", "y", None, rows[::-1]).sha256 != found.sha256
    assert data_facts("x", "y", None, [rows[0], {"id": "b", "question": "3?"}]).sha256 != found.sha256


def test_the_licence_is_read_where_the_base_states_one(tmp_path) -> None:
    assert license_of("embedded-warm") == license_of("lab-student") == "apache-2.0"
    assert license_of(None) is license_of(str(tmp_path)) is license_of("nobody/nothing") is None
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert license_of(str(tmp_path)) == "mit"
    (tmp_path / "README.md").write_text("---\nlicense: [: }\n---\n")
    assert license_of(str(tmp_path)) is None
