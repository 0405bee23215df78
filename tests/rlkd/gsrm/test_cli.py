import json
import subprocess
import sys

import pytest

from rlkd import cli
from rlkd.data.samples import sample_rows
from rlkd.errors import UsageError
from rlkd.gsrm.cli import EXAMPLE_STUDENT, main
from tests.helpers.quick_retries import shorten_pauses

ROW = sample_rows("rl")[0]


def shown(capsys, *arguments):
    assert main([*map(str, arguments)]) == 0
    return " ".join(capsys.readouterr().out.split())


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("arguments", [["gsrm", "--help"], ["gsrm", "evaluate", "--help"], ["gsrm", "explain"]])
def test_help_and_the_example_need_neither_torch_nor_numpy(arguments):
    code = (
        "import sys\nfrom rlkd.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'transformers', 'trl', 'numpy', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert len(done.stdout) > 200


def test_the_command_is_one_of_rlkds(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "Evaluates structure models" in capsys.readouterr().out


# explain


def test_without_arguments_an_example_shows_steps_verdicts_branches_and_the_arithmetic(capsys):
    text = shown(capsys, "explain")
    assert "branch 0: 0.714" in text
    assert "the maximum over branches counts" in text
    assert "branch 1: 0.143" in text
    assert "yes / yes / no" in text
    assert "step 2 ~ 2: answer differs: 1 x 1/2 = 0.5" in text
    assert "sum R: 1 + 0.5 + 1 = 2.5" in text
    assert "alignment ordered: 2.5 / 3.5 = 0.7143 (mean of 4 student and 3 teacher steps)" in text


def test_the_cascade_shows_where_the_chain_breaks(capsys):
    text = shown(capsys, "explain", "--alignment", "teacher")
    assert "step 2: g = 1, answer differs: 1 x 1/2 = 0.5" in text
    assert "alignment teacher: 1.5 / 3 = 0.5 (steps of the longest branch)" in text
    assert "The chain breaks at step 3: the student turns to 'For the sold ones" in text


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ("sum", "alignment sum: 1.5 / 1 = 1.5 (the paper's sum is not divided)"),
        ("f1", "alignment f1: 1.5 / 3.5 = 0.4286 (mean of 4 student and 3 teacher steps)"),
        ("answers", "alignment answers: 2 / 3.5 = 0.5714 (mean number of answers of 4 and 3)"),
    ],
)
def test_every_rule_shows_its_own_division(capsys, rule, line):
    assert line in shown(capsys, "explain", "--alignment", rule)


def test_files_of_student_and_teachers_are_compared(capsys, tmp_path):
    student = write(tmp_path, "student.txt", "So 2 + 3 = 5 pens.")
    wrong = write(tmp_path, "one.txt", "So 9 - 1 = 8 days pass.")
    right = write(tmp_path, "two.txt", "So 2 + 3 = 5 pens.")
    text = shown(
        capsys, "explain", "--student", student, "--teacher", wrong, right, "--question", "How many [bold]pens[/bold]?"
    )
    assert "How many [bold]pens[/bold]?" in text
    assert "teacher branch 1" in text
    assert "alignment ordered: 1 / 1 = 1" in text


