"""The divergence on spans of text: equal to the plain one with one tokenizer, and to a slow reference with two."""

import math

import pytest
import torch

from rlkd.divergence import Divergence, Head, chunked_divergence, token_statistics
from rlkd.divergence.spans import SharedTokens, SpannedTokens, span_divergence, span_statistics

KINDS = [
    Divergence(beta=0.0),
    Divergence(beta=1.0, temperature=0.7),
    Divergence(beta=0.3),
    Divergence("skewed_forward"),
    Divergence("skewed_reverse"),
]


def sides(count=(7, 7), sizes=(11, 11), spans=None, seed=0):
    torch.manual_seed(seed)
    made = []
    for index, (number, size) in enumerate(zip(count, sizes, strict=True)):
        head = Head(torch.randn(size, 5, requires_grad=index == 0), torch.randn(size), softcap=30.0 if index else None)
        hidden = torch.randn(number, 5, requires_grad=index == 0)
        own = torch.tensor([[i, i + 1] for i in range(number)] if spans is None else spans[index])
        made.append(SpannedTokens(hidden, head, torch.randint(size, (number,)), own))
    return made


@pytest.mark.parametrize("divergence", KINDS, ids=str)
def test_with_one_vocabulary_it_is_the_plain_divergence(divergence) -> None:
    student, teacher = sides()
    teacher = SpannedTokens(teacher.hidden, teacher.head, student.taken, teacher.spans)
    shared = SharedTokens.of([(i, i) for i in range(11)], 11, 11, "cpu")
    found, entropy = span_divergence(student, teacher, shared, divergence, k=4)
    gradients = torch.autograd.grad((found * torch.arange(7)).sum(), (student.hidden, student.head.weight))
    plain = chunked_divergence(student.hidden, student.head, teacher.hidden, teacher.head, divergence)
    expected = torch.autograd.grad((plain[0] * torch.arange(7)).sum(), (student.hidden, student.head.weight))
    torch.testing.assert_close(found, plain[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, plain[1], atol=1e-5, rtol=1e-5)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_half_precision_weights_and_states_give_the_plain_divergence_too() -> None:
    torch.manual_seed(0)
    made = []
    for trained in (True, False):
        weight, hidden = (torch.randn(size, 64).bfloat16().requires_grad_(trained) for size in (11, 7))
        made.append(
            SpannedTokens(hidden, Head(weight), torch.randint(11, (7,)), torch.tensor([[i, i + 1] for i in range(7)]))
        )
    student, teacher = made[0], SpannedTokens(made[1].hidden, made[1].head, made[0].taken, made[1].spans)
    shared = SharedTokens.of([(i, i) for i in range(11)], 11, 11, "cpu")
    inputs = (student.hidden, student.head.weight)
    found, entropy = span_divergence(student, teacher, shared, KINDS[2], k=4)
    plain = chunked_divergence(student.hidden, student.head, teacher.hidden, teacher.head, KINDS[2])
    torch.testing.assert_close((found, entropy), plain, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(loss.sum(), inputs) for loss in (found, plain[0])]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-2)  # both rounded to bfloat16


def test_with_one_vocabulary_statistics_are_the_plain_ones() -> None:
    student, teacher = sides()
    teacher = SpannedTokens(teacher.hidden, teacher.head, student.taken, teacher.spans)
    shared = SharedTokens.of([(i, i) for i in range(11)], 11, 11, "cpu")
    found = span_statistics(student, teacher, shared, 0.9, 4, full=True)
    plain = token_statistics(student.hidden, student.head, teacher.hidden, teacher.head, student.taken, 0.9)
    for name, value in vars(plain).items():
        torch.testing.assert_close(getattr(found, name), value, atol=1e-5, rtol=1e-4)


# Texts of the ids; the completion is ab, abc, c, abc, and a token of the student's outside of spans.
STUDENT = ["a", "b", "c", "ab", "ca", "bc", "x", "y", "xx"]
TEACHER = ["b", "a", "c", "abc", "ab", "bc", "z", "zz"]
PAIRS = [(STUDENT.index(text), TEACHER.index(text)) for text in ("a", "b", "c", "ab", "bc")]
TAKEN = (
    [STUDENT.index(t) for t in ("ab", "a", "bc", "c", "a", "bc", "x")],
    [TEACHER.index(t) for t in ("a", "b", "abc", "c", "ab", "c")],
)
SPANS = [[[0, 1], [1, 3], [3, 4], [4, 6]], [[0, 2], [2, 3], [3, 4], [4, 6]]]


