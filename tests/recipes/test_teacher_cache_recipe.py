"""The cache recipe: how rows become traces, what it checks, and whole runs, one of them killed in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from rlkd.errors import UsageError
from rlkd.teachers.cache import CachedTeacher, CacheError
from rlkd.teachers.local import LocalTeacher
from rlkd.teachers.traces import trace_ids
from tests.helpers.scripts import load_script, run_here

PROMPT = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "What is 3 and 4?"}]


@pytest.fixture(scope="module")
def recipe() -> SimpleNamespace:
    return load_script("recipes/teacher_cache.py")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    with path.open("w") as file:
        for n in range(60):
            rationales = [f"{n} + {n + 1} = <<{n}+{n + 1}={2 * n + 1}>>{2 * n + 1}", " "][: 1 + (n == 5)]
            row = {"id": f"r{n}", "question": f"What is {n} and {n + 1}?", "answer": str(2 * n + 1)}
            file.write(json.dumps(row | {"rationales": rationales}) + "\n")
        file.write(json.dumps({"id": "none", "question": "What?", "answer": "1", "rationales": []}) + "\n")
    return path


@pytest.fixture
def arguments(recipe, rows, tiny_model, tmp_path) -> Any:
    def make(**changed: Any) -> Any:
        settings = {
            "dataset_name": str(rows),
            "system_prompt": "Be short.",
            "model_name_or_path": tiny_model,
            "teacher": tiny_model,
            "top_k": 5,
            "cache_dir": str(tmp_path / "cache"),
        }
        return recipe.TeacherCacheScriptArguments(**(settings | changed))

    return make


def test_each_rationale_is_a_trace_in_the_ids_that_the_trainer_makes(recipe, arguments, tiny_model) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    traces = list(recipe.to_traces(arguments().train_rows(), tokenizer, arguments()))
    assert len(traces) == 60
    prompt, completion = trace_ids(tokenizer, PROMPT, "3 + 4 = 7\n#### 7", 256)
    assert list(traces[3].ids) == prompt + completion
    assert traces[3].start == len(prompt)
    assert traces[5].name == "row r5, rationale 0"


def test_a_run_caches_the_teachers_output_and_a_second_one_sends_no_requests(
    recipe, arguments, tiny_model, capsys
) -> None:
    recipe.main(arguments())
    first = capsys.readouterr().out
    assert "60 traces computed, 0 cached before" in first
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    cached = CachedTeacher(arguments().cache_dir, tokenizer=tokenizer, k=5)
    prompt, completion = trace_ids(tokenizer, PROMPT, "3 + 4 = 7\n#### 7", 256)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    [found] = cached.top_k([prompt + completion], [len(prompt)])
    [live] = LocalTeacher(model, tokenizer, 5).top_k([prompt + completion], [len(prompt)])
    torch.testing.assert_close(found.logprobs, live.logprobs, atol=1e-3, rtol=0)
    assert cached.name.startswith(f"transformers:{tiny_model}#")
    assert cached.index["made_by"]["max_completion_length"] == 256

    recipe.main(arguments(teacher=tiny_model))
    assert "0 traces computed, 60 cached before" in capsys.readouterr().out


def test_the_type_of_the_weights_is_part_of_the_teachers_name(recipe, arguments, tiny_model, monkeypatch) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    stored = str(AutoConfig.from_pretrained(tiny_model).dtype).removeprefix("torch.")
    for device, dtype, expected in (
        ("cpu", "auto", "float32"),
        ("cuda", "auto", stored),
        ("cpu", "float16", "float16"),
    ):
        monkeypatch.setattr("rlkd.teachers.local.best_device", lambda device=device: device)
        teacher, _ = recipe.open_teacher(arguments(teacher_dtype=dtype), tokenizer)
        assert teacher.name.endswith(f"@{expected}")


def test_no_password_of_an_address_is_printed(recipe, arguments, tiny_model) -> None:
    with pytest.raises(UsageError, match="a user, password, query or fragment") as refused:
        recipe.open_teacher(arguments(teacher="http://me:TOPSECRET@h:1/v1"), AutoTokenizer.from_pretrained(tiny_model))
    assert "TOPSECRET" not in str(refused.value)


def test_truncated_traces_are_counted(recipe, arguments, capsys) -> None:
    recipe.main(arguments(max_completion_length=10))
    assert "60 traces" in (said := capsys.readouterr().out)
    assert "are truncated at max_completion_length 10" in said


def test_a_check_finds_the_damaged_shard(recipe, arguments, capsys) -> None:
    recipe.main(arguments())
    with pytest.raises(SystemExit) as fine:
        recipe.main(arguments(check_only=True))
    assert fine.value.code == 0
    shard = Path(arguments().cache_dir) / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(SystemExit) as broken:
        recipe.main(arguments(check_only=True))
    assert broken.value.code == 1
    assert f"{shard} is truncated" in capsys.readouterr().out


def test_another_teacher_is_refused_before_it_is_loaded(recipe, arguments, tiny_model, tmp_path, monkeypatch) -> None:
    recipe.main(arguments())
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "other")
    for part in ("config.json",):  # no weights at all: loading it would fail
        (tmp_path / "other" / part).write_bytes((Path(tiny_model) / part).read_bytes())
    with pytest.raises(CacheError, match=rf"the teacher is .* in the cache and transformers:{tmp_path}/other"):
        recipe.main(arguments(teacher=str(tmp_path / "other")))
    with pytest.raises(CacheError, match=r"k is 5 in the cache and 6 in this run"):
        recipe.main(arguments(top_k=6))


def test_a_teacher_with_another_vocabulary_is_refused(recipe, arguments, tmp_path) -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "words")
    with pytest.raises(UsageError, match=r"student and teacher have different tokenizers: id 0 is '<\|pad\|>'"):
        recipe.main(arguments(teacher=str(tmp_path / "words")))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"teacher": "http://127.0.0.1:1/v1"}, r"name the model, http://127.0.0.1:1/v1#MODEL"),
        ({"max_completion_length": 0}, r"max_completion_length=0: expected at least 1"),
    ],
)
def test_impossible_caches_are_refused(recipe, arguments, changed, message) -> None:
    with pytest.raises(UsageError, match=message):
        recipe.main(arguments(**changed))


def test_several_processes_are_refused(recipe, arguments, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"one process builds a cache.*--max-logprobs 5"):
        recipe.main(arguments())


def test_rows_without_rationales_are_refused_with_the_way_out(recipe, arguments, tmp_path) -> None:
    (tmp_path / "bare.jsonl").write_text('{"id": "a", "question": "What?", "answer": "1"}\n')
    with pytest.raises(UsageError, match=r"no row of .*bare.jsonl has a rationale.*--columns"):
        recipe.main(arguments(dataset_name=str(tmp_path / "bare.jsonl")))


@pytest.mark.slow
def test_a_killed_run_resumes_and_ends_with_the_same_bytes(root, rows, tiny_model, tmp_path) -> None:
    def words(folder: Path) -> list[str]:
        settings = {
            "--dataset_name": rows,
            "--model_name_or_path": tiny_model,
            "--teacher": tiny_model,
            "--top_k": 64,
            "--cache_dir": folder,
            "--shard_mib": 0.005,  # a trace each, so that there is time to kill it
        }
        return [str(part) for pair in settings.items() for part in pair]

    def content(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.glob("shard-*")}

    done = run_here("recipes/teacher_cache.py", words(tmp_path / "whole"), tmp_path)
    assert done.returncode == 0, done.stderr
    whole = content(tmp_path / "whole")
    assert len(whole) > 8

    cut = tmp_path / "cut"
    command = [sys.executable, root / "recipes/teacher_cache.py", *words(cut)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    limit = time.monotonic() + 240
    while len(content(cut)) < 3 and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was not killed in the middle"
    there = len(json.loads((cut / "index.json").read_text())["shards"])
    assert 2 <= there < len(whole)

    again = run_here("recipes/teacher_cache.py", words(cut), tmp_path)
    assert again.returncode == 0, again.stderr
    assert "0 cached before" not in again.stdout
    assert content(cut) == whole
    assert not list(cut.glob(".*.part"))
