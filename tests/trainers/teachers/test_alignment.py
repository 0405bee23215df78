"""Two tokenisations of one text, token by token."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from benchmarks.tiny import byte_tokenizer
from rlkd.lab.byte_pairs import byte_pair_tokenizer
from rlkd.lab.students import tokenizer
from rlkd.models import resolve_model
from trainers.common.token_spans import token_spans
from trainers.teachers.alignment import TokenTexts, aligned_spans, prefixed_tokens, shared_tokens

TEXTS = [
    "The answer is 12345.",
    "  two  spaces\n\n and lines \n",
    "naïve façade, 3 µm, 漢字 🙂🙂 done",
    "12 + 34 = 46\n#### 46",
    "",
]


def metaspace() -> PreTrainedTokenizerFast:
    """A tokenizer of another kind: a word mark for spaces, lower case only, characters and a few words."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Metaspace(prepend_scheme="first")
    corpus = [text.lower() for text in TEXTS] * 5
    made.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "</s>"]))
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="</s>")


@pytest.fixture(scope="module")
def smol():
    return AutoTokenizer.from_pretrained(resolve_model("embedded"))


def written(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.fixture(scope="module")
def partners(smol) -> dict[int, int]:
    return dict(shared_tokens(TokenTexts.of(smol), TokenTexts.of(byte_tokenizer())))


@pytest.mark.parametrize("text", TEXTS)
def test_a_span_has_one_text_in_both_tokenisations(smol, partners, text) -> None:
    other = byte_tokenizer()
    one_ids, other_ids = written(smol, text), written(other, text)
    spans = aligned_spans(smol, one_ids, other, other_ids, partners)
    said = "".join(smol.decode(one_ids[a:b], clean_up_tokenization_spaces=False) for a, b, _, _ in spans)
    assert said == "".join(other.decode(other_ids[c:d]) for _, _, c, d in spans) == text
    assert [a for a, *_ in spans] == sorted({a for a, *_ in spans})
    for a, b, c, d in spans:
        assert (smol.decode(one_ids[a:b], clean_up_tokenization_spaces=False)) == other.decode(other_ids[c:d])
    # Shortest spans: no boundary inside is one of both.
    assert len(spans) == len({token_spans(smol, one_ids)[1][b - 1] for _, b, _, _ in spans})


@pytest.mark.parametrize("which", ["smol", "bytes"])
def test_with_one_tokenizer_each_token_is_a_span(smol, which) -> None:
    tokenizer = smol if which == "smol" else byte_tokenizer()
    pairs = shared_tokens(*[TokenTexts.of(tokenizer)] * 2)
    assert pairs == [(index, index) for index in sorted(tokenizer.get_vocab().values())]
    for text in TEXTS:
        ids = written(tokenizer, text)
        expected = [(i, i + 1, i, i + 1) for i in range(len(ids))]
        assert aligned_spans(tokenizer, ids, tokenizer, ids, dict(pairs)) == expected


def test_other_notations_of_a_space_are_the_same_text(smol) -> None:
    other = metaspace()
    pairs = dict(shared_tokens(TokenTexts.of(smol), TokenTexts.of(other)))
    entry = pairs[smol.get_vocab()["Ġis"]]
    assert other.convert_ids_to_tokens(entry) == "▁is"
    assert len(set(pairs.values())) == len(pairs)


def test_a_text_that_one_tokenizer_changes_is_aligned_up_to_there(smol) -> None:
    other, text = metaspace(), "the answer Is 12"
    one_ids, other_ids = written(smol, text), written(other, text)
    spans = aligned_spans(smol, one_ids, other, other_ids, {})
    said = "".join(smol.decode(one_ids[a:b]) for a, b, _, _ in spans)
    assert said == "the answer"


def test_special_tokens_within_a_completion_belong_to_no_span(smol) -> None:
    other = byte_tokenizer()
    ids = [*written(smol, "ab"), smol.eos_token_id, *written(smol, " c")]
    spans = aligned_spans(smol, ids, other, written(other, "ab c"), {})
    assert [(a, b) for a, b, _, _ in spans] == [(0, 1), (2, 3)]
    assert [(c, d) for _, _, c, d in spans] == [(0, 2), (2, 4)]


def test_a_token_without_a_partner_counts_with_the_pair_that_begins_it() -> None:
    one, other = tokenizer(), byte_pair_tokenizer()
    sides = TokenTexts.of(one), TokenTexts.of(other)
    pairs = shared_tokens(*sides)
    texts = [one.convert_ids_to_tokens(first) for first, _ in pairs]
    student, teacher = prefixed_tokens(*sides, pairs)
    with_pair = {one.convert_ids_to_tokens(index): texts[place] for index, place in student.items()}
    assert (with_pair[" Ida has"], with_pair[" 2 more than"]) == (" Ida", " 2")
    assert all(token.startswith(pair) for token, pair in with_pair.items())
    assert not {*student} & {first for first, _ in pairs}
    assert not {*student} & {*one.all_special_ids}
    # " has 2 more than" begins as the student's " " alone.
    assert texts[teacher[other.convert_tokens_to_ids(" has 2 more than")]] == " "


def test_with_one_tokenizer_no_token_is_without_a_partner() -> None:
    one = TokenTexts.of(byte_pair_tokenizer())
    assert prefixed_tokens(one, one, shared_tokens(one, one)) == ({}, {})


def test_every_plain_token_of_a_vocabulary_begins_with_a_byte(smol, partners) -> None:
    other, pairs = byte_tokenizer(), sorted(partners.items())
    student, teacher = prefixed_tokens(TokenTexts.of(smol), TokenTexts.of(other), pairs)
    assert not teacher
    for index in written(smol, "The answer unquestionably"):
        first, _ = pairs[student[index]]
        assert smol.decode([first]) == smol.decode([index])[0]
