"""Settings of the writing."""

import pytest

from rlkd.errors import UsageError
from rlkd.rationales.write.writing import Writing


def test_faithful_is_one_greedy_candidate_along_the_best_path_question_by_question() -> None:
    setting = Writing(("bank",), candidates=4, temperature=1.0, paths_offered=3, faithful=True)
    assert (setting.candidates, setting.temperature, setting.paths_offered, setting.wave) == (1, 0.0, 1, 1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"writers": ("bnak",)}, "writers=.*expected one or more of ready, free, steps, bank"),
        ({"writers": ()}, "writers="),
        ({"writers": ("free", "free")}, "each once"),
        ({"candidates": 0}, "candidates=0: expected at least 1"),
        ({"candidates": 3, "temperature": 0.0}, "3 times the same text"),
        ({"seed_share": 0.0}, "seed_share=0.0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changed, message) -> None:
    with pytest.raises(UsageError, match=message):
        Writing(**changed)


def test_a_hinted_retry_of_programs_is_refused() -> None:
    with pytest.raises(UsageError, match="a program has none before the selector 'program' runs it"):
        Writing(("program",), hinted_retry=True)
