import logging

import pytest

from rlkd.errors import UsageError
from trainers.dry_run.dry_run import DryRun, dry_run_status, no_probe, read_mode


@pytest.mark.parametrize(
    ("given", "mode"), [(None, None), ("False", None), ("true", "check"), ("check", "check"), ("Probe", "probe")]
)
def test_the_argument_is_read_as_a_mode(given, mode):
    assert read_mode(given) == mode


def test_another_word_is_refused():
    with pytest.raises(UsageError, match=r"dry_run 'fast': expected nothing .*, or probe"):
        read_mode("fast")


def test_all_refusals_are_listed_once_and_are_the_exit_status(capsys):
    run = DryRun()
    for message in ("no model", "no data", "no model"):
        with run.catch():
            raise UsageError(message)
    assert run.attempt(lambda: 1, 2) == 1
    assert run.finish() == 1
    shown = capsys.readouterr().out
    assert "refused (2)\n  1.            no model\n  2.            no data\n" in shown
    assert "would be refused: 2 reasons" in shown


def test_without_a_refusal_the_run_could_start(capsys):
    assert DryRun().finish() == 0
    assert "This run could start. Nothing was trained or written." in capsys.readouterr().out


def test_warnings_of_checks_are_listed_and_not_logged(capsys, caplog):
    run = DryRun()
    with run.listening():
        for _ in range(2):
            logging.getLogger("trainers.common.prompts").warning("a %s", "quirk")
        logging.getLogger("rlkd.data").info("a detail")
    run.finish()
    assert "warnings (1)\n  1.            a quirk\n" in capsys.readouterr().out
    assert caplog.records == []


def test_an_error_of_another_kind_keeps_its_traceback():
    def broken(run):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        dry_run_status("check", broken, [], [])


def test_only_the_first_process_prints(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    run = DryRun()
    run.section("rows")
    run.line("train", "3")
    assert run.finish() == 0
    assert capsys.readouterr().out == ""


def test_long_lines_are_wrapped_below_their_text(capsys):
    DryRun().line("label", "word " * 40)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("  label         word")
    assert second.startswith(" " * 16 + "word")


def test_a_recipe_that_trains_nothing_has_no_probe():
    run = DryRun("probe")
    no_probe(run)
    assert "trains nothing" in run.messages[0]
