"""What a score depends on besides the sample: the identity of a reward, under which its scores are cached."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable
from functools import lru_cache, partial, reduce
from pathlib import Path
from typing import Any

from rlkd.cache import cache_key
from rlkd.registry import registry, split_alias

Origin = tuple[str, dict[str, Any]]
"""The spec and the parameters that a reward was built from."""


def identify(function: Callable[..., Any], origin: Origin | None, version: str) -> list[Any] | None:
    """Name, source digests, parameters and fingerprint of a reward; None where these are not known.

    Scores of a reward without an identity are not cached. Reads a source file again only after it has changed.
    """
    inner: Any = unwrapped(function)
    parameters: list[Any] = [origin[1] if origin else {}]
    if isinstance(function, partial):
        parameters += [list(function.args), function.keywords]
    target: Any = inner if inspect.isfunction(inner) else type(inner)
    try:
        if origin is None:
            # The parameters of an object and the values in a closure are unknown; a name may be another function's.
            if not _is_importable(inner) or inner.__closure__:
                return None
            name, digests = "", _digests(inner)
        else:
            spec = split_alias(origin[0])[1]
            name = spec.rpartition(":")[2] if ".py:" in spec else spec
            digests = _digests(inner) | _digests_of_spec(origin[0])
        identity = [name, target.__module__, target.__qualname__, version, parameters]
        identity += [sorted(digests), getattr(inner, "fingerprint", "")]
        cache_key(identity)
    except (TypeError, ValueError, OSError):  # SpecError is a ValueError
        return None
    return identity


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


def _digests(function: Any) -> set[str]:
    """Digests of the source files of a reward: its own, those of its decorators, and those of its base classes.

    Raises TypeError or OSError where there is no file.
    """
    if not inspect.isfunction(function) and not inspect.isclass(function):
        function = type(function)
    if inspect.isclass(function):
        sources = [kind for kind in function.__mro__ if kind.__module__ != "builtins"]
    else:
        sources = [function, inspect.unwrap(function)]
    return {_digest(file) for file in {inspect.getsourcefile(source) or "" for source in sources}}


def _digests_of_spec(spec: str) -> set[str]:
    """The same for the object that a spec names, which may make a reward whose own source is elsewhere."""
    found = registry("reward").find(spec)
    if inspect.isfunction(found.target) or inspect.isclass(found.target):
        return _digests(found.target)
    file = found.source  # an object, with the parameters that stand where it is made
    if not file.endswith(".py"):
        module = sys.modules.get(file.replace(":", ".").rpartition(".")[0])
        file = getattr(module, "__file__", None) or ""
    return {_digest(file)}


def _digest(file: str) -> str:
    status = Path(file).stat()
    return _read_digest(file, (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))


@lru_cache(maxsize=1024)
def _read_digest(file: str, version: tuple[int, ...]) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
