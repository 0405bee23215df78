"""Runs in the sandbox for `call_function`: loads the program, calls one function, writes its value as JSON to fd 3.

The program finds `exit` and `quit`, which `site` defines elsewhere, and the modules and names that answers in the form
of LeetCode use without an import, as LeetCode and LiveCodeBench import them. Nothing here is trusted: the program
shares this interpreter and may change anything in it.
"""

# ruff: noqa: PTH123

import builtins
import importlib
import json
import os
import sys
import types

# Of two modules with the same name, the later one counts: `Counter` is that of `collections`.
KNOWN = (
    "typing", "string", "re", "datetime", "random", "statistics", "operator", "io", "sys", "json", "copy", "itertools",
    "functools", "math", "bisect", "heapq", "collections",
)  # fmt: skip


def known_names() -> dict[str, object]:
    """What programs find without an import: the modules, and their names unless they are built in or a module's."""
    modules = {name: importlib.import_module(name) for name in KNOWN}
    names: dict[str, object] = {}
    for module in modules.values():
        public = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
        names |= {name: getattr(module, name) for name in public if not hasattr(builtins, name)}
    return names | modules


def main() -> None:
    """Arguments: the function's name. Files: /program.py, /arguments.json."""
    name = sys.argv[1]
    with open("/arguments.json", encoding="utf-8") as file:
        arguments = json.load(file)
    with open("/program.py", "rb") as file:
        source = file.read()
    vars(builtins).update(known_names(), exit=sys.exit, quit=sys.exit)
    # A module of its own and not __main__, so that `if __name__ == "__main__":` does not run.
    module = types.ModuleType("program")
    module.__file__ = "/program.py"
    sys.modules["program"] = module
    exec(compile(source, "/program.py", "exec"), module.__dict__)
    function = getattr(module, name, None)
    if function is None and hasattr(module, "Solution"):
        function = getattr(module.Solution(), name, None)
    if function is None:
        raise NameError(f"the program defines no function {name!r}")
    text = json.dumps(function(*arguments)).encode()
    while text:
        text = text[os.write(3, text) :]


main()
