"""The model card of a run, README.md in the folder of its model: what was trained, on what, how, and what it gained.

TRL writes a card of its own; `compose` keeps its part on the method, its citations and its versions, and its tags.
What a config holds is shown as the user typed it. A user, password or query in an address is masked, and so are keys
and tokens; nothing of the environment is shown.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import rlkd
from rlkd.engines.spec import without_secrets
from rlkd.installation import HOME
from rlkd.models import ADAPTED, EMBEDDED, EMBEDDED_HUB_ID, LAB_MODELS, LAB_UNTRAINED, public_name
from rlkd.report.held_out import GREEDY, SAMPLED, interval_of, paired_change
from rlkd.statistics import Interval

CARD = "README.md"
# The part of TRL's card that is kept begins here.
_METHOD = "## Training procedure"
_SECRET_KEYS = re.compile(r"(?:_token|api_?key|password|secret|authorization)$", re.I)
_NO_SECRET_KEYS = re.compile(r"(?:^|_)(?:bos|eos|pad|unk|per)_token$", re.I)
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")
_SECRETS = re.compile(r"\b(?:hf_|sk-)[A-Za-z0-9_-]{16,}")
# A comma ends an address only before the next one, since a password can have one.
_ADDRESS = re.compile(r"[\w.+-]+://(?:[^\s,'\"]|,(?![\w.+-]+://))+")
_MASK = "***"


@dataclass(frozen=True)
class DataFacts:
    """Rows of a run: what they are for, their source and split, how many, and the SHA-256 of their content.

    Several sources have a comma and a space between them.
    """

    use: str
    source: str
    split: str | None
    rows: int
    sha256: str


@dataclass(frozen=True)
class RunOrigin:
    """Where a run comes from: its command, its rows, the controls that are set, and settings of the recipe's own."""

    command: str = ""
    data: tuple[DataFacts, ...] = ()
    controls: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


def origin_of(
    script: Any,
    rows: Sequence[Mapping[str, Any]],
    test_rows: Sequence[Mapping[str, Any]] = (),
    settings: Mapping[str, Any] | None = None,
) -> RunOrigin:
    """The origin of a recipe's run: `script` holds its data keys; the command is that of this process."""
    data = [data_facts("training", script.dataset_name, script.dataset_train_split, rows)]
    if test_rows:
        name = script.dataset_test_name or script.dataset_name
        data.append(data_facts("held out", name, script.test_split, test_rows))
    controls = {name: getattr(script, name, None) for name in ("shuffle_teachers", "shuffle_steps", "shuffle_stages")}
    return RunOrigin(
        command=command_line(sys.argv),
        data=tuple(data),
        controls={name: value for name, value in controls.items() if value is not None},
        settings=settings or {},
    )


