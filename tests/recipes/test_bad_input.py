"""Bad input of every kind: each ends with one message, with place, value and way out, before a model loads."""

import contextlib
import gzip
import json
import resource
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from tests.helpers.json_lines import write_json_lines
from tests.helpers.quick_retries import shorten_pauses
from tests.helpers.scripts import load_script, run_script

pytestmark = pytest.mark.slow

GOOD = {"question": "1 + 1?", "answer": "2", "rationales": ["1 + 1 = 2"]}
COMMON = (
    "--model_name_or_path model --dataset_name rows.jsonl --reward_funcs accuracy --reward_kwargs {} "
    "--reward_weights 1 --per_device_train_batch_size 4 --gradient_accumulation_steps 1 --num_generations 4 "
    "--max_completion_length 8 --eval_rows 0 --output_dir out --max_steps 1"
)
# Of each recipe: its configs, and arguments that let it run but for the mistake.
RECIPES = {
    "rlkd": ("trainers.RLKDConfig trl.ModelConfig", COMMON),
    "sft": (
        "trl.SFTConfig trl.ModelConfig",
        "--model_name_or_path model --dataset_name rows.jsonl --eval_rows 0 --output_dir out --max_steps 1",
    ),
    "validity_kd": (
        "trainers.ValidityKDConfig trl.ModelConfig",
        "--model_name_or_path model --teacher model --dataset_name rows.jsonl --eval_rows 0 "
        "--output_dir out --max_steps 1 --max_completion_length 8",
    ),
}
SCRIPTS = {"rlkd": "RLKDScriptArguments", "sft": "SFTScriptArguments", "validity_kd": "ValidityKDScriptArguments"}


def rows_with(**changed: Any) -> list[dict[str, Any]]:
    """Eight good rows and one with other fields; a field that is `...` is left out."""
    other = {key: value for key, value in {**GOOD, **changed}.items() if value is not ...}
    return [*([GOOD] * 8), other]


