"""Files with rewards as users write them, and a record of their calls."""

from pathlib import Path

# Rewards that hang, fail, log and are scored sample by sample.
MISBEHAVING = '''
import os, pathlib, sys, time
from dataclasses import dataclass

from rewards import Failed, Provisional, RewardError, RewardOptions, Scored

SHARED = RewardOptions(per_sample=True, timeout=60.0)


def note(text):
    """Calls are counted in a file, which all processes share."""
    path = pathlib.Path(__file__).with_suffix(".calls")
    with path.open("a") as file:
        file.write(f"{text}\\n")


def act(text):
    note(text)
    what, _, rest = text.partition(" ")
    if what == "spin":
        9**9**9**9
    if what == "sleep":
        time.sleep(600)
    if what == "exit":
        os._exit(3)
    if what == "raise":
        raise ConnectionError(f"no server for {rest}")
    if what == "failed":
        return Failed(rest)
    if what == "none":
        return None
    if what == "nan":
        return float("nan")
    if what == "pid":
        return float(os.getpid())
    if what == "detail":
        return Scored(0.5, {"words": rest.split()})
    if what == "provisional":
        return Provisional(0.25)
    if what == "twice":
        return Scored(0.5, {rest})
    if what == "mistake":
        return "a text"
    if what == "broken":
        raise Broken(1, 2)
    return float(len(text))


class Broken(RewardError):
    """Does not survive pickling."""

    def __init__(self, a, b):
        super().__init__(f"set up wrongly: {a}, {b}")


def alone(completions, *, factor=1, **columns):
    scores = [act(c) for c in completions]
    return [s * factor if type(s) is float else s for s in scores]


alone.reward_options = SHARED


def together(completions, **columns):
    return [act(c) for c in completions]


together.reward_options = RewardOptions(timeout=60.0)


def with_answer(completions, answer, **columns):
    return [float(len(c) + len(a)) for c, a in zip(completions, answer)]


with_answer.reward_options = SHARED


def of_prompt(completions, **columns):
    return [float(len(prompt)) for prompt in columns["prompts"]]


of_prompt.reward_options = SHARED


def of_ids(completions, completion_ids, **columns):
    return [float(len(ids)) for ids in completion_ids]


of_ids.reward_options = SHARED


def of_ids_unnamed(completions, **columns):
    return [float(len(ids)) for ids in columns["completion_ids"]]


of_ids_unnamed.reward_options = SHARED


def logging_all(completions, log_metric=None, log_extra=None, **columns):
    if log_extra:
        log_extra("seen", [c.upper() for c in completions])
        log_extra("too_short", [])
    if log_metric:
        log_metric("calls", 1.0)
    return [act(c) for c in completions]


logging_all.reward_options = SHARED


def by_step(completions, trainer_state=None, **columns):
    assert not hasattr(trainer_state, "log_history")
    return [trainer_state.global_step + trainer_state.epoch] * len(completions)


by_step.reward_options = RewardOptions(timeout=60.0)


class FirstWord:
    """Its score rests on the first word alone."""

    reward_options = SHARED
    fingerprint = "one"

    def __call__(self, completions, **columns):
        return [act(c) for c in completions]

    def keys(self, completions, **columns):
        return [c.split()[0] for c in completions]


class WrongKeys(FirstWord):
    def keys(self, completions, **columns):
        return ["a"]


class FailingKeys(FirstWord):
    def keys(self, completions, **columns):
        raise KeyError("no such column")


@dataclass
class Constant:
    value: float
    reward_options = SHARED

    def __call__(self, completions, **columns):
        return [self.value for c in completions]


def plain(value):
    return Constant(value)


def doubled(value):
    return Constant(2 * value)


one, two = Constant(1.0), Constant(2.0)


def only_here():
    lock = __import__("threading").Lock()

    def held(completions, **columns):
        lock.acquire(blocking=False)
        return [float(len(c)) for c in completions]

    return held


class Homebound:
    reward_options = RewardOptions(per_sample=True, timeout=60.0)

    def __init__(self):
        from rlkd.workers.pool import inside_worker

        if inside_worker():
            raise OSError("there is one such device")

    def __call__(self, completions, **columns):
        return [float(len(c)) for c in completions]
'''

# One reward of each form that a spec can name.
FORMS = '''
"""Rewards as a user writes them."""
from dataclasses import dataclass

from rewards import Failed, Scored


def brevity(completions, *, limit=10, **columns):
    return [max(0.0, 1 - len(c[0]["content"]) / limit) for c in completions]


def needs_level(completions, level, bonus=0.0, **columns):
    return [float(n) + bonus for n in level]


def by_ids(completion_ids, **columns):
    return [float(len(ids)) for ids in completion_ids]


def only_columns(**columns):
    return [1.0] * len(columns["completions"])


async def later(completions, *, value=0.25, **columns):
    return [value] * len(completions)


@dataclass
class Constant:
    value: float
    factor: float = 1.0

    def __call__(self, completions, **columns):
        return [self.value * self.factor] * len(completions)


class Later:
    async def __call__(self, completions, **columns):
        return [0.75] * len(completions)


def make_constant(value, factor=1.0):
    return Constant(value, factor)


def make_nothing():
    return None


class NoReward:
    pass


class Picky:
    def __init__(self, size):
        if size < 0:
            raise ValueError(f"size {size} is negative")


number = 5
'''


def calls(file: Path) -> list[str]:
    """The texts that the rewards of a file scored, in order."""
    path = file.with_suffix(".calls")
    return path.read_text().splitlines() if path.exists() else []