def data_facts(
    use: str, source: str | Sequence[str], split: str | None, rows: Sequence[Mapping[str, Any]]
) -> DataFacts:
    """The facts of rows; the hash is that of their JSON, keys in order, one row a line."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
        digest.update(b"\n")
    name = source if isinstance(source, str) else ", ".join(source)
    return DataFacts(use, name, split, len(rows), digest.hexdigest())


def command_line(arguments: Sequence[str]) -> str:
    """The command of a recipe as it can be shown: secrets masked, an included recipe without its folder.

    >>> command_line(["my.py", "--hub_token", "hf_abc", "--teacher", "http://me:pw@host/v1#m"])
    "python my.py --hub_token '***' --teacher 'http://***@host/v1#m'"
    """
    shown: list[str] = []
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if position == 0:
            path = Path(argument)
            included = path.is_absolute() and path.is_relative_to(HOME)
            shown.append(str(path.relative_to(HOME)) if included else argument)
        elif equals and name.startswith("-"):
            shown.append(f"{name}={masked_value(name, value)}")
        else:
            shown.append(masked_value(arguments[position - 1], argument))
    return shlex.join(["python", *shown])


def masked(value: Any) -> Any:
    """A value of a config, without the secrets in it, also where it is a text with JSON.

    >>> masked({"engine": "http://me:pw@host/v1?key=1", "api_key": "abc"})
    {'engine': 'http://***@host/v1?***', 'api_key': '***'}
    """
    if isinstance(value, Mapping):
        return {key: masked_value(str(key), inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked(inner) for inner in value]
    if isinstance(value, str):
        if value.lstrip()[:1] in ("{", "["):
            try:
                found = json.loads(value)
            except ValueError:
                found = None
            if found is not None and (shown := masked(found)) != found:
                return json.dumps(shown, ensure_ascii=False)
        return _SECRETS.sub(_MASK, _ADDRESS.sub(lambda found: without_secrets(found[0]), value))
    return value


def masked_value(name: str, value: Any) -> Any:
    """The value of a key or of an option, masked as a whole where the name says that it is a secret.

    >>> masked_value("--api-key", "abc"), masked_value("token", "abc"), masked_value("token", "SCORER_TOKEN")
    ('***', '***', 'SCORER_TOKEN')
    """
    name = name.lstrip("-").replace("-", "_")
    if value is None or isinstance(value, bool) or _NO_SECRET_KEYS.search(name):
        return masked(value)
    if name.lower() == "token":
        names_variable = isinstance(value, str) and _VARIABLE.fullmatch(value) is not None
        return value if names_variable else _MASK
    return _MASK if _SECRET_KEYS.search(name) else masked(value)


@dataclass(frozen=True)
class CardFacts:
    """What a card says.

    `base`: the student's name as the config has it. `quantized`: how its weights were loaded, such as `4 bit`.
    `settings`: what the first table lists. `rewards`: name, weight and parameters of each. `evaluations`: the lines of
    `eval.jsonl`.
    """

    name: str
    method: str
    base: str | None
    license: str | None
    is_adapter: bool
    quantized: str | None
    settings: Mapping[str, Any]
    rewards: Sequence[tuple[str, float, Mapping[str, Any]]]
    origin: RunOrigin
    evaluations: Sequence[Mapping[str, Any]]


def compose(path: Path, facts: CardFacts) -> None:
    """Write the card of a run, with what TRL's card at `path` says of the method, and with its tags."""
    from huggingface_hub import ModelCard, ModelCardData

    written = ModelCard.load(path, ignore_metadata_errors=True)
    _, found, of_trl = written.text.partition(_METHOD)
    tags = sorted({*(written.data.tags or ()), "rlkd", *(["lora"] if facts.is_adapter else [])})
    hub_base = hub_id(facts.base)
    sources = [name for data in facts.origin.data for name in data.source.split(", ") if _is_hub_id(name)]
    own: dict[str, Any] = {"quantized_base": facts.quantized} if facts.quantized else {}
    data = ModelCardData(
        base_model=hub_base,
        datasets=sorted(set(sources)) or None,
        library_name="peft" if facts.is_adapter else "transformers",
        license=facts.license,
        pipeline_tag="text-generation",
        tags=tags,
        **own,
    )
    text = card_text(facts) + (f"\n{found}{of_trl.rstrip()}\n" if found else "")
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(path)


def hub_id(base: str | None) -> str | None:
    """The base as the hub knows it; None for a folder, and for a model that is not there."""
    if base is None:
        return None
    name = EMBEDDED_HUB_ID if base in (EMBEDDED, *ADAPTED) else public_name(base)
    return name if _is_hub_id(name) else None


def license_of(base: str | None) -> str | None:
    """The licence of the base: of an embedded model, else as its model card says, in its folder or the hub's cache."""
    from huggingface_hub import ModelCard, try_to_load_from_cache

    if base is None:
        return None
    if base in (EMBEDDED, EMBEDDED_HUB_ID, *ADAPTED, *LAB_MODELS, LAB_UNTRAINED):
        return "apache-2.0"
    path: Any = Path(base).expanduser() / CARD
    if not path.is_file():
        path = try_to_load_from_cache(base, CARD) if _is_hub_id(base) else None
    try:
        found = ModelCard.load(path).data.to_dict().get("license") if isinstance(path, (str, Path)) else None
    except Exception:  # a card is a text of anybody's
        return None
    return found if isinstance(found, str) else None


