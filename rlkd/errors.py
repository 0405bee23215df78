"""The one base of errors that are the user's to mend.

Recipes and the command line print these without a traceback: the message names the thing (file, line, key, reward,
server), the value found, the value expected and the way out. Anything else that is raised is a fault of the program,
and keeps its traceback.
"""


class UsageError(ValueError):
    """A config, a row, a spec or a file does not fit."""
