"""The laboratory's models as they come with the package."""

import asyncio
import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rewards.prm import ProcessReward
from rlkd.answers import extract_answer
from rlkd.lab.byte_pairs import byte_pair_tokenizer
from rlkd.lab.problems import dependency_rows
from rlkd.lab.step_labels import faulty_steps, read_dependency, true_steps
from rlkd.lab.strategies import strategy_rows
from rlkd.lab.students import STRATEGY_WORDS, tokenizer
from rlkd.models import LAB_MODELS, resolve_model, weights_identity

STRATEGIES_STUDENT = "lab-strategies-student"
PROCESS_REWARD_MODEL = "lab-prm"
SOLVERS = [name for name in LAB_MODELS if name not in (STRATEGIES_STUDENT, PROCESS_REWARD_MODEL)]


@pytest.mark.parametrize("name", SOLVERS)
def test_a_model_has_a_tokenizer_of_the_laboratory_and_writes_steps_of_the_question(name) -> None:
    folder = resolve_model(name)
    model, words = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    expected = byte_pair_tokenizer() if name.endswith("-bpe") else tokenizer()
    assert words.get_vocab() == expected.get_vocab()
    assert model.num_parameters() < 1e6
    assert model.dtype == torch.float32
    rows = dependency_rows("test", 8)
    answers = greedy_answers(model, words, rows)
    assert sum(text.endswith(words.eos_token) for text in answers) >= 7
    first = [text.split(":")[0] for text in answers]
    assert sum(f"{line}." in row["question"] for line, row in zip(first, rows, strict=True)) >= 6


def test_the_student_of_the_strategy_problems_knows_their_words_and_answers_some() -> None:
    folder = resolve_model(STRATEGIES_STUDENT)
    model, words = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert words.get_vocab() == tokenizer(STRATEGY_WORDS).get_vocab()
    assert model.num_parameters() < 1e6
    rows = strategy_rows("test", 40)
    answers = greedy_answers(model, words, rows)
    assert sum(text.endswith(words.eos_token) for text in answers) >= 36
    plain = [text.removesuffix(words.eos_token) for text in answers]
    right = sum(extract_answer(text) == row["answer"] for text, row in zip(plain, rows, strict=True))
    assert 4 <= right <= 20


def test_the_process_reward_model_tells_true_steps_from_faulty_ones() -> None:
    draw, reward = random.Random(3), ProcessReward(PROCESS_REWARD_MODEL)
    problems = [read_dependency(row["question"]) for row in dependency_rows("test", 60)]
    answers = [faulty_steps(problem, 0.3, draw) for problem in problems]
    found = asyncio.run(
        reward(
            prompts=[[{"role": "user", "content": problem.question}] for problem in problems],
            completions=[[{"role": "assistant", "content": "\n".join(steps)}] for steps in answers],
        )
    )
    good, bad = [], []
    for problem, steps, one in zip(problems, answers, found, strict=True):
        true = true_steps(problem)
        for step, score in zip(steps, one.detail["steps"], strict=True):
            (good if step in true else bad).append(score)
    pairs = [(high > low) + (high == low) / 2 for high in good for low in bad]
    assert sum(pairs) / len(pairs) > 0.8  # the area under the ROC curve


def greedy_answers(model, words, rows):
    """The greedy answers to the questions of rows, each with its end token, if it has one."""
    conversations = [[{"role": "user", "content": row["question"]}] for row in rows]
    words.padding_side = "left"
    inputs = words.apply_chat_template(
        conversations, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    written = model.generate(**inputs, max_new_tokens=96, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    return [text.partition(words.pad_token)[0] for text in words.batch_decode(written)]


def test_each_model_has_an_identity_of_its_own() -> None:
    assert len({weights_identity(name) for name in LAB_MODELS}) == len(LAB_MODELS)
    assert "" not in {weights_identity(name) for name in LAB_MODELS}