# Tokens that begin as a pair's: the place of that pair.
PREFIXED = {STUDENT.index("ca"): 2}, {TEACHER.index("abc"): 3}


def slow(student, teacher, span, divergence, k, prefixed=({}, {})):
    """The divergence of one span, outcome by outcome, and both distributions."""
    (a, b), (c, d) = (tuple(side.spans[span].tolist()) for side in (student, teacher))
    distributions = []
    for own, (start, stop), other, (o_start, o_stop), pairs in (
        (student, (a, b), teacher, (c, d), dict(map(reversed, PAIRS))),
        (teacher, (c, d), student, (a, b), dict(PAIRS)),
    ):
        logits = own.hidden @ own.head.weight.T + own.head.bias
        if own.head.softcap:
            logits = own.head.softcap * torch.tanh(logits / own.head.softcap)
        p = (logits / divergence.temperature).softmax(-1)
        path = math.prod([p[i, own.taken[i]] for i in range(start, stop)], start=torch.ones(()))
        here = {i: p[start, i] for i in range(p.shape[1])}
        here[int(own.taken[start])] = here[int(own.taken[start])] - path
        partner = pairs.get(int(other.taken[o_start])) if o_stop - o_start == 1 else None
        if partner is not None and partner != int(own.taken[start]):
            path = path + here[partner]
            here[partner] = torch.zeros(())
        distributions.append((path, here))
    (path_s, s), (path_t, t) = distributions
    joined = [
        [sum((p[i] for i, pair in own.items() if pair == place), start=p[ids[place]]) for place in range(len(PAIRS))]
        for p, own, ids in zip((s, t), prefixed, zip(*PAIRS, strict=True), strict=True)
    ]
    for place, (i, j) in enumerate(PAIRS):
        if (a + 1, i) == (b, int(student.taken[a])) or (c + 1, j) == (d, int(teacher.taken[c])):
            path_s, path_t = path_s + joined[0][place], path_t + joined[1][place]
            joined[0][place] = joined[1][place] = torch.zeros(())
    outcomes = [(path_s, path_t), *zip(*joined, strict=True)]
    unshared = [
        [p[i] for i in p if i not in ids and i not in own]
        for p, own, ids in zip((s, t), prefixed, zip(*PAIRS, strict=True), strict=True)
    ]
    rest = [sorted(values, reverse=True, key=lambda value: float(value.detach())) for values in unshared]
    unmatched = [*zip(rest[0][:k], rest[1][:k], strict=True), (sum(rest[0][k:]), sum(rest[1][k:]))]
    outcomes += [tuple(torch.as_tensor(value).clamp(min=1e-7) for value in pair) for pair in unmatched]
    p, q = (torch.stack([torch.as_tensor(pair[side]) for pair in outcomes]).clamp(min=1e-30) for side in (0, 1))
    assert float(p.sum()) == pytest.approx(1, abs=1e-5)
    assert float(q.sum()) == pytest.approx(1, abs=1e-5)
    if divergence.beta == 0:
        return (q * (q / p).log()).sum()
    if divergence.beta == 1:
        return (p * (p / q).log()).sum()
    m = divergence.beta * q + (1 - divergence.beta) * p
    return divergence.beta * (q * (q / m).log()).sum() + (1 - divergence.beta) * (p * (p / m).log()).sum()


