"""`rlkd chat`: the answers are those of an engine with the prompt that the run used."""

import io
import json
from pathlib import Path

import pytest
from transformers.utils import logging

from rlkd import chat, cli
from rlkd.chat import Chat, run_settings
from rlkd.data.loading import to_dataset
from rlkd.engines import Sampling, open_engine, run
from rlkd.errors import UsageError
from tests.helpers.adapters import save_adapter

QUESTION = "Anna has 3 apples and buys 4. How many?"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RLKD_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def verbosity():
    """The command silences the logs of transformers, of this process."""
    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)


@pytest.fixture(scope="module")
def adapter(template_model, tmp_path_factory):
    return save_adapter(template_model("chatml"), tmp_path_factory.mktemp("adapter"))


def asked(model, prompt, **options) -> str:
    return run(open_engine(f"transformers:{model}").generate([prompt], Sampling(max_new_tokens=8, **options)))[0].text


def test_once_prints_the_greedy_answer_of_an_adapter(adapter, capsys) -> None:
    assert cli.main(["chat", str(adapter), "--once", QUESTION, "--max_new_tokens", "8"]) == 0
    expected = asked(adapter, [{"role": "user", "content": QUESTION}])
    assert capsys.readouterr().out.rstrip("\n") == expected.rstrip("\n")
    assert expected.strip()


def test_each_line_is_a_question_of_its_own(template_model, monkeypatch, capsys) -> None:
    answered = []
    monkeypatch.setattr(Chat, "answer", lambda self, question: answered.append(question))
    monkeypatch.setattr(chat.sys, "stdin", io.StringIO("one\n\n  two  \n"))
    assert cli.main(["chat", template_model("chatml")]) == 0
    assert answered == ["one", "two"]


def test_a_run_says_how_its_prompts_were_made_and_flags_win(adapter, template_model, tmp_path, monkeypatch) -> None:
    record = {
        "system_prompt": "Be brief.",
        "few_shot_examples": 1,
        "chat_template_kwargs": None,
        "max_completion_length": 8,
        "dataset_name": "gsm8k-sample",
    }
    (tmp_path / "evaluation.json").write_text(json.dumps(record))
    settings = run_settings(tmp_path)
    (tmp_path / "checkpoint-10").mkdir()
    assert settings == run_settings(tmp_path / "checkpoint-10")
    assert settings["max_new_tokens"] == 8
    prompt = to_dataset([{"question": QUESTION}], system_prompt="Be brief.", examples=1)["prompt"][0]
    assert len(prompt) == 4
    assert Chat(template_model("chatml"), settings).answer(QUESTION) == asked(template_model("chatml"), prompt)
    assert run_settings(tmp_path / "elsewhere" / "model") == {}
    monkeypatch.chdir(tmp_path)
    assert run_settings(Path("lab-student")) == {}
    assert run_settings(Path("checkpoint-10")) == settings
    monkeypatch.chdir(tmp_path / "checkpoint-10")
    assert run_settings(Path()) == settings


def test_a_model_without_a_template_continues_the_text(template_model) -> None:
    assert Chat(template_model("base"), {"max_new_tokens": 8}).answer("1 + 1 =") == asked(
        template_model("base"), "1 + 1 ="
    )


def test_sampled_answers_repeat_with_their_seed_and_are_not_greedy(template_model) -> None:
    settings = {"max_new_tokens": 16}
    greedy = Chat(template_model("chatml"), settings).answer(QUESTION)
    drawn = [
        Chat(template_model("chatml"), settings, temperature=2.0, seed=seed).answer(QUESTION) for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert greedy != drawn[0]


def test_the_answer_ends_with_the_context(template_model) -> None:
    talk = Chat(template_model("short"), {"max_new_tokens": 512})
    talk.answer("1?")
    with pytest.raises(UsageError, match="the model's context is 128"):
        talk.answer("x" * 200)


def test_a_question_that_is_too_long_does_not_end_the_session(template_model, monkeypatch, capsys) -> None:
    answered = []
    answer = Chat.answer
    monkeypatch.setattr(Chat, "answer", lambda self, question: answered.append(answer(self, question)))
    monkeypatch.setattr(chat.sys, "stdin", io.StringIO("x" * 200 + "\n1?\n"))
    assert cli.main(["chat", template_model("short"), "--max_new_tokens", "4"]) == 0
    assert len(answered) == 1
    assert "rlkd chat: the prompt has" in capsys.readouterr().err
    assert cli.main(["chat", template_model("short"), "--once", "x" * 200]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["./nothing"], "the model './nothing' cannot be read"),
        (["embedded", "--temperature", "-1"], "--temperature -1.0: expected 0"),
        (["embedded", "--max_new_tokens", "0"], "--max_new_tokens 0: expected at least 1"),
        (["lab-student", "--once", "?", "--chat_template_kwargs", "[1]"], "chat_template_kwargs"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, capsys) -> None:
    assert cli.main(["chat", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
