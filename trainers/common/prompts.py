"""Prompts compared with the student before its weights load: is there a template for them, and room in the context?"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlkd.errors import UsageError
from rlkd.process import is_first_process
from rlkd.rendering import fitted_conversations, has_system_role, prompt_ids, text_ids
from trainers.common.student import ModelFacts, Template

logger = logging.getLogger(__name__)

WORD_ROWS = 64
"""Rows in which words without a token are looked for."""
MOST_UNKNOWN = 0.02
"""The share of unknown tokens from which on the log says so (our choice)."""
SHOWN_WORDS = 5
"""Texts of unknown tokens that the log names, the most frequent ones."""


@dataclass(frozen=True)
class PromptCheck:
    """Compares prompts with the student: is there a chat template for conversations, and room in the context?

    `completion`: tokens of the longest completion, by `limit`, the name of its key. `leave_out`: leave out rows that
    do not fit, in place of an error. Raises `UsageError` before the model loads.
    """

    student: ModelFacts
    completion: int
    limit: str = "max_completion_length"
    template: Template = None
    leave_out: bool = False
    _warned: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def fitted(self, dataset: Any, part: str) -> Any:
        """The dataset, without rows that do not fit if these are to be left out; `part` is its name in messages."""
        columns = getattr(dataset, "column_names", None) or ()
        if dataset is None or self.student.tokenizer is None or "prompt" not in columns:
            return dataset
        first = next(iter(dataset), None)
        if first is None or first["prompt"] is None:
            return dataset
        self.check_form(first["prompt"], part)
        if not hasattr(dataset, "__len__"):
            return dataset
        self.check_words(dataset[:WORD_ROWS]["prompt"], part)
        long = self.too_long(dataset["prompt"])
        if not long:
            return dataset
        if not self.leave_out or len(long) == len(dataset):
            index = max(long, key=lambda index: long[index])
            row = dataset[index]
            self._refuse(f"{part}, row {row.get('id', index)!r}", long[index], len(long), len(dataset))
        self._warn(
            f"{part}: left out {len(long)} of {len(dataset)} rows, whose prompts with {self.limit} {self.completion} "
            f"do not fit the {self.student.context} tokens of {self.student.name}"
        )
        return dataset.select([index for index in range(len(dataset)) if index not in long])

    def fitted_datasets(self, train_dataset: Any, eval_dataset: Any) -> tuple[Any, Any]:
        """Both datasets of a run by `fitted`; `eval_dataset` may be a dictionary of datasets."""
        train_dataset = self.fitted(train_dataset, "train_dataset")
        if isinstance(eval_dataset, dict):
            return train_dataset, {
                name: self.fitted(part, f"eval_dataset {name}") for name, part in eval_dataset.items()
            }
        return train_dataset, self.fitted(eval_dataset, "eval_dataset")

    def check_lengths(self, prompts: Sequence[Any], part: str) -> None:
        """Check the lengths of prompts that cannot be left out."""
        if len(prompts) and (long := self.too_long(prompts)):
            index = max(long, key=lambda index: long[index])
            self._refuse(f"{part}, row {index}", long[index], len(long), len(prompts))

    def fitted_examples(self, examples: list[dict[str, Any]], longest: int | None) -> list[dict[str, Any]]:
        """The examples of a fine-tuning, truncated at `longest` tokens, that fit the context."""
        context = self.student.context
        if context is None or (longest is not None and longest <= context):
            return examples
        found = {}
        for index, example in enumerate(examples):
            reply = example["completion"]
            reply = reply if isinstance(reply, str) else str(reply[0]["content"])
            # A character has four bytes at most, and a token has one at least.
            if 4 * (len(_text(example["prompt"])) + len(reply)) + 4096 > context:
                prompt_tokens = len(self._ids(example["prompt"]))
                tokens = len(text_ids(self.student.tokenizer, reply, special=False)) + 1
                if prompt_tokens + tokens > context:
                    found[index] = (prompt_tokens, tokens)
        if not found:
            return examples
        if not self.leave_out or len(found) == len(examples):
            index = max(found, key=lambda index: sum(found[index]))
            prompt_tokens, completion_tokens = found[index]
            raise UsageError(
                f"example {index}: a prompt of {prompt_tokens} tokens and a completion of {completion_tokens} do not "
                f"fit the {context} tokens of {self.student.name} ({len(found)} of {len(examples)} examples; "
                f"max_length {longest}). Ways out: set max_length: {context} to truncate them; set "
                f"filter_overlong_prompts: true to leave them out; name a model with a longer context"
            )
        self._warn(
            f"left out {len(found)} of {len(examples)} examples, which do not fit the {context} tokens of "
            f"{self.student.name}"
        )
        return [example for index, example in enumerate(examples) if index not in found]

    def too_long(self, prompts: Sequence[Any]) -> dict[int, int]:
        """Index and tokens of each prompt that leaves no room for a completion."""
        if self.student.context is None or self.student.tokenizer is None:
            return {}
        room = self.student.context - self.completion
        # A token has one byte at least, so a text of fewer bytes than `room` fits without being tokenised.
        written = [_text(prompt) for prompt in prompts]
        ids = self._ids(prompts[0])
        beyond = max(0, len(self.student.tokenizer.decode(ids).encode()) - len(written[0].encode())) + 64
        found = {}
        for index, (prompt, text) in enumerate(zip(prompts, written, strict=True)):
            if len(text.encode(errors="replace")) + beyond > room and (tokens := len(self._ids(prompt))) > room:
                found[index] = tokens
        return found

    def size(self, text: str) -> int:
        """The tokens of a text; its characters where nothing is compared, without a tokenizer or a context."""
        if self.student.context is None or self.student.tokenizer is None:
            return len(text)
        return len(text_ids(self.student.tokenizer, text, special=False))

    def _ids(self, prompt: Any) -> list[int]:
        return prompt_ids(self.student.tokenizer, prompt, self.template)

    def check_form(self, prompt: Any, part: str) -> None:
        """Check that a conversation has a template; say it where a text passes one by, or a system role is missing."""
        template = getattr(self.student.tokenizer, "chat_template", None)
        if isinstance(prompt, str):
            if template:
                self._warn(
                    f"the prompts are texts, and {self.student.name} has a chat template, which texts do not go "
                    f"through. Give `question`, or messages in `prompt`, if it is to see a conversation"
                )
            return
        if not template:
            raise UsageError(
                f"{part}: the prompts are conversations, and the tokenizer of {self.student.name} has no chat "
                f"template. Name an instruct model as the student, or use prompts that are texts (`prompt` in place "
                f"of `question`)"
            )
        if prompt and prompt[0].get("role") == "system" and not has_system_role(self.student.tokenizer):
            self._warn(
                f"the chat template of {self.student.name} has no system role; the system prompt is put before the "
                f"first question"
            )

    def check_words(self, prompts: Sequence[Any], part: str) -> None:
        """Say it where the tokenizer has no tokens for a part of the prompts: then the student cannot read them."""
        tokenizer = self.student.tokenizer
        unknown = getattr(tokenizer, "unk_token_id", None)
        if unknown is None or unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
            return  # bytes have tokens in any case
        ids = [token for prompt in prompts for token in self._ids(prompt)]
        share = ids.count(unknown) / max(1, len(ids))
        if share > MOST_UNKNOWN:
            shown = [text for text, _ in Counter(self._unread(prompts, unknown)).most_common(SHOWN_WORDS)]
            self._warn(
                f"{part}: {share:.0%} of the prompts' tokens are unknown to {self.student.name}, which cannot read "
                f"{', '.join(map(repr, shown))}. Name a student whose vocabulary has them (model_name_or_path), or "
                f"write the questions in its words"
            )

    def _unread(self, prompts: Sequence[Any], unknown: int) -> Iterator[str]:
        """The parts of the prompts that become the unknown token: words, or phrases where a token is one."""
        tokenizer = self.student.tokenizer
        for prompt in prompts:
            said = _said(prompt)
            if not getattr(tokenizer, "is_fast", False):  # without places in the text
                yield from (word for word in said.split() if unknown in text_ids(tokenizer, word, special=False))
                continue
            read = tokenizer(said, add_special_tokens=False, return_offsets_mapping=True)
            for token, (start, end) in zip(read["input_ids"], read["offset_mapping"], strict=True):
                if token == unknown and (text := said[start:end].strip()):
                    yield text

    def _warn(self, message: str) -> None:
        """Log a warning in the first process, and once for all datasets of a run."""
        if message not in self._warned and is_first_process():
            self._warned.add(message)
            logger.warning(message)

    def _refuse(self, where: str, tokens: int, count: int, total: int) -> None:
        context, ways = self.student.context or 0, []
        if context > tokens:
            ways.append(f"lower {self.limit} to {context - tokens}")
        if count < total and not self.leave_out and self.limit == "max_completion_length":
            ways.append("set filter_overlong_prompts: true to leave such rows out")
        ways.append("name a model with a longer context")
        raise UsageError(
            f"{where}: a prompt of {tokens} tokens and {self.limit} {self.completion} do not fit the {context} tokens "
            f"of {self.student.name} ({count} of {total} rows). Ways out: {'; '.join(ways)}"
        )


def fitted_dataset(dataset: Any, tokenizer: Any) -> Any:
    """The dataset with conversations as the chat template takes them, for trainers that render them elsewhere."""
    if has_system_role(tokenizer):
        return dataset
    return dataset.map(lambda row: {"prompt": fitted_conversations(tokenizer, [row["prompt"]])[0]})


def _said(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else " ".join(str(message.get("content")) for message in prompt)


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)
