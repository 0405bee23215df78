"""Whether a judge model answers with one of its choices at all.

A choice is compared by the log-probability of its first token. A model that begins with a thought gives all choices
almost none, and comparing them is comparing noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlkd.engines.base import Engine, EngineError, Prompt, run
from rlkd.errors import UsageError

# Our choice. A model that answers puts 0.1 and more on its choices, one that begins with a thought 1e-5 and less; even
# a random model over a few hundred tokens is above this.
MIN_MASS = 1e-3


def check_choice_mass(
    engine: Engine, prompt: Prompt, choices: Sequence[str], role: str, deadline: float | None = None
) -> None:
    """Raise `UsageError` where the choices have less than 0.1 % of the probability after an example prompt.

    So does an engine that gives no answer. `role` says in the message who needs it.
    """
    [reply] = run(engine.choose([prompt], choices, deadline=deadline))
    if isinstance(reply, EngineError):
        raise UsageError(f"{role}: {reply}") from reply
    mass = math.fsum(math.exp(value) for value in reply if not math.isnan(value))
    if mass < MIN_MASS:
        raise UsageError(
            f"{role}: {engine.name} puts {mass:.1g} of its probability on {' and '.join(choices)} where its reply "
            f"begins, expected {MIN_MASS:g} or more. A model that begins with a thought needs its template's switch "
            f'in the spec of the engine, such as ?chat_template_kwargs={{"enable_thinking":false}}; or name another '
            f"model"
        )
