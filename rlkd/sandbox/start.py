"""Runs in the sandbox for `run_program`: executes the program as `__main__`, with `exit` and `quit`.

The interpreter runs without the module `site`, which defines these two for all other programs.
"""

# ruff: noqa: PTH123, SIM115

import builtins
import sys

vars(builtins).update(exit=sys.exit, quit=sys.exit)
sys.argv = ["/program.py"]
globals().update(__doc__=None, __file__="/program.py")
del builtins, sys
exec(compile(open(__file__, "rb").read(), __file__, "exec", dont_inherit=True))
