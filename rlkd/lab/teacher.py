"""A teacher of the laboratory's strategy problems: a program that stands in for a language model.

    teacher: rlkd.lab.teacher.StrategyTeacher?wrong=0.2#mixed      # each time another strategy, one in five wrong
    teacher: rlkd.lab.teacher.StrategyTeacher#parts                # always the same strategy and names of steps

It reads the requests of `rlkd.rationales.write.prompts` and answers them in their form: freely, or as a step-keyed
object. Of the paths of a plan it takes the first one that leads to the answer of this kind of problem; without one it
chooses a strategy, and a name for each step. So what a plan changes is how alike its solutions are.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

from rlkd.engines import Completion, Engine, EngineError, Prompt, Sampling
from rlkd.errors import UsageError
from rlkd.lab.solutions import STEP_NAMES, STRATEGIES, Solution, StrategyProblem, solve, with_slip
from rlkd.lab.strategies import read_problem
from rlkd.rationales.write.prompts import read_plan

MIXED = "mixed"
# Category and intents as a teacher would write them; words of the questions, since no meaning is compared here.
_ROUTES = {
    "packs": ("packing", ("things in bags", "buys bags with things")),
    "gifts": ("giving", ("things left", "gives things, left")),
    "shares": ("sharing", ("times as many together", "have they together")),
    "gap": ("comparing", ("how many more", "boxes, how many more")),
}


class StrategyTeacher(Engine):
    """Writes solutions of the strategy problems. `model`: a strategy, or `mixed`; `wrong`: share of wrong solutions.

    Each request has a draw of its own, from `Sampling.seed` or at temperature 0 from the prompt. Raises `UsageError`
    for another `model` or share.
    """

    concurrency = None

    def __init__(self, model: str = MIXED, *, wrong: float = 0.0):
        if model not in (MIXED, *STRATEGIES):
            raise UsageError(f"teacher of strategies {model!r}: expected {MIXED} or one of {', '.join(STRATEGIES)}")
        if not 0 <= wrong < 1:
            raise UsageError(f"wrong={wrong}: expected a share from 0 up to 1")
        self.model, self.wrong = model, wrong
        self.name = f"strategies-1:{model}?wrong={wrong:g}"

    async def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, deadline: float | None = None
    ) -> list[Completion | EngineError]:
        """See `rlkd.engines.base`; a prompt without a problem of the laboratory gives an `EngineError`."""
        return [self._answer(prompt, sampling, number) for number, prompt in enumerate(prompts)]

    def _answer(self, prompt: Prompt, sampling: Sampling, number: int) -> Completion | EngineError:
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        question, paths = read_plan(text)
        try:
            problem = read_problem(question)
        except ValueError as error:
            return EngineError(self.name, str(error), "It solves the rows of lab-strategies only.")
        draw = random.Random(f"{text if sampling.seed is None else sampling.seed} {number}")
        names, strategy = self._path(problem, paths, draw)
        wrong = draw.random() < self.wrong
        solution = with_slip(problem, strategy, draw) if wrong else solve(problem, strategy)
        written = solution.text() if sampling.json_schema is None else _step_keyed(problem, solution, names, draw)
        return Completion(written, "stop", len(written.split()))

    def _path(
        self, problem: StrategyProblem, paths: Sequence[Sequence[str]], draw: random.Random
    ) -> tuple[list[str], str]:
        """The names of the steps, and their strategy: by the first path that solves the problem, else of its own."""
        known = {strategy: [name for name, _ in solve(problem, strategy).steps] for strategy in STRATEGIES}
        for path in paths:
            for strategy, steps in known.items():
                if len(path) == len(steps) and all(
                    name in STEP_NAMES[step] for name, step in zip(path, steps, strict=True)
                ):
                    return list(path), strategy
        if self.model != MIXED:
            return known[self.model], self.model
        strategy = draw.choice(STRATEGIES)
        return [draw.choice(STEP_NAMES[step]) for step in known[strategy]], strategy


def _step_keyed(problem: StrategyProblem, solution: Solution, names: Sequence[str], draw: random.Random) -> str:
    category, intents = _ROUTES[problem.kind]
    lines = [", ".join(calculations) for _, calculations in solution.steps]
    reply = {
        "category": category,
        "intents": [draw.choice(intents)],
        "difficulty": 1,
        "budget": 2,
        "path": list(names),
        "rationale": dict(zip(names, lines, strict=True)),
        "answer": str(solution.answer),
    }
    return json.dumps(reply)
