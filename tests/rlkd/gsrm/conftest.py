from collections.abc import Callable, Sequence

import pytest

from rlkd.engines.base import Completion, EngineError


class ScriptedEngine:
    """An engine in memory that answers by functions of the prompt, and keeps what it was asked.

    `write` gets the text of the last message and the number of the call, and returns a reply or an `EngineError`;
    `prefer` gets the text and returns the log-probabilities of yes and no, or an `EngineError`.
    """

    def __init__(
        self,
        write: Callable[[str, int], str | EngineError] | None = None,
        prefer: Callable[[str], tuple[float, float] | EngineError] | None = None,
        *,
        guided: bool = False,
        name: str = "scripted",
    ):
        self.name = name
        self.guided = guided
        self.write = write
        self.prefer = prefer
        self.generated: list[list[str]] = []
        self.prompts: list[list[list[dict[str, str]]]] = []
        self.samplings = []
        self.chosen: list[list[str]] = []
        self.deadlines: list[float | None] = []

    async def generate(self, prompts, sampling, *, deadline=None):
        texts = [prompt[-1]["content"] for prompt in prompts]
        self.generated.append(texts)
        self.prompts.append(list(prompts))
        self.samplings.append(sampling)
        self.deadlines.append(deadline)
        replies = [self.write(text, len(self.generated)) for text in texts]
        return [r if isinstance(r, EngineError) else Completion(r, "stop", len(r.split())) for r in replies]

    async def choose(self, prompts, choices: Sequence[str], *, deadline=None):
        assert [choice.casefold() for choice in choices] == ["yes", "no"]
        texts = [prompt[-1]["content"] for prompt in prompts]
        self.chosen.append(texts)
        self.deadlines.append(deadline)
        return [self.prefer(text) for text in texts]


@pytest.fixture
def scripted() -> type[ScriptedEngine]:
    return ScriptedEngine
