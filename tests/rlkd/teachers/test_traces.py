"""A teacher's trace after the prompt of a template."""

import pytest

from benchmarks.tiny import byte_tokenizer
from rlkd.teachers.traces import trace_ids

PLAIN = "{% for m in messages %}[{{ m.content }}]{% endfor %}"


def trained_on(opening: str, rationale: str) -> str:
    """Prompt and trace as the student sees them, under a template that ends its prompts with `opening`."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = PLAIN + "{% if add_generation_prompt %}{{ '" + opening + "' }}{% endif %}"
    prompt, completion = trace_ids(tokenizer, [{"role": "user", "content": "1+1?"}], rationale, 100)
    return tokenizer.decode(prompt + completion[:-1])


@pytest.mark.parametrize(
    ("opening", "rationale", "expected"),
    [
        ("<think>\\n", "<think>\nIt is 2.</think>2", "[1+1?]<think>\nIt is 2.</think>2"),
        ("<think>\\n", "<think>It is 2.</think>2", "[1+1?]<think>\nIt is 2.</think>2"),
        ("<think>\\n", "\n<think>\n\nIt is 2.</think>2", "[1+1?]<think>\n\nIt is 2.</think>2"),
        ("<think>", "<think>\nIt is 2.</think>2", "[1+1?]<think>\nIt is 2.</think>2"),
        ("<think>\\n", "It is 2.</think>2", "[1+1?]<think>\nIt is 2.</think>2"),
        ("", "<think>\nIt is 2.</think>2", "[1+1?]<think>\nIt is 2.</think>2"),
        ("<think>\\n\\n</think>\\n", "<think>So.</think>2", "[1+1?]<think>\n\n</think>\n<think>So.</think>2"),
    ],
)
def test_a_think_tag_that_the_template_opens_is_there_once(opening, rationale, expected) -> None:
    assert trained_on(opening, rationale) == expected