def card_text(facts: CardFacts) -> str:
    """The card's own part, as Markdown."""
    base = f"`{masked(facts.base)}`" if facts.base else "a model given as an object"
    hub = hub_id(facts.base)
    if hub is not None and hub != facts.base:
        base += f" ([{hub}](https://huggingface.co/{hub}))"
    kind = "A LoRA adapter on" if facts.is_adapter else "All weights of"
    lines = [f"# {facts.name}", "", f"{kind} {base}, trained with {facts.method} by rlkd {rlkd.__version__}.", ""]
    for name, value in facts.origin.controls.items():
        lines += [f"**A control run** (`{name}: {value}`): what it learned is not what the method teaches.", ""]
    lines += ["Ask it: `rlkd chat FOLDER`, with the folder of this model.", ""]
    lines += _before_and_after(facts.evaluations, facts.origin.data)
    lines += ["## The run", ""]
    licence = facts.license or "unknown: see the page of the base"
    settings = {**facts.settings, "licence of the base": licence, "versions": versions()}
    lines += _table(["", ""], [[key, _shown(value)] for key, value in settings.items() if value is not None])
    if facts.origin.command:
        lines += ["```", facts.origin.command, "```", ""]
    if facts.rewards:
        lines += ["### Rewards", ""]
        cells = [[f"`{name}`", f"{weight:g}", _shown(parameters) or "-"] for name, weight, parameters in facts.rewards]
        lines += _table(["reward", "weight", "parameters"], cells)
    if facts.origin.data:
        lines += ["### Data", ""]
        cells = [
            [data.use, f"`{masked(data.source)}`", data.split or "-", f"{data.rows:,}", f"`{data.sha256}`"]
            for data in facts.origin.data
        ]
        lines += _table(["rows for", "source", "split", "rows", "SHA-256 of the rows"], cells)
    return "\n".join(lines).rstrip() + "\n"


def versions() -> str:
    """The versions of the packages that TRL's card does not list."""
    found = [f"rlkd {rlkd.__version__}"]
    for name in ("peft", "accelerate", "vllm", "bitsandbytes"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join([*found, f"Python {platform.python_version()}"])


def _before_and_after(records: Sequence[Mapping[str, Any]], data: Sequence[DataFacts]) -> list[str]:
    if not records:
        return []
    first, last = records[0], records[-1]
    rows = []
    for label, key, figures in (
        ("greedy", GREEDY, lambda record: record["accuracy"]),
        ("sampled", SAMPLED, lambda record: record["sampled"]["accuracy"]),
    ):
        if key == SAMPLED and not all("sampled" in record for record in (first, last)):
            continue
        cells = [label, *(f"{interval_of(figures(record)):.1%}" for record in (first, last))]
        change = paired_change(first, last, key) if last is not first else None
        rows.append([*cells, "-" if change is None else _change(change)])
    held_out = next((facts for facts in data if facts.use == "held out"), None)
    source = f" of `{masked(held_out.source)}`" if held_out else ""
    note = f"{len(last['rows'])} held-out rows{source}; the interval of the change is paired by row."
    if "sampled" in last:
        drawn = last["sampled"]
        note += f" Sampled: {drawn['samples']} completions per row at temperature {drawn['temperature']:g}."
    heads = ["accuracy", f"before (step {first['step']})", f"after step {last['step']}", "change"]
    return ["## Before and after", "", *_table(heads, rows), note, ""]


def _change(change: Interval) -> str:
    shown = math.isfinite(change.high - change.low) and not change.excludes_zero
    return f"{change:+.1%}" + (", which contains 0: no change is shown" if shown else "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [*("| " + " | ".join(map(_cell, line)) + " |" for line in lines), ""]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"`{key}: {_plain(inner)}`" for key, inner in masked(value).items())
    return _plain(masked(value))


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value.strip() if isinstance(value, str) else json.dumps(value, default=str)


def _is_hub_id(name: str) -> bool:
    """Whether a name is one of the hub, by its form: owner/name, and no file or folder here."""
    form = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None
    return form and not Path(name).exists() and not name.endswith((".jsonl", ".json", ".parquet", ".csv", ".gz"))
