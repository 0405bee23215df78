"""Lines of progress: one a tenth, and none at the end."""

import pytest

from trainers.common.progress import Tenths


@pytest.mark.parametrize(
    ("counts", "lines"),
    [
        ([1] * 20, ["10%", "20%", "30%", "40%", "50%", "60%", "70%", "80%", "90%"]),
        ([16] * 18 + [12], ["11%", "21%", "32%", "43%", "53%", "64%", "75%", "80%", "91%"]),
        ([128, 128, 44], ["43%", "85%"]),
        ([3], []),
        ([2, 2], ["67%"]),  # the last process writes a prompt once more
    ],
)
def test_each_tenth_is_a_line_and_the_end_is_none(counts, lines) -> None:
    said: list[str] = []
    advance = Tenths("evaluation", {20: 20, 300: 300, 3: 3, 4: 3}[sum(counts)], said.append)
    for count in counts:
        advance(count)
    assert said == [f"evaluation: {line} done" for line in lines]
