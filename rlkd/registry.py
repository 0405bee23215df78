"""One registry for everything a user can name in a config and bring along: rewards, validity scorers, selectors.

A *spec* is the text that names such a thing. It has one of three forms, each with an optional alias in front:

    accuracy                          a registered name
    my_package.rewards.brevity        a dotted path to a function or class
    path/to/file.py:brevity           a function or class in a file
    short=path/to/file.py:brevity     the same, known as "short" in weights, parameters and metrics

Names are registered by the decorator `register`, by a table of lazy dotted paths (`Registry.declare`), or by the
entry points of installed packages (group `rlkd.rewards`, ...). Listing names imports nothing.

    >>> from rlkd.registry import register, registry
    >>> @register("reward", "exclamations")
    ... def exclamations(completions, *, cap=3, **columns):
    ...     return [min(str(c).count("!"), cap) / cap for c in completions]
    >>> registry("reward").find("exclamations").name
    'exclamations'
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

from rlkd.errors import UsageError

Kind = Literal["reward", "validity", "selector"]


class SpecError(UsageError):
    """A spec, or the parameters that go with it, cannot be resolved; the message names the spec and the way out."""


@dataclass(frozen=True)
class Found:
    """What a spec resolved to: the object itself, the name it goes by, and where it came from."""

    name: str
    target: Any
    source: str


@dataclass(frozen=True)
class Built:
    """What `build` made of a spec: `target` is the object, or the function with the `parameters` that go with it."""

    name: str
    target: Any
    what: str
    parameters: dict[str, Any] | None = None


class Registry:
    """The names of one kind."""

    def __init__(self, kind: Kind):
        self.kind = kind
        self.group = f"rlkd.{kind}s" if not kind.endswith("y") else f"rlkd.{kind}"
        self._objects: dict[str, Any] = {}
        self._declared: dict[str, str] = {}

    def declare(self, paths: Mapping[str, str]) -> None:
        """Add names with the dotted path of each, imported only when the name is used."""
        self._declared.update(paths)

    def add(self, name: str, target: Any) -> None:
        """Register `target` under `name`; a name that stands for something else already is an error."""
        path = _dotted_path(target)
        known = _dotted_path(self._objects[name]) if name in self._objects else self._declared.get(name, path)
        if known != path:
            raise SpecError(
                f"{self.kind} name {name!r} is registered twice: by {known} and by {path}. Rename one of them."
            )
        self._objects[name] = target

    def names(self) -> dict[str, str]:
        """Every known name with its source (a dotted path, or the distribution that brings it). Imports nothing."""
        listed = dict(self._declared)
        for point in self._entry_points():
            listed.setdefault(point.name, f"{point.value.replace(':', '.')} ({_distribution(point)})")
        for name, target in self._objects.items():
            listed.setdefault(name, _dotted_path(target))
        return dict(sorted(listed.items()))

    def find(self, spec: str) -> Found:
        """Resolve a spec, or raise `SpecError`."""
        alias, rest = split_alias(spec)
        found = self._find(rest)
        return Found(alias, found.target, found.source) if alias else found

    def _find(self, spec: str) -> Found:
        if not spec:
            raise SpecError(f"an empty {self.kind} spec; give a name, a dotted path or path/to/file.py:name")
        if ".py:" in spec or spec.endswith(".py"):
            return self._from_file(spec)
        if spec in self._objects:
            return Found(spec, self._objects[spec], "registered")
        if spec in self._declared:
            return Found(spec, _import_dotted(self._declared[spec], spec), self._declared[spec])
        points = [point for point in self._entry_points() if point.name == spec]
        if len({point.value for point in points}) > 1:
            owners = ", ".join(f"{_distribution(point)} ({point.value})" for point in points)
            raise SpecError(
                f"{self.kind} {spec!r} is brought by several packages: {owners}. Name one by its dotted path."
            )
        if points:
            try:
                return Found(spec, points[0].load(), points[0].value)
            except Exception as error:
                owner = _distribution(points[0])
                raise SpecError(f"{self.kind} {spec!r} of the package {owner} does not load: {error!r}") from error
        if "." in spec:
            return Found(spec.rpartition(".")[2], _import_dotted(spec, spec), spec)
        raise SpecError(f"unknown {self.kind} {spec!r}.{suggestion(spec, self.names())}")

    def _from_file(self, spec: str) -> Found:
        path_text, _, attribute = spec.rpartition(":")
        if not attribute or path_text == "":
            raise SpecError(f"{spec!r}: write path/to/file.py:name, the name of the function or class in the file")
        path = Path(path_text).expanduser()
        if not path.is_file():
            raise SpecError(f"{spec!r}: there is no file {path.absolute()}")
        module = _load_file(path.resolve(), spec)
        if not hasattr(module, attribute):
            public = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
            raise SpecError(f"{spec!r}: {path} has no {attribute!r}.{suggestion(attribute, public)}")
        return Found(attribute, getattr(module, attribute), str(path))

    def _entry_points(self) -> list[EntryPoint]:
        return list(entry_points(group=self.group))


_REGISTRIES: dict[str, Registry] = {kind: Registry(kind) for kind in get_args(Kind)}


def registry(kind: Kind) -> Registry:
    """The one registry of a kind."""
    return _REGISTRIES[kind]


def register(kind: Kind, name: str) -> Callable[[Any], Any]:
    """Decorator that registers a function or class under `name` and returns it unchanged."""

    def decorate(target: Any) -> Any:
        registry(kind).add(name, target)
        return target

    return decorate


def build(
    kind: Kind,
    spec: str,
    parameters: Mapping[str, Any] | None,
    *,
    argument: str,
    label: str,
    error: type[Exception],
    defaults: Mapping[str, Any] | None = None,
) -> Built:
    """What a spec names, made with parameters from the config: a function as it is, else the object to be called.

    Args:
        kind, spec: see `Registry.find`.
        parameters: of this one.
        argument: what a function of this kind is called with; it tells such a function from one that makes an object.
        label: what the kind is called in errors.
        error: raised for everything that does not fit, naming the spec, the parameter and what there is.
        defaults: values for parameters that the target may or may not have; those that it has, and that `parameters`
            does not name, are filled in.
    """
    given = dict(parameters or {})
    try:
        found = registry(kind).find(spec)
        target, what = found.target, f"{label} {found.name!r}"
        if not (inspect.isclass(target) or inspect.isfunction(target)):
            if given:
                raise error(f"{what} is an object, which takes no parameters; found {', '.join(given)}")
            return Built(found.name, target, what)
        known = settable_parameters(target)
        given = {k: v for k, v in (defaults or {}).items() if k in known and k != argument} | given
        if inspect.isfunction(target) and argument in known:
            bindable = partial(target, **{argument: ()})  # so that an error does not offer it as a parameter
            check_arguments(bindable, {argument: (), **given}, what)
            return Built(found.name, target, what, given)
        check_arguments(target, given, what)
        return Built(found.name, target(**given), what)
    except error:
        raise
    except SpecError as cause:
        raise error(str(cause)) from cause
    except (TypeError, ValueError) as cause:
        raise error(f"{label} {spec!r} with {given}: {cause}") from cause


def split_alias(spec: str) -> tuple[str | None, str]:
    """`alias=rest` as (alias, rest), and any other spec as (None, spec).

    An equals sign further on is part of a path: `runs/lr=3/my.py:brevity` has no alias.
    """
    alias, equals, rest = spec.partition("=")
    if equals and not set(alias) & {"/", os.sep, ":"}:
        return alias.strip() or None, rest.strip()
    return None, spec.strip()


def absolute(spec: str) -> str:
    """The spec with the path of a file made absolute, for a process with another working directory."""
    alias, rest = split_alias(spec)
    path, colon, attribute = rest.rpartition(":")
    if not path.endswith(".py"):
        return spec
    return f"{alias}=" * bool(alias) + f"{Path(path).expanduser().resolve()}{colon}{attribute}"


def suggestion(word: str, known: Iterable[str]) -> str:
    """The end of an error message: what was probably meant, and everything there is."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    meant = f" Did you mean {close[0]!r}?" if close else ""
    return f"{meant} Known: {', '.join(known) if known else 'none'}."


