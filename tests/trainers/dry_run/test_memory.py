from types import SimpleNamespace

import pytest
from datasets import Dataset

from rlkd.errors import UsageError
from rlkd.memory.plan import MemoryPhase, MemoryPlan
from tests.helpers.dry_runs import shown_by
from trainers.common.student import read_model
from trainers.dry_run.dry_run import DryRun
from trainers.dry_run.memory import show_memory

ROWS = Dataset.from_list([{"prompt": [{"role": "user", "content": "1 + 1?"}]}])
ARGS = SimpleNamespace(chat_template_kwargs=None)


def plan(args, model, peft_config, *, prompt_tokens):
    assert prompt_tokens > 4
    return MemoryPlan("cpu", "float32", (MemoryPhase("training", {"student weights": 3 << 20}),))


def test_the_table_of_the_estimate_is_shown(template_model, capsys):
    student = read_model(template_model("chatml"))
    shown = shown_by(lambda run: show_memory(run, plan, ARGS, "m", None, student, ROWS), capsys)
    assert "Memory, estimated, cpu, float32: 3 MiB (training)" in shown
    assert "student weights 3" in shown


def test_a_run_without_an_estimate_is_not_refused(template_model, capsys):
    def none(*_, **__):
        raise UsageError("this run shares weights")

    student = read_model(template_model("chatml"))
    shown = shown_by(lambda run: show_memory(run, none, ARGS, "m", None, student, ROWS), capsys)
    assert "no estimate: this run shares weights" in shown


def test_a_refused_run_has_no_estimate(template_model, capsys):
    run = DryRun()
    run.add("no data")
    show_memory(run, lambda *_, **__: pytest.fail("estimated"), ARGS, "m", None, read_model("no/model"), ROWS)
    assert capsys.readouterr().out == ""
