"""Questions on two topics, step-keyed replies to them, and an engine whose replies a test gives."""

import json
import re
from collections.abc import Callable
from typing import Any

from rlkd.engines import Completion, Engine, EngineError
from rlkd.rationales.records import Question
from rlkd.rationales.write.writing import Writing

TOPICS = {
    "buying": ("price of apples in the shop", ["FindUnitPrice", "MultiplyByQuantity"]),
    "travel": ("distance of the train on its way", ["FindSpeed", "MultiplyByTime"]),
}


def question(n: int, topic: str = "buying") -> Question:
    words = TOPICS[topic][0]
    return Question(f"{topic}-{n}", f"What is the {words}, number {n}?", str(7000 + n), columns={"topic": topic})


def questions(count: int) -> list[Question]:
    return [question(n, sorted(TOPICS)[n % 2]) for n in range(count)]


def number_of(prompt: list[dict[str, str]]) -> int:
    return int(re.search(r"number (\d+)\?", prompt[-1]["content"])[1])


def reply(prompt: list[dict[str, str]], *, right: bool = True, path: list[str] | None = None) -> str:
    """A step-keyed reply by topic, with the right answer or another."""
    n = number_of(prompt)
    topic = "buying" if "shop" in prompt[-1]["content"] else "travel"
    intent, names = TOPICS[topic]
    names = path or names
    answer = 7000 + n if right else 1
    texts = {name: f"{i} + {n} = {i + n}" for i, name in enumerate(names)}
    route = {"category": topic, "intents": [" ".join(intent.split()[:2])], "difficulty": 1, "budget": 2}
    return json.dumps({**route, "path": names, "rationale": texts, "answer": str(answer)})


class Scripted(Engine):
    name = "scripted"
    guided = False

    def __init__(self, answer: Callable[[list[dict[str, str]], int], str | EngineError]):
        self.answer = answer
        self.prompts: list[list[dict[str, str]]] = []

    async def generate(self, prompts, sampling, *, deadline=None) -> list[Any]:
        self.prompts += prompts
        found = [self.answer(prompt, place) for place, prompt in enumerate(prompts)]
        return [Completion(text, "stop", len(text)) if isinstance(text, str) else text for text in found]

    def sent(self) -> str:
        return json.dumps(self.prompts)


STEPS = Writing(("steps",), candidates=1, temperature=0.0)
BANK = Writing(("bank",), candidates=1, temperature=0.0, seed_share=0.2, wave=4)