def check_arguments(factory: Callable[..., Any], arguments: Mapping[str, Any], what: str) -> None:
    """Check that `factory(**arguments)` fits the signature; raise `SpecError` naming `what` and the parameters."""
    parameters = settable_parameters(factory)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(factory).parameters.values())
    for name in arguments:
        if name not in parameters and not takes_any:
            raise SpecError(f"{what} has no parameter {name!r}.{suggestion(name, parameters)}")
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in arguments]
    if missing:
        raise SpecError(f"{what} needs the parameter {', '.join(map(repr, missing))}. {describe(factory)}")


def settable_parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a callable that can be given by name."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {n: p for n, p in inspect.signature(factory).parameters.items() if p.kind in named}


def describe(factory: Callable[..., Any]) -> str:
    """`Parameters: a, b=3`, for error messages."""
    shown = [n if p.default is p.empty else f"{n}={p.default!r}" for n, p in settable_parameters(factory).items()]
    return f"Parameters: {', '.join(shown) if shown else 'none'}."


def _import_dotted(path: str, spec: str) -> Any:
    module_name, _, attribute = path.replace(":", ".").rpartition(".")
    try:
        module = _import_module(module_name)
    except Exception as error:
        raise SpecError(f"{spec!r}: cannot import {module_name!r}: {error!r}") from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        public = [name for name in dir(module) if not name.startswith("_")]
        raise SpecError(f"{spec!r}: {module_name} has no {attribute!r}.{suggestion(attribute, public)}") from None


def _import_module(name: str) -> ModuleType:
    """Import a module; the current folder is looked at last, so that a file there never shadows an installed one."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.split(".")[0] or str(Path.cwd()) in sys.path:
            raise
    sys.path.append(str(Path.cwd()))
    importlib.invalidate_caches()
    return importlib.import_module(name)


def _load_file(path: Path, spec: str) -> ModuleType:
    """Load a file under a private module name: no search path is touched, and its objects pickle within a run."""
    # The digest tells `a/b.py` from `a_b.py`.
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:12]
    name = f"rlkd_user_{''.join(c if c.isalnum() else '_' for c in path.stem)}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, Exception):
            raise
        raise SpecError(f"{spec!r}: {path} does not load: {error!r}") from error
    return module


def _dotted_path(target: Any) -> str:
    named = target if hasattr(target, "__qualname__") else type(target)
    return f"{named.__module__}.{named.__qualname__}"


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "unknown distribution"
