"""What is known of a student before its weights load: its tokenizer, its context and its end tokens."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkd.context import context_length
from rlkd.errors import UsageError, first_line
from rlkd.merging import tokenizer_source
from rlkd.models import base_of_adapter, is_adapter, resolve_model
from rlkd.process import is_first_process
from rlkd.rendering import turn_end

logger = logging.getLogger(__name__)

Template = Mapping[str, Any] | None


@dataclass(frozen=True)
class ModelFacts:
    """A model's name in messages, its tokenizer, its context in tokens, and the ids that end a generation.

    `tokenizer` and `context` are None where they are unknown: a processor of images, a name that does not load.
    """

    name: str
    tokenizer: Any
    context: int | None
    ends: frozenset[int]


def read_model(
    model: Any, tokenizer: Any = None, *, revision: str | None = None, trust_remote_code: bool = False
) -> ModelFacts:
    """The facts of a model, given by name or loaded; nothing but its configuration and tokenizer is read.

    What cannot be read is left to the loading of the model, which says so.
    """
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig, ProcessorMixin

    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if not isinstance(model, str):
        name = str(model.config._name_or_path or type(model).__name__)
        config, generation, source = model.config, getattr(model, "generation_config", None), name
    else:
        name = model
        base, source = model_sources(model)
        config = _read(AutoConfig, base, **options)
        generation = _read(GenerationConfig, base, revision=revision)
    takes_images = getattr(config, "vision_config", None) is not None
    if isinstance(tokenizer, ProcessorMixin) or (tokenizer is None and takes_images):
        tokenizer = None
    else:
        tokenizer = tokenizer or _read(AutoTokenizer, source, **options)
    context = None if config is None else context_length(config)
    ends: set[Any] = {getattr(tokenizer, "eos_token_id", None)}
    for part in (generation, None if config is None else config.get_text_config()):
        given = getattr(part, "eos_token_id", None)
        ends |= set(given) if isinstance(given, list) else {given}
    return ModelFacts(name, tokenizer, context, frozenset(token for token in ends if token is not None))


def read_tokenizer(model: Any, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model, given by name or loaded; raises `UsageError` where it cannot be read."""
    from transformers import AutoTokenizer

    source = model_sources(model)[1] if isinstance(model, str) else model.config._name_or_path
    try:
        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"the tokenizer of {source!r} cannot be read: {first_line(error)}. Save one beside the model "
            f"(save_pretrained of the tokenizer)"
        ) from error


def reading_options(args: Any) -> dict[str, Any]:
    """The options of a run with which its student's configuration and tokenizer are read."""
    given = args.model_init_kwargs if isinstance(args.model_init_kwargs, dict) else {}
    trusted = given.get("trust_remote_code") or getattr(args, "trust_remote_code", False)
    return {"revision": given.get("revision"), "trust_remote_code": bool(trusted)}


def model_sources(name: str) -> tuple[str, str]:
    """Where the configuration and the tokenizer of a model name are; nothing is merged for an adapter's."""
    if not is_adapter(name):
        return resolve_model(name), resolve_model(name)
    folder = Path(name).expanduser()
    base = resolve_model(base_of_adapter(folder))
    return base, tokenizer_source(folder, base)


def check_turn_end(student: ModelFacts, template: Template = None) -> None:
    """Warn where the template ends a turn with a token that ends no generation: completions would run on."""
    if student.tokenizer is None or not student.ends or not getattr(student.tokenizer, "chat_template", None):
        return
    end = turn_end(student.tokenizer, template)
    if end is not None and end not in student.ends and is_first_process():
        logger.warning(
            "the chat template of %s ends a turn with %r, which ends no generation of it (%s do): its completions may "
            "run up to the limit",
            student.name,
            student.tokenizer.convert_ids_to_tokens(end),
            student.tokenizer.convert_ids_to_tokens(sorted(student.ends)),
        )


def _read(kind: Any, source: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(source, **options)
    except Exception:  # each library has its own errors
        return None
