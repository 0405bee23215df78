"""Engines by spec: one string names the backend, the model and its options, in one of `FORMS`."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from rlkd.engines.base import Engine
from rlkd.registry import SpecError, build, registry, settable_parameters, suggestion

FORMS = """
    transformers:MODEL_OR_PATH        a model in this process, by hub id or folder
    transformers:embedded             the embedded default model
    transformers:NAME?dtype=bfloat16  the same with options: dtype, device, adapter, ...; joined by &
    vllm:NAME?dtype=float32           a model in this process under vLLM; options: dtype, adapter, max_model_len,
                                      gpu_memory_utilization, tensor_parallel_size, ...
    http://HOST:PORT/v1#MODEL         an OpenAI-compatible server; #MODEL may be left out where it serves one model;
                                      options before the #, as in http://HOST:PORT/v1?timeout=30#MODEL
    https://HOST/v1#MODEL             the same
    http://A:1/v1,http://B:1/v1#MODEL several servers with the same model
    ...?chat_template_kwargs={"enable_thinking":false}  arguments of the chat template, as JSON
    path/to/file.py:CLASS#MODEL       your own backend; options before the #, as in CLASS?batch=8#MODEL
    my_package.module.CLASS#MODEL     the same in an installed package; or NAME:MODEL where it has registered a name
    env:VARIABLE                      one of the above from the environment: env:RLKD_GSRM_SPEC below `rlkd serve`"""

_OWN_BACKEND = re.compile(
    r"(?P<name>.*?\.py:\w+|[A-Za-z_]\w*(?:\.\w+)+)(?:\?(?P<query>[^#]*))?(?:#(?P<model>.*))?", re.DOTALL
)


def open_engine(spec: str, *, defaults: Mapping[str, Any] | None = None, **options: Any) -> Engine:
    """The engine that `spec` names, without importing a model library, reading weights or sending anything.

    `options`: keyword arguments of its class. `defaults`: those for backends that have them, which others ignore.
    Raises `SpecError` (a `ValueError`) for a spec of another form, and for an option that the backend lacks.
    """
    spec = from_environment(spec, "an engine's spec")
    parts = _split(spec)
    if parts is None:
        raise SpecError(f"{without_secrets(spec)!r} does not name an engine. The forms are:{FORMS}")
    name, arguments, query = parts
    if query:
        options = _read_options(spec, query, name) | options
    for option in options:
        if option in arguments:
            raise SpecError(f"{without_secrets(spec)!r}: no parameter {option!r}, since the spec itself sets it")
    engine: Engine = build("engine", name, arguments | options, defaults=defaults).target
    return engine


def is_engine_spec(text: str) -> bool:
    """Whether a text has the form of an engine's spec, rather than that of a model's folder or hub id."""
    return text.startswith("env:") or _split(text) is not None


def _split(spec: str) -> tuple[str, dict[str, Any], str] | None:
    """The backend's name, the arguments that the spec itself sets, and the text of the options; None for no engine."""
    scheme, colon, rest = spec.partition(":")
    if scheme in ("http", "https"):
        url, _, model = spec.partition("#")
        address, _, query = url.partition("?")
        if not _are_options(scheme, query):  # a query of the address, which the engine refuses
            address, query = url, ""
        return (scheme, {"base_url": address, "model": model or None}, query) if rest.startswith("//") else None
    if colon and rest and scheme in registry("engine").names():
        model, _, query = rest.partition("?")
        return scheme, {"model": model}, query
    if (own := _OWN_BACKEND.fullmatch(spec)) is not None:
        return own["name"], {"model": own["model"]} if own["model"] else {}, own["query"] or ""
    return None


def _are_options(scheme: str, query: str) -> bool:
    """Whether all names in a query are options of a server's engine; the message on others must not show them."""
    if not query:
        return True
    names = {name for name, _ in parse_qsl(query, keep_blank_values=True)}
    return names <= set(settable_parameters(registry("engine").find(scheme).target)) - {"base_url", "model"}


def _read_options(spec: str, query: str, name: str) -> dict[str, Any]:
    target = registry("engine").find(name).target
    known = {} if not callable(target) else settable_parameters(target)
    takes_any = callable(target) and any(
        p.kind is p.VAR_KEYWORD for p in inspect.signature(target).parameters.values()
    )
    options: dict[str, Any] = {}
    for option, text in parse_qsl(query, keep_blank_values=True):
        if option not in known and not takes_any:
            raise SpecError(f"{spec!r}: no option {option!r}.{suggestion(option, known)}")
        options[option] = _read_option(spec, option, text, known.get(option))
    return options


def _read_option(spec: str, option: str, text: str, parameter: inspect.Parameter | None) -> Any:
    annotation = "" if parameter is None else parameter.annotation
    words = set(re.findall(r"\w+", getattr(annotation, "__name__", str(annotation))))
    if "bool" in words:
        if text.lower() not in ("true", "false"):
            raise SpecError(f"{spec!r}: {option}={text!r}, expected true or false")
        return text.lower() == "true"
    for convert in (int, float):
        if convert.__name__ in words:
            try:
                return convert(text)
            except ValueError:
                raise SpecError(f"{spec!r}: {option}={text!r}, expected a number") from None
    return text


def from_environment(text: str, what: str) -> str:
    """`text`, or for `env:VARIABLE` the variable's value; raises `SpecError` where it is not set."""
    scheme, _, name = text.partition(":")
    if scheme != "env":
        return text
    if not os.environ.get(name):
        raise SpecError(
            f"{text!r}: expected {what} in the environment variable {name!r}, which is not set. `rlkd serve` sets "
            "RLKD_<ROLE>_SPEC and RLKD_<ROLE>_URL for the command behind its `--`."
        )
    return os.environ[name]


def without_secrets(address: str) -> str:
    """The address for a message: without a user and password, and without a query.

    >>> without_secrets("ftp://user:secret@host/v1?key=secret")
    'ftp://***@host/v1?***'
    """
    shown = re.sub(r"^([\w+.-]+://)?.*@", r"\1***@", address, flags=re.DOTALL)
    return re.sub(r"\?.*", "?***", shown, flags=re.DOTALL)
