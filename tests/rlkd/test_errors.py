"""What an error of a library says, in a sentence of ours."""

import pytest

from rlkd.errors import first_line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("no such model.\nTry another one."), "no such model"),
        (OSError("\n  no such model\n"), "no such model"),
        (TimeoutError(), "TimeoutError"),
        (ValueError(" \n "), "ValueError"),
    ],
)
def test_the_first_line_is_quoted_or_the_class_where_there_is_none(error, said) -> None:
    assert first_line(error) == said
