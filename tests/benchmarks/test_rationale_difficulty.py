import json

import pytest

from tests.helpers.scripts import quick_figures


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_fast_measure_equals_the_plain_one_and_a_file_of_rows_is_read(tmp_path, tiny_model) -> None:
    rows = [
        {
            # The question has the answer's number; that is no leak of a rationale of which nothing is left.
            "question": f"What are {number} and 4? Not {number + 4}?",
            "gold": str(number + 4),
            "rationales": [
                {"text": f"{number} + 4 = {number + 4}\n#### {number + 4}", "source": "human"},
                f"{number} and 4 make {number + 4} in all.\n#### {number + 4}",
                f"#### {number + 4}",
            ],
        }
        for number in range(10, 15)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for more, expected in ((), (2, 20)), (("--rows", "rows.jsonl", "--questions", "5"), (5, 15)):
        figures = quick_figures("rationale_difficulty.py", tmp_path, "--threads", 1, "--model", tiny_model, *more)
        assert (figures["questions"], figures["rationales"]) == expected
        assert figures["max_error"] <= 1e-4
        assert figures["throughput_ratio"] > 0
    assert figures["leak_rate"] == 0.333  # "make 14 in all" still says it
    assert figures["leak_rate_unasked"] == 0.0