ROWS = {
    "list-question.jsonl": rows_with(question=["1 + 1?"]),
    "no-question.jsonl": rows_with(question=...),
    "empty-question.jsonl": rows_with(question=" "),
    "reserved.jsonl": rows_with(completion="2"),
    "answer.jsonl": rows_with(answer={"value": 2}),
    "rationales.jsonl": rows_with(rationales=3),
    "structures.jsonl": rows_with(structures=[[{"meta": "m", "result": "2"}]]),
    "no-user.jsonl": rows_with(prompt=[{"role": "system", "content": "Be brief."}]),
    "roles.jsonl": rows_with(question=..., messages=[{"from": "human", "value": "1 + 1?"}]),
    "messages.jsonl": rows_with(question=..., messages="1 + 1?"),
    "two-forms.jsonl": [{"prompt": "1 + 1?", "answer": "2"}, *rows_with()],
    "two-types.jsonl": rows_with(level=[1]) + rows_with(level="hard"),
    "flags.jsonl": [GOOD | {"ok": ["maybe"]}],
    "two-flags.jsonl": [GOOD | {"ok": [True, False]}],
    "half.jsonl": rows_with(question="half a pair: \ud83d"),
    "mostly-bad.jsonl": [GOOD, *([GOOD | {"question": 5}] * 2)],
    "one.jsonl": [GOOD] * 3,
    "wrong-traces.jsonl": [GOOD | {"rationales": ["1 + 1 = 3"]}] * 8,
    "unreadable.jsonl": [GOOD | {"answer": "???"}] * 8,
    "no-answers.jsonl": [{"question": "1 + 1?"}] * 8,
    "no-traces.jsonl": [{"question": "1 + 1?", "answer": "2"}] * 8,
    "long.jsonl": [GOOD | {"question": "1 + " * 3000 + "1?"}] * 8,
    "text-prompts.jsonl": [{"prompt": "1 + 1?", "answer": "2", "rationales": ["2"]}] * 8,
}
TEXTS: dict[str, str | bytes] = {
    "empty.jsonl": "",
    "rows.txt": "1 + 1?\n",
    "broken.jsonl": json.dumps(GOOD) + '\n{"question": "1 + 1?", \n',
    "list.jsonl": json.dumps(GOOD) + '\n["1 + 1?"]\n',
    "latin.jsonl": json.dumps(GOOD).encode() + b'\n{"question": "caf\xe9?"}\n',
    "broken.json": '[{"question": "1 + 1?"},\n {"question": }]',
    "cells.csv": "question,answer\n1 + 1?,2,3\n",
    "header.csv": "question,question\n1 + 1?,2\n",
    "cut.jsonl.gz": gzip.compress(json.dumps(GOOD).encode() * 999)[:60],
    "cut.parquet": b"PAR1 and no more",
    "broken.yaml": "learning_rate: 1e-5\n  max_steps: 3\n",
    "list.yaml": "- learning_rate\n",
    "empty.yaml": "",
    "latin.yaml": b"dataset_name: caf\xe9.jsonl\n",
    "key.yaml": "lerning_rate: 1.0e-5\n",
    "type.yaml": "max_steps: [1, 2]\n",
    "half.yaml": "max_steps: 2.5\n",
    "word.yaml": "learning_rate: fast\n",
    "kwargs.yaml": "reward_kwargs: {accuracy: 3}\n",
    "names.yaml": "reward_funcs: {accuracy: 1}\n",
    "columns.yaml": "columns: [question]\n",
    "column.yaml": "columns: {question: 3}\n",
    "syntax.py": "def reward(completions, **columns)\n    return []\n",
    "raises.py": "raise RuntimeError('no key')\n",
    "mine.py": "def score(completions, *, cap=3, **columns):\n    return [1.0] * len(completions)\n"
    "def graded(completions, level, **columns):\n    return [1.0] * len(completions)\n",
    "a-file": "x",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> Path:
    """A working folder with data, configs, rewards and models, each with one mistake."""
    made = tmp_path_factory.mktemp("bad-input")
    write_json_lines(made / "rows.jsonl", *([GOOD] * 8))
    for name, rows in ROWS.items():
        write_json_lines(made / name, *rows)
    for name, content in TEXTS.items():
        (made / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": "1 + 1?"}]), made / "columns.parquet")
    saved = datasets.Dataset.from_list([GOOD] * 8)
    datasets.DatasetDict({"train": saved}).save_to_disk(made / "saved")
    shutil.copytree(made / "saved" / "train", made / "damaged")
    next((made / "damaged").glob("*.arrow")).write_bytes(b"cut")
    (made / "script").mkdir()
    (made / "script" / "script.py").write_text("raise SystemExit('this was run')\n")
    (made / "nothing").mkdir()
    save_models(made, Path(tiny_model))
    return made


def save_models(made: Path, tiny: Path) -> None:
    """The model of `tiny`, and copies with one fault each."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(tiny, made / name))

    copy("model")
    (copy("no-config") / "config.json").unlink()
    (copy("broken-config") / "config.json").write_text('{"model_type": ')
    (copy("no-type") / "config.json").write_text('{"model_type": "lama"}')
    (copy("no-weights") / "model.safetensors").unlink()
    weights = (tiny / "model.safetensors").read_bytes()
    (copy("cut") / "model.safetensors").write_bytes(weights[:-100])
    (copy("no-bytes") / "model.safetensors").write_bytes(b"")
    (copy("pointer") / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 5\n")
    interrupted = copy("interrupted") / "model.safetensors"
    interrupted.rename(interrupted.with_name("model.safetensors.incomplete"))
    sharded = copy("sharded")
    (sharded / "model.safetensors").rename(sharded / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    untemplated = copy("no-template")
    for path in untemplated.glob("*.jinja"):
        path.unlink()
    # What the hub's cache has of a model whose weights were being fetched.
    stored = made / "hub" / "models--org--fetched"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text("0" * 40)
    shutil.copytree(tiny, stored / "snapshots" / ("0" * 40), ignore=shutil.ignore_patterns("*.safetensors"))
    (stored / "blobs").mkdir()
    (stored / "blobs" / "abc.incomplete").write_bytes(b"cut")
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "model", "r": 4, "target_modules": ["q_proj"]}
    for name, config in {"adapter": adapter, "no-base": {"peft_type": "LORA"}}.items():
        (made / name).mkdir()
        (made / name / "adapter_config.json").write_text(json.dumps(config))
    shutil.copy(made / "cut" / "model.safetensors", made / "no-base" / "adapter_model.safetensors")
    shutil.copytree(made / "adapter", made / "cut-adapter")
    (made / "cut-adapter" / "adapter_model.safetensors").write_bytes(weights[:50])


Ended = Callable[[str, str], str]


@pytest.fixture
def ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Ended:
    """Starts a recipe in this process, as its script does, with arguments behind those that let it run.

    Returns the message it ends with. A model that loads raises an error that no recipe handles.
    """
    import transformers
    from huggingface_hub import constants

    from trainers.common.arguments import start

    def refused(*args: Any, **kwargs: Any) -> None:
        pytest.fail("weights were loaded")

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", refused)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    shorten_pauses(monkeypatch)
    monkeypatch.chdir(folder)

    def end(recipe: str, arguments: str) -> str:
        script = loaded(recipe)
        kinds, common = RECIPES[recipe]
        monkeypatch.setattr(sys, "argv", [recipe, *shlex.split(common), *shlex.split(arguments)])
        classes = [script[SCRIPTS[recipe]], *map(imported, kinds.split())]
        config = Path(script["_RECIPES"]) / f"{recipe}.yaml"
        with pytest.raises(SystemExit) as stopped:
            start(script["main"], classes, default_config=config, dry_run=script["dry_run"])
        assert isinstance(stopped.value.code, str)
        return stopped.value.code

    return end


_scripts: dict[str, dict[str, Any]] = {}


def loaded(recipe: str) -> dict[str, Any]:
    """The names of a recipe's script, which is run once."""
    if recipe not in _scripts:
        _scripts[recipe] = vars(load_script(f"recipes/{recipe}.py"))
    return _scripts[recipe]


def imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(__import__(module, fromlist=[name]), name)


def faults(message: str, *parts: str) -> list[str]:
    """What is wrong with a message, which is to be short, to name its error and to have all parts."""
    found = [f"lacks {part!r}: {message}" for part in parts if part not in message]
    if not message.lstrip().split(":")[0].endswith("Error"):
        found.append(f"names no error: {message}")
    if "Traceback" in message:
        found.append("has a traceback")
    if len(message) >= 1500:
        found.append(f"has {len(message)} characters")
    return found


DATA = [
    ("--dataset_name rwos.jsonl", "there is no file", "rwos.jsonl", "Did you mean rows.jsonl?"),
    ("--dataset_name rows.json", "there is no file", "Did you mean rows.jsonl?"),
    ("--dataset_name mawps-smple", "'mawps-smple'", "Did you mean mawps-sample?"),
    ("--dataset_name rows.txt", "rows.txt: files of the kind .txt are not read", ".jsonl"),
    ("--dataset_name a-file", "a-file: files of the kind without a suffix are not read", ".jsonl"),
    ("--dataset_name '*.jsnl'", "*.jsnl: no file matches", "FOLDER/*.jsonl"),
    ("--dataset_name rows.jsonl nowhere.csv", "there is no file", "nowhere.csv"),
    ("--dataset_name saved --dataset_train_split trian", "saved has no split 'trian'", "train", "dataset_train_split"),
    ("--dataset_name damaged", "damaged cannot be read as a folder of save_to_disk"),
    ("--dataset_name nothing", "'nothing'", "cannot be loaded", "nothing/*.jsonl"),
    ("--dataset_name script", "is a Python script, which is not run", "refs/convert/parquet"),
    ("--dataset_name mawps-sample --dataset_train_split dev", "'dev'", "expected 'train' or 'test'"),
    ("--dataset_name empty.jsonl", "empty.jsonl", "has no rows"),
    ("--dataset_name broken.jsonl", "broken.jsonl, line 2: not JSON", "skip_bad_rows: true"),
    ("--dataset_name list.jsonl", 'list.jsonl, line 2: found list ["1 + 1?"]', "expected a JSON object"),
    ("--dataset_name latin.jsonl", "latin.jsonl, line 2: not JSON", "utf-8"),
    ("--dataset_name broken.json", "broken.json, line 2: not JSON", "an array of objects"),
    ("--dataset_name cells.csv", "cells.csv, row 0 (line 2): 3 cells, but the header has 2 columns"),
    ("--dataset_name header.csv", "header.csv: the column 'question' occurs twice"),
    ("--dataset_name cut.jsonl.gz", "cut.jsonl.gz cannot be read as .gz"),
    ("--dataset_name cut.parquet", "cut.parquet cannot be read"),
    (
        "--dataset_name columns.parquet",
        "row 0: neither 'prompt' nor 'question'",
        "text",
        "columns: {question: COLUMN}",
    ),
    ("--dataset_name half.jsonl", "half.jsonl, line 9, field 'question': the character", "half of a pair"),
    ("--dataset_name list-question.jsonl", "line 9, field 'question': expected text, found list", "skip_bad_rows"),
    ("--dataset_name empty-question.jsonl", "line 9, field 'question': expected text, found str"),
    ("--dataset_name no-question.jsonl", "line 9: neither 'prompt' nor 'question'", "columns: {question: COLUMN}"),
    ("--dataset_name reserved.jsonl", "line 9: the column name 'completion' is reserved", "{rationales: completion}"),
    ("--dataset_name answer.jsonl", "line 9, field 'answer': expected text, a number", 'found dict {"value": 2}'),
    ("--dataset_name rationales.jsonl", "line 9, field 'rationales': expected a list of texts, found int 3"),
    ("--dataset_name structures.jsonl", "line 9, field 'structures'", "unknown key 'result'"),
    ("--dataset_name no-user.jsonl", "line 9, field 'prompt': none of its 1 messages has the role 'user'"),
    ("--dataset_name roles.jsonl", "line 9, field 'prompt': expected messages with role and content", '"human"'),
    ("--dataset_name messages.jsonl", "line 9, field 'messages': expected a list of messages, found str"),
    ("--dataset_name two-forms.jsonl", "'two-forms-1', field 'prompt'", "all prompts must have the same type"),
    ("--dataset_name two-types.jsonl", "'two-types-17', field 'level': found str \"hard\"", "must have the same type"),
    ("--dataset_name mostly-bad.jsonl --skip_bad_rows", "2 of 3 rows are bad, more than half", "found int 5"),
    ('--columns \'{"question": "qestion"}\'', "line 1: no column 'qestion'", "Did you mean 'question'?"),
    ('--columns \'{"qestion": "question"}\'', "'qestion' is not a field of a row", "Did you mean 'question'?"),
    ('--dataset_name flags.jsonl --columns \'{"correct": "ok"}\'', "field 'correct': expected true or false", "maybe"),
    ('--dataset_name two-flags.jsonl --columns \'{"correct": "ok"}\'', "field 'correct': expected 1 flags, found"),
    ("--other_columns level", "other_columns: no row has a column 'level'", "question, answer"),
    ("--max_rows 0", "max_rows 0: expected at least 1"),
    ("--max_rows 3 --per_device_train_batch_size 16", "has 3 prompts, but one generation batch takes 4"),
    ("--dataset_name wrong-traces.jsonl", "wrong-traces.jsonl (split 'train') has no rows left"),
    ("--dataset_name unreadable.jsonl", "reward 'accuracy': 8 of 8 answers cannot be read", "'???'"),
    ("--dataset_name no-answers.jsonl", "reward 'accuracy' needs the column 'answer'", "leave the reward out"),
    ("--dataset_name long.jsonl", "4096", "8 of 8 rows"),
    ("--few_shot_examples 9", "few_shot_examples=9", "give 0 to 2"),
]
CONFIGS = [
    ("--config nowhere.yaml", "--config", "nowhere.yaml"),
    ("--config nothing", "--config", "nothing"),
    ("--config broken.yaml", "not YAML", "broken.yaml", "line 2"),
    ("--config list.yaml", "list.yaml", "mapping"),
    ("--config empty.yaml", "empty.yaml", "mapping"),
    ("--config latin.yaml", "latin.yaml", "UTF-8"),
    ("--config key.yaml", "lerning_rate", "did you mean learning_rate?"),
    ("--config type.yaml", "type.yaml", "max_steps", "[1, 2]", "expected a whole number"),
    ("--config half.yaml", "half.yaml", "max_steps", "2.5", "expected a whole number"),
    ("--config word.yaml", "learning_rate", "'fast'", "float"),
    ("--config columns.yaml", "columns: expected a mapping", "['question']"),
    ("--config column.yaml", "columns: question: expected the name of a column, found int 3"),
    ("--config", "--config needs a file"),
    ("--lerning_rate 1", "lerning_rate", "did you mean learning_rate?"),
    ("--max_steps many", "max_steps", "'many'", "int"),
    ("--use_peft maybe", "use_peft", "maybe"),
    ("--columns {bad", "columns", "{bad", "JSON"),
    ("--reward_kwargs {bad", "reward_kwargs", "{bad", "JSON"),
    ("--num_generations 3", "num_generations", "per_device_train_batch_size"),
    ("--eval_strategy steps --eval_steps 1", "eval_strategy", "eval_strategy: no"),
    ("--report_to wandbb", "report_to 'wandbb' is no tracker", "Did you mean 'wandb'?"),
    ("--resume_from_checkpoint nowhere", "nowhere: no complete checkpoint there", "checkpoint-N"),
    ("--push_to_hub", "push_to_hub: the hub cannot be used", "push_to_hub: false"),
    ("--output_dir a-file", "output_dir a-file: nothing can be written there", "a-file is a file"),
    ("--output_dir a-file/run", "output_dir a-file/run: nothing can be written there", "a-file is a file"),
    ("--output_dir /proc/run", "output_dir /proc/run: nothing can be written there"),
]
MODELS = [
    ("no-such-model", "model_name_or_path 'no-such-model' cannot be read", "save_pretrained"),
    ("./nowhere", "model_name_or_path './nowhere' cannot be read: there is no folder"),
    ("nothing", "model_name_or_path 'nothing' cannot be read"),
    ("no-config", "model_name_or_path 'no-config' cannot be read"),
    ("broken-config", "model_name_or_path 'broken-config' cannot be read", "config.json"),
    ("no-type", "model_name_or_path 'no-type' cannot be read", "lama"),
    ("no-weights", "no-weights has a config and no weights", "hf download"),
    ("cut", "model.safetensors is truncated", "bytes", "hf download"),
    ("no-bytes", "model.safetensors is no whole safetensors file (0 bytes)"),
    ("pointer", "model.safetensors is a pointer of Git LFS", "git lfs pull"),
    ("interrupted", "no weights", "their download was interrupted", "hf download"),
    ("sharded", "model.safetensors.index.json names model-00002-of-00002.safetensors, which is not there"),
    ("org/fetched", "no weights", "their download was interrupted", "hf download"),
    ("adapter", "'adapter' is a damaged adapter", "no weights"),
    ("cut-adapter", "'cut-adapter' is a damaged adapter: adapter_model.safetensors is no whole"),
    ("no-base", "no-base"),
    ("no-template", "no-template", "chat template"),
]
REWARDS = [
    ("--reward_funcs acuracy", "'acuracy'", "Did you mean 'accuracy'?"),
    ("--reward_funcs nowhere.py:score", "nowhere.py"),
    ("--reward_funcs syntax.py:reward", "syntax.py does not load", "SyntaxError"),
    ("--reward_funcs raises.py:reward", "raises.py does not load", "no key"),
    ("--reward_funcs mine.py:scor", "has no 'scor'", "Did you mean 'score'?"),
    ('--reward_funcs mine.py:score --reward_kwargs \'{"score": {"cpa": 3}}\'', "'cpa'", "Did you mean 'cap'?"),
    ("--reward_funcs mine.py:graded", "'graded'", "'level'"),
    ("--reward_kwargs '{\"acuracy\": {}}'", "acuracy", "accuracy"),
    ("--config kwargs.yaml --reward_kwargs '{\"accuracy\": 3}'", "accuracy", "3"),
    ("--reward_weights 1 2", "reward_weights", "2 entries"),
    ("--reward_weights heavy", "reward_weights", "'heavy'"),
    ('--reward_funcs structure --reward_kwargs \'{"structure": {"judge": "juge"}}\'', "'juge'"),
    (
        "--reward_funcs structure --reward_kwargs "
        '\'{"structure": {"decomposer": "generative", "engine": "http://127.0.0.1:9/v1#m"}}\'',
        "http://127.0.0.1:9",
    ),
    (
        "--reward_funcs structure --reward_kwargs "
        '\'{"structure": {"decomposer": "generative", "engine": "transformers:cut"}}\'',
        "model.safetensors is truncated",
    ),
]
OTHERS = [
    ("sft", "--dataset_name no-traces.jsonl", "none of the 8 rows has a rationale", '{"rationales": "COLUMN"}'),
    ("sft", "--adapter nothing", "--adapter nothing: no adapter_config.json there"),
    ("sft", "--model_name_or_path cut", "model.safetensors is truncated"),
    ("sft", "--output_dir a-file", "output_dir a-file: nothing can be written there"),
    ("validity_kd", "--teacher nowhere", "'nowhere'", "cannot be read"),
    ("validity_kd", "--teacher cut", "model.safetensors is truncated"),
    ("validity_kd", "--dataset_name no-traces.jsonl", "rationale"),
]


@pytest.mark.parametrize(("arguments", "parts"), [(case[0], case[1:]) for case in DATA])
def test_bad_data_are_named_with_their_place(ended, arguments, parts) -> None:
    assert faults(ended("rlkd", arguments), *parts) == []


@pytest.mark.parametrize(("arguments", "parts"), [(case[0], case[1:]) for case in CONFIGS])
def test_a_bad_setting_is_named_with_its_key(ended, arguments, parts) -> None:
    assert faults(ended("rlkd", arguments), *parts) == []


@pytest.mark.parametrize(("model", "parts"), [(case[0], case[1:]) for case in MODELS])
def test_a_model_that_cannot_be_read_is_named_before_it_loads(ended, model, parts) -> None:
    assert faults(ended("rlkd", f"--model_name_or_path {model}"), *parts) == []


@pytest.mark.parametrize(("arguments", "parts"), [(case[0], case[1:]) for case in REWARDS])
def test_a_reward_that_cannot_work_is_named_before_a_model_loads(ended, arguments, parts) -> None:
    assert faults(ended("rlkd", arguments), *parts) == []


@pytest.mark.parametrize(("recipe", "arguments", "parts"), [(*case[:2], case[2:]) for case in OTHERS])
def test_the_other_recipes_refuse_the_same(ended, recipe, arguments, parts) -> None:
    assert faults(ended(recipe, arguments), *parts) == []


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file grows beyond `size` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_found_before_a_model_loads(ended) -> None:
    with files_of_at_most(100_000):
        message = ended("rlkd", "--output_dir full")
    assert faults(message, "output_dir full: nothing can be written there", "free space") == []


def test_an_evaluation_ends_with_the_same_message_and_a_status(folder) -> None:
    arguments = "-m rlkd.cli evaluate --model_name_or_path cut --dataset_name rows.jsonl --out evaluation"
    done = run_script([sys.executable, *shlex.split(arguments)], folder)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "model.safetensors is truncated" in done.stderr
