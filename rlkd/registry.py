"""The registry: resolves the specs that a config holds, for every kind of object that a user can bring.

    accuracy                          a registered name
    my_package.rewards.brevity        a dotted path to a function or class
    path/to/file.py:brevity           a function or class in a file
    short=path/to/file.py:brevity     the same, called "short" in weights, parameters and metrics

A name is registered by the decorator `register`, by the `BUILT_IN` table of the kind's module, or by an entry point of
an installed package (group `rlkd.rewards`, `rlkd.engines`, ...). Listing the names imports none of the objects.

    >>> @register("reward", "exclamations")
    ... def exclamations(completions, *, cap=3, **columns):
    ...     return [min(str(c).count("!"), cap) / cap for c in completions]
    >>> build("reward", "loud=exclamations", {"cap": 2}).bound(completions=["Yes!"])
    [0.5]
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

from rlkd.errors import UsageError

Kind = Literal["reward", "alignment", "judge", "decomposer", "engine", "embedder", "validity", "selector"]


class _KindTraits(NamedTuple):
    """What tells one kind from another.

    label: the kind's name in error messages.
    module: a light module whose `BUILT_IN` maps names to dotted paths; imported at the first lookup.
    called_with: a function with one of these parameters is an object of the kind; any other function makes one.
    has_columns: whether the object is called with the columns of the data, so that only its parameters with a default
        can be set, and a function of nothing but `**columns` is an object too.
    """

    label: str
    module: str
    called_with: tuple[str, ...] = ()
    has_columns: bool = False


_KINDS: dict[Kind, _KindTraits] = {
    "reward": _KindTraits("reward", "rewards", ("prompts", "completions", "completion_ids"), has_columns=True),
    "alignment": _KindTraits("alignment", "rlkd.gsrm.alignment"),
    "judge": _KindTraits("judge", "rlkd.gsrm.judges"),
    "decomposer": _KindTraits("decomposer", "rlkd.gsrm.decomposers"),
    "engine": _KindTraits("engine", "rlkd.engines"),
    "embedder": _KindTraits("embedder", "rlkd.embedders"),
    "validity": _KindTraits("validity scorer", "rlkd.validity", ("questions",)),
    "selector": _KindTraits("selector", "rlkd.rationales.select", ("questions",)),
}


class SpecError(UsageError):
    """A spec, or the parameters that go with it, cannot be resolved; the message names the spec and the way out."""


@dataclass(frozen=True)
class Found:
    """The object that a spec names, the name it goes by, and its origin."""

    name: str
    target: Any
    source: str


@dataclass(frozen=True)
class Built:
    """The result of `build`: `target` is an object of the kind, or a function that is one itself.

    `label`: kind and name, for error messages. `parameters`: of the function, from the config; None for an object.
    """

    name: str
    target: Any
    label: str
    parameters: dict[str, Any] | None = None

    @property
    def bound(self) -> Any:
        """The target, with its parameters set."""
        return partial(self.target, **self.parameters) if self.parameters else self.target


class Registry:
    """The names of one kind."""

    def __init__(self, kind: Kind):
        self.kind = kind
        self.group = f"rlkd.{kind}s" if not kind.endswith("y") else f"rlkd.{kind}"
        self._objects: dict[str, Any] = {}

    @property
    def built_in(self) -> Mapping[str, str]:
        """The built-in names, with the dotted path of each."""
        # A kind's module that is being imported, and registers something on the way, has no table yet.
        return getattr(importlib.import_module(_KINDS[self.kind].module), "BUILT_IN", {})

    def add(self, name: str, target: Any) -> None:
        """Register `target` under `name`; raises `SpecError` for a name that belongs to something else."""
        path = _dotted_path(target)
        known = _dotted_path(self._objects[name]) if name in self._objects else self.built_in.get(name, path)
        if known != path:
            raise SpecError(
                f"{self.kind} name {name!r} is registered twice: by {known} and by {path}. Rename one of them."
            )
        self._objects[name] = target

    def names(self) -> dict[str, str]:
        """Every known name with its source: a dotted path, or the distribution that provides it."""
        listed = dict(self.built_in)
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
        if (path := self.built_in.get(spec)) is not None:
            return Found(spec, _import_dotted(path, spec), path)
        points = [point for point in self._entry_points() if point.name == spec]
        if len({point.value for point in points}) > 1:
            owners = ", ".join(f"{_distribution(point)} ({point.value})" for point in points)
            raise SpecError(
                f"several packages provide the {self.kind} {spec!r}: {owners}. Name one by its dotted path."
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


_REGISTRIES: dict[Kind, Registry] = {kind: Registry(kind) for kind in _KINDS}


def registry(kind: Kind) -> Registry:
    """The one registry of a kind."""
    return _REGISTRIES[kind]


def register(kind: Kind, name: str) -> Callable[[Any], Any]:
    """Decorator that registers a function or class under `name` and returns it unchanged."""

    def decorate(target: Any) -> Any:
        registry(kind).add(name, target)
        return target

    return decorate


def is_factory(kind: Kind, target: Any) -> bool:
    """Whether `target` must be called to get an object of the kind: a class, or a function that makes one."""
    if not inspect.isfunction(target):
        return inspect.isclass(target)
    traits = _KINDS[kind]
    parameters = inspect.signature(target).parameters
    if traits.has_columns and [p.kind for p in parameters.values()] == [inspect.Parameter.VAR_KEYWORD]:
        return False
    return not parameters.keys() & set(traits.called_with)


def build(
    kind: Kind,
    spec: str,
    parameters: Mapping[str, Any] | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
    error: type[Exception] = SpecError,
) -> Built:
    """Build the object that a spec names, with parameters from the config.

    `defaults` fill parameters that the target has and `parameters` does not set. `error` is raised for a spec or
    parameter that does not fit, naming it and the way out.
    """
    given = dict(parameters or {})
    label = _KINDS[kind].label
    try:
        found = registry(kind).find(spec)
        what = f"{label} {found.name!r}"
        makes_object = is_factory(kind, found.target)
        if makes_object or inspect.isfunction(found.target) or _KINDS[kind].has_columns:
            given = _filled(kind, found.target, given, defaults or {}, what)
            if makes_object:
                return Built(found.name, found.target(**given), what)
            return Built(found.name, found.target, what, given)
        if given:
            raise SpecError(f"{what} is an object, which takes no parameters; found {', '.join(given)}")
        return Built(found.name, found.target, what)
    except error:
        raise
    except SpecError as cause:
        raise error(str(cause)) from cause
    except (TypeError, ValueError) as cause:
        raise error(f"{label} {spec!r} with {given}: {cause}") from cause


def _filled(kind: Kind, target: Any, given: dict[str, Any], defaults: Mapping[str, Any], what: str) -> dict[str, Any]:
    if not callable(target):
        raise SpecError(f"{what} is not a function or class, but {target!r}")
    traits, parameters = _KINDS[kind], settable_parameters(target)
    if traits.has_columns and not is_factory(kind, target):
        _check_settable(parameters, given, what)
        return given
    reserved = () if is_factory(kind, target) else traits.called_with
    given = {name: v for name, v in defaults.items() if name in parameters and name not in reserved} | given
    check_arguments(target, given, what, reserved)
    return given


def _check_settable(parameters: Mapping[str, inspect.Parameter], given: Iterable[str], what: str) -> None:
    """Check that a function over columns has the given parameters, each with a default."""
    from rlkd.data.rows import TRL_ARGUMENTS

    own = {name: p.default for name, p in parameters.items() if name not in TRL_ARGUMENTS}
    settable = [name for name, default in own.items() if default is not inspect.Parameter.empty]
    for name in given:
        if name not in own:
            raise SpecError(f"{what} has no parameter {name!r}.{suggestion(name, settable)}")
        if name not in settable:
            raise SpecError(
                f"{what}: {name!r} has no default, so it is a column of the data. Parameters with a default: "
                f"{', '.join(settable) or 'none'}."
            )


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
    """The end of an error message: the likely word, and all known ones."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    meant = f" Did you mean {close[0]!r}?" if close else ""
    return f"{meant} Known: {', '.join(known) if known else 'none'}."


def check_arguments(
    factory: Callable[..., Any], arguments: Mapping[str, Any], what: str, reserved: Collection[str] = ()
) -> None:
    """Check that `factory(**arguments)` fits the signature; raise `SpecError` naming `what` and the parameters."""
    parameters = {name: p for name, p in settable_parameters(factory).items() if name not in reserved}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(factory).parameters.values())
    for name in arguments:
        if name in reserved or (name not in parameters and not takes_any):
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
    """Import a module; the current folder comes last, so that a file there never shadows an installed module."""
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
