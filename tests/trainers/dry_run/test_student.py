import pytest
from datasets import Dataset

from tests.helpers.dry_runs import plain, shown_by
from trainers.common.student import read_model
from trainers.dry_run.dry_run import DryRun
from trainers.dry_run.student import check_held_out_prompts, first_prompt, show_lengths, show_student

PROMPT = [{"role": "user", "content": "1 + 1?"}]


class Style:
    prompt_style = {"system_prompt": "Be brief.", "examples": 0}  # noqa: RUF012


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("chatml", ["a system role; prompts open no thought", "'<|im_end|>' ends a turn", "context 2048 tokens"]),
        (
            "no_system",
            ["no system role (a system prompt joins the question)", "'<end_of_turn>' ends a turn", "end a gen"],
        ),
        ("opens_thought", ["prompts end with an opened <think>", "<think>"]),
        ("think_special", ["<think> and </think> are special tokens"]),
        ("base", ["the tokenizer has no chat template", "ends a generation"]),
    ],
)
def test_the_quirks_of_a_template_are_shown(template_model, capsys, name, words):
    student = read_model(template_model(name))
    shown = shown_by(lambda run: show_student(run, student, PROMPT), capsys)
    for expected in words:
        assert expected in shown
    assert ("first prompt" in shown) == (name != "base")


def test_texts_pass_a_template_by_and_arguments_are_named(template_model, capsys):
    student = read_model(template_model("thinking"))
    assert "do not go through it" in shown_by(lambda run: show_student(run, student, "1 + 1?"), capsys)
    off = {"enable_thinking": False}
    shown = shown_by(lambda run: show_student(run, student, PROMPT, off), capsys)
    assert "arguments {'enable_thinking': False}" in shown
    assert r"<think>\n\n</think>" in shown


def test_a_model_that_cannot_be_read_has_no_lines_in_tokens(capsys):
    shown = shown_by(lambda run: show_student(run, read_model("no/model"), PROMPT), capsys)
    assert "none that can be read" in shown


def test_lengths_are_shown_against_the_limits(template_model, capsys):
    student = read_model(template_model("short"))
    rows = [{"prompt": PROMPT, "rationales": ["x" * n], "answer": None} for n in (5, 50, 60)]
    run = DryRun()
    show_lengths(run, student, Dataset.from_list(rows), completion=20)
    shown = plain(capsys.readouterr().out)
    assert "2 of 3 are longer than max_completion_length 20" in shown
    assert "+ max_completion_length 20 =" in shown
    assert "of 128" in shown
    assert "2 of 3 rationales are longer" in run.warnings[0]


def test_no_lengths_without_a_prompt_or_a_template(template_model, capsys):
    for name, rows in (("chatml", [{"answer": "1"}]), ("base", [{"prompt": PROMPT}])):
        student = read_model(template_model(name))
        assert shown_by(lambda run, s=student, r=rows: show_lengths(run, s, Dataset.from_list(r)), capsys) == ""
    assert first_prompt(None) is None
    assert first_prompt(Dataset.from_list([{"prompt": "a"}])) == "a"


def test_held_out_prompts_must_leave_room(template_model):
    run, student = DryRun(), read_model(template_model("short"))
    rows = [{"id": "1", "question": "x" * 100, "answer": "1"}]
    check_held_out_prompts(run, Style, student, rows, 64)
    assert "the held-out rows" in run.messages[0]
    check_held_out_prompts(other := DryRun(), Style, student, rows[:0], 64)
    assert other.messages == []