def test_a_row_of_a_data_file_is_the_teacher(capsys, tmp_path):
    student = write(tmp_path, "student.txt", ROW["rationales"][0])
    text = shown(capsys, "explain", "--student", student, "--data", "gsm8k-sample", "--row", ROW["id"])
    assert ROW["question"].split()[0] in text
    assert "= 1 (mean of " in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--student", "here.txt"], "--student FILE and --teacher FILE"),
        (["--data", "gsm8k-sample"], "goes with --data, --row and --student"),
        (
            ["--data", "gsm8k-sample", "--row", "x", "--student", "here.txt"],
            "gsm8k-sample has no row 'x'; it has gsm8k-",
        ),
        (["--student", "nowhere.txt", "--teacher", "here.txt"], "nowhere.txt cannot be read as text"),
        (["--student", "here.txt", "--teacher", "talk.txt"], "not applicable: no teacher trace has a step"),
        (["--rollouts", "nowhere.jsonl"], "nowhere.jsonl cannot be read as rollouts"),
        (["--rollouts", "here.txt"], "here.txt cannot be read as rollouts"),
        (["--rollouts", "here.txt", "--student", "here.txt"], "leave out --student"),
        (["--decomposer", "prompted"], "decomposer 'prompted' needs an engine"),
        (["--judge", "model"], "judge 'model' needs an engine"),
        (["--threshold", "7"], "threshold 7.0"),
    ],
)
def test_options_that_contradict_each_other_are_refused_with_the_way_out(tmp_path, monkeypatch, arguments, message):
    write(tmp_path, "here.txt", EXAMPLE_STUDENT + "\n")
    write(tmp_path, "talk.txt", "I would rather not say.\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as refused:
        main(["explain", *arguments])
    assert message in str(refused.value)


def a_rollout(step, value, detail=True):
    found = {
        "student": [{"meta": "How many?", "question": "2 + 3", "answer": "6"}],
        "teacher": [{"meta": "How many?", "question": "2 + 3", "answer": "5"}],
        "verdicts": [{"meta": True, "question": True, "answer": False}],
        "steps": [0.5],
        "alignment": "teacher",
        "branch": 0,
        "divisor": 1.0,
        "matches": None,
    }
    structure = {"status": "score", "value": value, "detail": found} if detail else {"status": "not_applicable"}
    return {
        "step": step,
        "id": f"row-{step}-{value}",
        "prompt": [{"role": "user", "content": "How many?"}],
        "completion": "2 + 3 = 6",
        "answer": "5",
        "rewards": {"structure": structure},
        "advantage": 0.0,
    }


@pytest.fixture
def rollouts(tmp_path):
    records = [a_rollout(1, 0.25), a_rollout(2, 0.5), a_rollout(2, 0.75), a_rollout(3, 0.0, detail=False)]
    text = "".join(json.dumps(record) + "\n" for record in records)
    return write(tmp_path, "rank0.jsonl", text + '{"step": 4, "pro')  # a kill cut the last line short


def test_the_best_recorded_rollout_is_explained_without_a_new_judgement(capsys, rollouts):
    text = shown(capsys, "explain", "--rollouts", rollouts)
    assert "row row-2-0.75" in text
    assert "step 1: g = 1, answer differs: 1 x 1/2 = 0.5" in text


def test_a_rollout_is_chosen_by_step_and_index(capsys, rollouts):
    assert "row row-2-0.5" in shown(capsys, "explain", "--rollouts", rollouts, "--step", 2, "--index", 0)
    assert "No reward of this rollout compared structures" in shown(
        capsys, "explain", "--rollouts", rollouts, "--step", 3
    )
    with pytest.raises(UsageError, match=r"--index 2: .* has 2 rollouts of step 2, from 0 on"):
        main(["explain", "--rollouts", str(rollouts), "--step", "2", "--index", "2"])
    with pytest.raises(UsageError, match="no rollout of step 9"):
        main(["explain", "--rollouts", str(rollouts), "--step", "9"])


# evaluate


def test_an_evaluation_prints_tables_and_writes_every_figure(capsys, tmp_path):
    rows = [
        {
            "question": f"How many, with {i}?",
            "rationales": [
                {"source": "human", "text": f"So {i} + 1 = {i + 1} pens.", "correct": True},
                {"source": "m", "text": f"So {i} + 1 = {i + 1} pens.", "correct": True},
                {"source": "n", "text": f"So {i} + 1 = {i + 2} pens.", "correct": False},
            ],
        }
        for i in range(10, 16)
    ]
    rationales = write(tmp_path, "rationales.jsonl", "\n".join(map(json.dumps, rows)))
    figures = tmp_path / "new" / "figures.json"
    text = shown(
        capsys, "evaluate", "--rows", 6, "--rationales", rationales, "--first", 1, "--limit", 4, "--draws", 50,
        "--alignment", "teacher", "answers", "--json", figures,
    )  # fmt: skip
    assert "solutions joined into one paragraph" in text
    assert "alignment answers: swapped traces fall to the shuffled level" in text
    assert "structure, answers, shuffled teacher" in text
    found = json.loads(figures.read_text())
    assert (found["setup"]["rows"], found["setup"]["rated_questions"]) == (6, 4)
    assert found["joined"]["parse rate"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 6}
    [row] = [row for row in found["auroc"] if row["name"] == "structure, answers"]
    assert row["pooled"]["value"] == 1.0


def test_rows_of_a_data_file_are_evaluated(capsys, tmp_path):
    rows = [{k: row[k] for k in ("question", "rationales", "structures")} for row in sample_rows("test")[:3]]
    data = write(tmp_path, "rows.jsonl", "\n".join(map(json.dumps, rows)))
    assert "rows 3" in shown(capsys, "evaluate", "--data", data, "--draws", 20, "--alignment", "answers")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "0"], "nothing to evaluate"),
        (["--rows", "1"], "rows: one problem is not enough"),
        (["--rationales", "nowhere.jsonl"], "there is no file"),
        (["--decomposer", "generative"], "decomposer 'generative' needs an engine"),
        (["--decomposer", "prompted", "--engine", "http://localhost:1/v1"], "name the model"),
    ],
)
def test_an_evaluation_that_cannot_be_done_is_refused_before_it_starts(arguments, message):
    with pytest.raises(UsageError) as refused:
        main(["evaluate", *arguments])
    assert message in str(refused.value)


def test_a_server_that_does_not_answer_is_named_before_anything_is_decomposed(monkeypatch):
    shorten_pauses(monkeypatch)
    with pytest.raises(UsageError, match="localhost:1"):
        main(["evaluate", "--decomposer", "prompted", "--engine", "http://localhost:1/v1#m", "--rows", "2"])
