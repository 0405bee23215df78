import pytest

from rlkd.doctor import sandbox
from rlkd.doctor.sandbox import check_sandbox
from rlkd.sandbox import ProgramResult, SandboxUnavailable
from tests.helpers.sandbox import missing_for_sandbox


def test_a_program_really_runs():
    if missing_for_sandbox():
        pytest.skip(missing_for_sandbox())
    found = check_sandbox()
    assert found.level == "ok"
    assert "has run in it" in found.text


def test_a_machine_without_the_sandbox_is_a_warning(monkeypatch):
    def refuse(source):
        raise SandboxUnavailable("the kernel lacks user namespaces")

    monkeypatch.setattr(sandbox, "run_program", refuse)
    found = check_sandbox()
    assert found.level == "warning"
    assert "lacks user namespaces" in found.text
    assert "reward `code`" in found.way_out


def test_a_program_that_does_not_end_well_is_a_warning(monkeypatch):
    result = ProgramResult("killed", -9, "", "no memory", 0.1)
    monkeypatch.setattr(sandbox, "run_program", lambda source: result)
    assert "ended with killed: no memory" in check_sandbox().text
