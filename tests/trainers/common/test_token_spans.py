"""Which tokens belong to which part of a completion's text, over the vocabularies of several families."""

import random
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.common.token_spans import token_owners, token_spans


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def owners_slowly(text, spans, places):
    """Token by token, place by place, character by character."""
    found = []
    for start, stop in spans:
        shown = [c for c in range(start, stop) if not text[c].isspace()] or list(range(start, stop))
        blank = not text[start:stop].strip()
        own = None
        for index, place in enumerate(places):
            if place is None:
                continue
            last = place[1]
            while blank and last < len(text) and text[last].isspace():
                last += 1
            if any(place[0] <= c < last for c in shown):
                own = index
        found.append(own)
    return found


def test_steps_own_their_tokens_and_nothing_else(tokenizer) -> None:
    steps = ["Pam has as many as Ida and Ben together: 4 + 10 = 14.", "Max has 3 fewer than Pam: 14 - 3 = 11."]
    between, after = " So far so good. ", "\n\n#### 11"
    ids = [*ids_of(tokenizer, steps[0] + between + steps[1] + after), tokenizer.eos_token_id]
    text, spans = token_spans(tokenizer, ids)
    places = [(text.index(step), text.index(step) + len(step)) for step in steps if step in text]
    if len(places) < 2:  # the laboratory's words are fewer
        places = [(0, text.index("14 - 3")), (text.index("14 - 3"), text.index("11") + 2)]
    owners = token_owners(text, spans, places)
    for index, (start, stop) in enumerate(places):
        own = [text[slice(*span)] for span, owner in zip(spans, owners, strict=True) if owner == index]
        assert "".join(own).strip() == text[start:stop].strip()
    assert owners[-1] is None
    assert owners == owners_slowly(text, spans, places)


def test_white_space_alone_goes_with_the_step_before_it_and_with_words_it_does_not_count() -> None:
    text = "One. Filler.  Two.\n\nEnd"
    spans = [(0, 4), (4, 11), (11, 12), (12, 14), (14, 18), (18, 20), (20, 23)]
    places = [(0, 4), (14, 18)]
    assert token_owners(text, spans, places) == [0, None, None, None, 1, 1, None]
    assert token_owners(text, [(0, 5), (5, 9), (9, 16), (16, 23)], places) == [0, None, 1, 1]


def test_a_token_that_two_steps_share_is_of_the_later_one_and_a_step_not_found_owns_none() -> None:
    assert token_owners("abcd", [(0, 1), (1, 3), (3, 4)], [(0, 2), None, (2, 4)]) == [0, 2, 2]
    assert token_owners("abcd", [(0, 4)], [(0, 2), (2, 4)]) == [1]
    assert token_owners("", [(0, 0), (0, 0)], [None]) == [None, None]
    assert token_owners("ab", [(0, 2)], []) == [None]


@settings(deadline=None, max_examples=60)
@given(
    st.text(alphabet="ab1. \n=漢🙂é!?#", max_size=60),
    st.integers(0, 2**32),
    st.lists(st.integers(0, 60), max_size=8),
    st.booleans(),
)
def test_any_tokens_of_any_text_have_the_owners_of_the_slow_rule(tokenizer, text, seed, cuts, truncated) -> None:
    # Not what the tokenizer would make of it: pieces that were cut at random, within characters at the end.
    draw = random.Random(seed)
    pieces, rest = [], text
    while rest:
        cut = draw.randint(1, min(4, len(rest)))
        pieces.append(rest[:cut])
        rest = rest[cut:]
    ids = [token for piece in pieces for token in ids_of(tokenizer, piece)]
    ids = ids[:-1] if truncated else ids
    found, spans = token_spans(tokenizer, ids)
    edges = sorted({min(cut, len(found)) for cut in cuts})
    places = [None if draw.random() < 0.3 else edge for edge in pairwise(edges)]
    owners = token_owners(found, spans, places)
    assert owners == owners_slowly(found, spans, places)
    # Ascending, and no token but those that share a character with a step, or are blank behind one.
    kept = [owner for owner in owners if owner is not None]
    assert kept == sorted(kept)
