"""Runs in the sandbox for `call_function`: loads the program, calls one function, writes its value as JSON to fd 3.

The program finds `exit` and `quit`, which `site` defines elsewhere, and the names of `typing`, which answers in the
form of LeetCode use without an import. Nothing here is trusted: the program shares this interpreter and may change
anything in it.
"""

# ruff: noqa: PTH123

import builtins
import json
import os
import sys
import types
import typing


def main() -> None:
    """Arguments: the function's name. Files: /program.py, /arguments.json."""
    name = sys.argv[1]
    with open("/arguments.json", encoding="utf-8") as file:
        arguments = json.load(file)
    with open("/program.py", "rb") as file:
        source = file.read()
    known = {each: getattr(typing, each) for each in typing.__all__}
    vars(builtins).update(known, exit=sys.exit, quit=sys.exit)
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
