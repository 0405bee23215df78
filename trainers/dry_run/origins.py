"""The keys of a run that differ from the defaults, and where each comes from: the config file or the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from trainers.common.model_card import masked_value

_LONGEST = 200


@dataclass(frozen=True)
class ChangedKey:
    """A key with its value in the run, as text, and its origin."""

    name: str
    value: str
    origin: str


def changed_keys(parsed: Sequence[Any], command: Sequence[str], machine: Mapping[str, Any]) -> Iterator[ChangedKey]:
    """The keys of the dataclasses `parsed` that were given, or follow from this machine, and are not the default."""
    file = config_file(command)
    written = yaml.safe_load(file.read_text(encoding="utf-8")) if file else {}
    typed = typed_keys(command)
    for part in parsed:
        for each in fields(part):
            default = each.default_factory() if each.default_factory is not MISSING else each.default
            value = getattr(part, each.name)
            names = {_bare(name) for name in (each.name, *each.metadata.get("aliases", ()))}
            if names & typed:
                origin = "command line"
            elif each.name in written:
                origin = "file"
            elif each.name in machine:
                origin = "this machine"
            else:
                continue
            if each.name != "dry_run" and value != default:
                yield ChangedKey(each.name, shown(each.name, value), origin)


def config_file(command: Sequence[str]) -> Path | None:
    """The file after `--config`."""
    for place, word in enumerate(command):
        name, equals, value = word.partition("=")
        if name == "--config" and (equals or place + 1 < len(command)):
            return Path(value if equals else command[place + 1])
    return None


def typed_keys(command: Sequence[str]) -> set[str]:
    """The keys on a command line, in the spelling of the config."""
    return {_bare(word.partition("=")[0]) for word in command if re.match(r"--[A-Za-z]", word)}


def shown(name: str, value: Any) -> str:
    """A value as text, shortened, without secrets."""
    value = masked_value(name, value)
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _bare(name: str) -> str:
    name = name.lstrip("-").replace("-", "_")
    return name.removeprefix("no_") if name.startswith("no_") else name