@pytest.mark.parametrize("prefixed", [({}, {}), PREFIXED], ids=["pairs", "prefixed"])
@pytest.mark.parametrize("divergence", KINDS[:3], ids=str)
def test_with_two_vocabularies_it_is_the_slow_sum_over_outcomes(divergence, prefixed) -> None:
    student, teacher = sides((7, 6), (9, 8), SPANS)
    student.taken[:], teacher.taken[:] = (torch.tensor(ids) for ids in TAKEN)
    shared = SharedTokens.of(PAIRS, 9, 8, "cpu", prefixed)
    found, _ = span_divergence(student, teacher, shared, divergence, k=2)
    expected = torch.stack([slow(student, teacher, span, divergence, 2, prefixed) for span in range(4)])
    torch.testing.assert_close(found[[0, 1, 3, 4]], expected, atol=1e-5, rtol=1e-4)
    assert found[[2, 5, 6]].tolist() == [0, 0, 0]
    inputs = (student.hidden, student.head.weight)
    gradients = [torch.autograd.grad(loss.sum(), inputs) for loss in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("text", ["ab", "a"])
@pytest.mark.parametrize("divergence", KINDS, ids=str)
def test_models_that_agree_have_no_divergence_though_one_has_longer_tokens(divergence, text) -> None:
    """The student's tokens are ab, cb, a, c; the teacher's a, c, b."""
    zero = 1e-9

    def side(rows, taken, trained=False):
        powers = torch.tensor(rows) ** divergence.temperature
        hidden = (powers / powers.sum(1, keepdim=True)).log().requires_grad_(trained)
        return SpannedTokens(
            hidden, Head(torch.eye(hidden.shape[1])), torch.tensor(taken), torch.tensor([[0, len(taken)]])
        )

    if text == "ab":
        student, teacher = side([[0.6, 0.4, zero, zero]], [0], True), side([[0.6, 0.4, zero], [zero, zero, 1]], [0, 2])
    else:  # a third of what begins with a goes on with b
        student, teacher = side([[0.2, 0.4, 0.4, zero]], [2], True), side([[0.6, 0.4, zero]], [0])
    pairs = [(2, 0), (3, 1)]
    apart, joined = (SharedTokens.of(pairs, 4, 3, "cpu", prefixed) for prefixed in (({}, {}), ({0: 0, 1: 1}, {})))
    found, _ = span_divergence(student, teacher, joined, divergence, k=4)
    assert float(found[0]) == pytest.approx(0, abs=1e-4)
    assert torch.autograd.grad(found.sum(), student.hidden)[0].abs().max() < 1e-3
    assert float(span_divergence(student, teacher, apart, divergence, k=4)[0][0]) > 0.01


@pytest.mark.parametrize("taken", [(1, 0), (0, 1), (0, 0), (1, 1)])
@pytest.mark.parametrize("divergence", KINDS, ids=str)
def test_models_that_agree_have_no_divergence_where_two_pairs_have_one_text(divergence, taken) -> None:
    """The tokens are A, its byte <0x41> and z, and the student's Abc."""
    made = []
    for rows, token in zip(([0.5, 0.2, 0.1, 0.2], [0.7, 0.2, 0.1]), taken, strict=True):
        logits = (torch.tensor([rows]).log() * divergence.temperature).requires_grad_(len(rows) == 4)
        made.append(SpannedTokens(logits, Head(torch.eye(len(rows))), torch.tensor([token]), torch.tensor([[0, 1]])))
    shared = SharedTokens.of([(0, 0), (1, 1), (2, 2)], 4, 3, "cpu", ({3: 0}, {}))
    found, _ = span_divergence(*made, shared, divergence, k=4)
    assert float(found[0]) == pytest.approx(0, abs=1e-4)
    assert torch.autograd.grad(found.sum(), made[0].hidden)[0].abs().max() < 1e-3


def test_a_spans_log_probability_is_that_of_its_tokens_shared_out() -> None:
    student, teacher = sides((7, 6), (9, 8), SPANS)
    shared = SharedTokens.of(PAIRS, 9, 8, "cpu")
    found = span_statistics(student, teacher, shared, 1.0, 2, full=False)
    plain = token_statistics(None, None, teacher.hidden, teacher.head, teacher.taken)
    for name in ("teacher_logprob", "teacher_entropy"):
        own, values = getattr(plain, name), getattr(found, name)
        sums = [values[a:b].sum() for a, b in SPANS[0]]
        torch.testing.assert_close(torch.stack(sums), torch.stack([own[a:b].sum() for a, b in SPANS[1]]))
        assert float(values[1]) == float(values[2])


def test_tokens_outside_spans_have_no_statistics_and_cost_nothing() -> None:
    student, teacher = sides((4, 4), (9, 8), [[[0, 1]], [[0, 1]]])
    shared = SharedTokens.of(PAIRS, 9, 8, "cpu")
    values = span_statistics(student, teacher, shared, 1.0, 2, full=True)
    assert values.teacher_logprob.isnan().tolist() == [False, True, True, True]
    assert values.kl.isnan().tolist() == [False, True, True, True]
    assert not values.student_logprob.isnan().any()
    nothing = SpannedTokens(student.hidden, student.head, student.taken, torch.zeros(0, 2, dtype=torch.long))
    silent = SpannedTokens(teacher.hidden, teacher.head, teacher.taken, nothing.spans)
    found, _ = span_divergence(nothing, silent, shared, Divergence(), 2)
    found.sum().backward()
    assert found.tolist() == [0, 0, 0, 0]
    assert float(student.hidden.grad.abs().sum()) == 0
