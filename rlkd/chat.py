"""`rlkd chat`: asks a model questions on the terminal, with the prompt that its training used.

Each line is a question of its own: models are trained on single questions here, and a conversation would be a prompt
that they have never seen.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkd.errors import UsageError, first_line

DESCRIPTION = """\
Ask a model questions: one per line, the answer appears as it is generated. Ctrl-D ends.

  rlkd chat runs/rlkd                            the output_dir of a run, or a checkpoint, adapter or not
  rlkd chat lab-student --once "Tom has 3 pens and buys 4. How many pens does Tom have?"
  rlkd chat Qwen/Qwen3-0.6B --chat_template_kwargs '{"enable_thinking": false}' --temperature 0.7

A run's folder says which system prompt, few-shot examples and length its own evaluation used; these are the defaults.
Answers are greedy unless --temperature is above 0."""

# Written by a run that evaluates; see trainers/common/evaluation_settings.py.
_SETTINGS = "evaluation.json"


def main(arguments: Sequence[str]) -> int:
    """Run `rlkd chat`; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="rlkd chat", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="a folder (also of an adapter), a hub id, or an embedded model")
    parser.add_argument("--once", metavar="QUESTION", help="answer this question and end")
    parser.add_argument("--system_prompt", help="text before every question")
    parser.add_argument("--few_shot_examples", type=int, help="GSM8K examples (0 to 2) before a question")
    parser.add_argument("--chat_template_kwargs", metavar="JSON", help="arguments of the chat template")
    parser.add_argument("--max_new_tokens", type=int, help="maximum tokens of an answer (default: the run's, or 512)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=42, help="seed of sampled answers (default: %(default)s)")
    given = parser.parse_args(arguments)
    if given.temperature < 0:
        raise UsageError(f"--temperature {given.temperature}: expected 0 (greedy) or more")
    if given.max_new_tokens is not None and given.max_new_tokens < 1:
        raise UsageError(f"--max_new_tokens {given.max_new_tokens}: expected at least 1")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # its warnings would come between the words of an answer
    settings = {**run_settings(Path(given.model).expanduser()), **_set(vars(given))}
    chat = Chat(given.model, settings, temperature=given.temperature, seed=given.seed)
    for question in [given.once] if given.once is not None else _typed():
        try:
            chat.answer(question)
        except UsageError as error:  # another question can fit
            if given.once is not None:
                raise
            print(f"rlkd chat: {error}", file=sys.stderr)
    return 0


def run_settings(model: Path) -> dict[str, Any]:
    """How the run that a model's folder belongs to evaluates; nothing where no run recorded it."""
    for path in run_records(model):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return {
                "system_prompt": found["system_prompt"],
                "few_shot_examples": found["few_shot_examples"],
                "chat_template_kwargs": found["chat_template_kwargs"],
                "max_new_tokens": found["max_completion_length"],
            }
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return {}


def run_records(model: Path) -> list[Path]:
    """The records of evaluations for a model's folder: its own, and that of the run above it, as for a checkpoint.

    A name that is no folder here, such as that of an embedded model, has none.
    """
    if not model.is_dir():
        return []
    folder = model.absolute()
    return [path for path in (folder / _SETTINGS, folder.parent / _SETTINGS) if path.is_file()]


class Chat:
    """A model in this process that answers one question after the other and prints while it generates.

    `settings`: `system_prompt`, `few_shot_examples`, `chat_template_kwargs`, `max_new_tokens`, each with a default.
    Raises `UsageError` where the model does not load.
    """

    def __init__(self, model: str, settings: Mapping[str, Any], *, temperature: float = 0.0, seed: int = 42):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
        from transformers.utils import logging as transformers_logging

        from rlkd.devices import best_device
        from rlkd.engines.tokens import template_arguments
        from rlkd.models import resolve_model
        from rlkd.rendering import turn_end

        self.system_prompt = settings.get("system_prompt")
        self.examples = settings.get("few_shot_examples") or 0
        self.template = template_arguments(settings.get("chat_template_kwargs"))
        self.limit: int = settings.get("max_new_tokens") or 512
        device = best_device()
        transformers_logging.disable_progress_bar()
        try:
            path = resolve_model(model)
            self.tokenizer = AutoTokenizer.from_pretrained(path)
            dtype = "float32" if device == "cpu" else "auto"
            loaded: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, use_safetensors=True)
        except UsageError:
            raise
        except Exception as error:  # each library has its own errors
            raise UsageError(
                f"the model {model!r} cannot be read: {first_line(error)}. Name a folder written by save_pretrained, "
                f"the folder of an adapter, a reachable hub id, or an embedded model"
            ) from error
        finally:
            transformers_logging.enable_progress_bar()
        self.model = loaded.to(device).eval()
        configured = self.model.generation_config.eos_token_id
        ends = {*(configured if isinstance(configured, list) else [configured])}
        ends |= {self.tokenizer.eos_token_id, turn_end(self.tokenizer, self.template)}
        end_ids = sorted(ends - {None})
        pad = self.tokenizer.pad_token_id
        # A checkpoint's own settings of sampling would make answers other than those that were measured.
        self.model.generation_config = GenerationConfig(
            do_sample=temperature > 0,
            temperature=temperature if temperature > 0 else None,
            top_k=0 if temperature > 0 else None,
            eos_token_id=end_ids or None,
            pad_token_id=next(iter(end_ids), 0) if pad is None else pad,
        )
        torch.manual_seed(seed)

    def answer(self, question: str) -> str:
        """Print the answer while it is generated, and return it."""
        import torch
        from transformers import TextStreamer

        from rlkd.context import context_length
        from rlkd.data.loading import to_dataset
        from rlkd.rendering import prompt_ids

        chats = bool(getattr(self.tokenizer, "chat_template", None))
        rows = [{"question": question} if chats else {"prompt": question}]
        prompt = to_dataset(rows, system_prompt=self.system_prompt, examples=self.examples)["prompt"][0]
        ids = torch.tensor([prompt_ids(self.tokenizer, prompt, self.template)], device=self.model.device)
        context = context_length(self.model.config)
        room = self.limit if context is None else min(self.limit, context - ids.shape[1])
        if room < 1:
            raise UsageError(f"the prompt has {ids.shape[1]} tokens, and the model's context is {context}. Shorten it")
        streamer: Any = TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        with torch.inference_mode():
            written = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), streamer=streamer, max_new_tokens=room
            )
        return str(self.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True))


def _set(given: Mapping[str, Any]) -> dict[str, Any]:
    names = ("system_prompt", "few_shot_examples", "chat_template_kwargs", "max_new_tokens")
    return {name: given[name] for name in names if given[name] is not None}


def _typed() -> Iterable[str]:
    """The lines of the standard input that are not blank, with a mark before each on a terminal."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()
