"""What a score depends on besides the sample: the identity of a reward, under which its scores are cached."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable
from functools import partial, reduce
from pathlib import Path
from typing import Any

from rlkd.cache import cache_key
from rlkd.registry import registry, split_alias

Origin = tuple[str, dict[str, Any]]
"""The spec and the parameters that a reward was built from."""


class Identity:
    """Name, source digests, parameters and fingerprint of a reward, as `parts`; raises `UnknownIdentity`."""

    def __init__(self, function: Callable[..., Any], origin: Origin | None, version: str):
        inner: Any = unwrapped(function)
        parameters: list[Any] = [origin[1] if origin else {}]
        if isinstance(function, partial):
            parameters += [list(function.args), function.keywords]
        target: Any = inner if inspect.isfunction(inner) else type(inner)
        # The parameters of an object and the values in a closure are unknown; a name may be another function's.
        if origin is None and (not _is_importable(inner) or inner.__closure__):
            raise UnknownIdentity(f"{function!r} is neither named by a spec nor an importable function")
        name = ""
        try:
            files = _source_files(inner)
            if origin is not None:
                spec = split_alias(origin[0])[1]
                name = spec.rpartition(":")[2] if ".py:" in spec else spec
                files |= _source_files_of_spec(origin[0])
            self._versions = {file: _version(file) for file in files}
            self._digests = {file: _digest(file) for file in files}
            self.parts = [name, target.__module__, target.__qualname__, version, parameters]
            self.parts += [sorted(set(self._digests.values())), getattr(inner, "fingerprint", "")]
            cache_key(self.parts)
        except (TypeError, ValueError, OSError) as error:  # SpecError is a ValueError
            raise UnknownIdentity(f"{function!r}: {error}") from error

    def is_current(self) -> bool:
        """Whether the source files still have the content of the start; reads a file again only if it was written."""
        try:
            for file, version in self._versions.items():
                if _version(file) != version and _digest(file) != self._digests[file]:
                    return False
        except OSError:
            return False
        return True


class UnknownIdentity(Exception):
    """Nothing tells a reward apart from another one, so its scores are not cached."""


def unwrapped(function: Any) -> Any:
    """The function or object behind parameters that the config has set."""
    return function.func if isinstance(function, partial) else function


def name_of(function: Any) -> str:
    """The name of a reward function in metrics and in the config, unless an alias is given."""
    inner = unwrapped(function)
    return str(getattr(inner, "__name__", type(inner).__name__))


def _is_importable(function: Any) -> bool:
    """Whether module and name lead to this function, which they do not for lambdas and inner functions."""
    if not inspect.isfunction(function):
        return False
    try:
        return reduce(getattr, function.__qualname__.split("."), sys.modules[function.__module__]) is function
    except (KeyError, AttributeError):
        return False


def _source_files(function: Any) -> set[str]:
    """The source files of a reward: its own, those of its decorators, and those of its base classes.

    Raises TypeError where there is no file.
    """
    if not inspect.isfunction(function) and not inspect.isclass(function):
        function = type(function)
    if inspect.isclass(function):
        sources = [kind for kind in function.__mro__ if kind.__module__ != "builtins"]
    else:
        sources = [function, inspect.unwrap(function)]
    return {inspect.getsourcefile(source) or "" for source in sources}


def _source_files_of_spec(spec: str) -> set[str]:
    """The same for the object that a spec names, which may make a reward whose own source is elsewhere."""
    found = registry("reward").find(spec)
    if inspect.isfunction(found.target) or inspect.isclass(found.target):
        return _source_files(found.target)
    file = found.source  # an object, with the parameters that stand where it is made
    if not file.endswith(".py"):
        module = sys.modules.get(file.replace(":", ".").rpartition(".")[0])
        file = getattr(module, "__file__", None) or ""
    return {file}


def _version(file: str) -> tuple[int, ...]:
    status = Path(file).stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _digest(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
