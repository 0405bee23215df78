"""`rlkd.divergence` against a dense reference that builds everything, against TRL's kernel, and by its properties."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlkd.divergence import (
    SMALLEST_TAIL,
    Divergence,
    Head,
    autograd,
    chunked_divergence,
    tiles,
    token_statistics,
    topk_divergence,
    topk_statistics,
    weighted_mean,
)
from trainers.common.trl_compat import trl_kernel

FORWARD, REVERSE, JSD = Divergence(beta=0.0), Divergence(beta=1.0), Divergence(beta=0.5)
KINDS = [
    FORWARD,
    REVERSE,
    JSD,
    Divergence(beta=0.1, temperature=0.7),
    Divergence("skewed_forward", skew=0.1),
    Divergence("skewed_reverse", skew=0.1),
    Divergence("skewed_forward", skew=0.7, temperature=2.0),
    Divergence("skewed_reverse", skew=0.7, temperature=0.5),
    Divergence("skewed_forward", skew=0.0),
    Divergence("skewed_reverse", skew=0.0),
]
AT_ONE = [kind for kind in KINDS if kind.temperature == 1]


def name_of(kind: Divergence) -> str:
    number = kind.beta if kind.kind == "jsd" else kind.skew
    return f"{kind.kind}-{number}-at-{kind.temperature}"


def dense_logprobs(hidden: Tensor, head: Head, temperature: float = 1.0) -> Tensor:
    logits = hidden @ head.weight.T
    if head.bias is not None:
        logits = logits + head.bias
    logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return (logits / temperature).log_softmax(-1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(-1)


def dense_compare(s: Tensor, t: Tensor, divergence: Divergence) -> Tensor:
    """The definitions, word for word; autograd does the rest."""

    def mix(share: float) -> Tensor:
        return torch.log(share * t.exp() + (1 - share) * s.exp())

    if divergence.kind == "skewed_forward":
        return kl(t, mix(divergence.skew))
    if divergence.kind == "skewed_reverse":
        return kl(s, mix(1 - divergence.skew))
    if divergence.beta in (0, 1):
        return kl(s, t) if divergence.beta else kl(t, s)
    return divergence.beta * kl(t, mix(divergence.beta)) + (1 - divergence.beta) * kl(s, mix(divergence.beta))


@dataclass
class Pair:
    """A student and a teacher at one position each of N, and the weights of these positions."""

    student_hidden: Tensor
    student: Head
    teacher_hidden: Tensor
    teacher: Head
    weights: Tensor

    @property
    def arguments(self) -> tuple[Tensor, Head, Tensor, Head]:
        return self.student_hidden, self.student, self.teacher_hidden, self.teacher

    @property
    def leaves(self) -> list[Tensor]:
        return [
            leaf
            for leaf in (self.student_hidden, self.student.weight, self.student.bias)
            if leaf is not None and leaf.requires_grad
        ]

    def dense(self, divergence: Divergence) -> tuple[Tensor, Tensor]:
        s = dense_logprobs(self.student_hidden, self.student, divergence.temperature)
        t = dense_logprobs(self.teacher_hidden, self.teacher, divergence.temperature).detach()
        return dense_compare(s, t, divergence), -(s.exp() * s).sum(-1).detach()

    def gradients(self, per_token: Tensor) -> list[Tensor]:
        loss = weighted_mean(per_token, self.weights, 3.0)
        return list(torch.autograd.grad(loss, self.leaves))


def pair(
    tokens: int = 7,
    vocabulary: int = 23,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    bias: bool = True,
    train_head: bool = True,
    scale: float = 1.0,
    softcap: float | None = None,
    spread: float = 1.0,
) -> Pair:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    student = Head(
        (random(vocabulary, 5) * spread).requires_grad_(train_head),
        random(vocabulary).requires_grad_(train_head) if bias else None,
        scale,
        softcap,
    )
    teacher = Head(random(vocabulary, 6) * spread, random(vocabulary) if bias else None, 1.5 * scale, softcap)
    weights = torch.rand(tokens, generator=generator, dtype=torch.float64).to(dtype) * 1.6 + 0.2
    return Pair(random(tokens, 5).requires_grad_(), student, random(tokens, 6), teacher, weights)


def assert_close(found: Tensor | list[Tensor], expected: Tensor | list[Tensor], tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def top(made: Pair, k: int) -> tuple[Tensor, Tensor]:
    logprobs, ids = dense_logprobs(made.teacher_hidden, made.teacher).topk(k, -1)
    return ids, logprobs


def buckets(logprobs: Tensor, ids: Tensor) -> Tensor:
    """[N, k + 1]: the chosen tokens and all others together."""
    rest = torch.ones_like(logprobs, dtype=torch.bool).scatter(1, ids, False)
    tail = logprobs.masked_fill(~rest, -math.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logprobs.gather(1, ids), tail], 1)


kinds = st.one_of(
    st.builds(
        Divergence,
        st.just("jsd"),
        beta=st.one_of(st.sampled_from([0.0, 1.0, 0.5]), st.floats(0.01, 0.99)),
        temperature=st.sampled_from([1.0, 0.6, 2.0]),
    ),
    st.builds(
        Divergence,
        st.sampled_from(["skewed_forward", "skewed_reverse"]),
        skew=st.one_of(st.just(0.0), st.floats(0.01, 0.95)),
        temperature=st.sampled_from([1.0, 0.6, 2.0]),
    ),
)
pairs = st.builds(
    pair,
    st.integers(0, 9),
    st.integers(2, 30),
    seed=st.integers(0, 10_000),
    bias=st.booleans(),
    train_head=st.booleans(),
    scale=st.sampled_from([1.0, 0.25, 2.0]),
    softcap=st.sampled_from([None, 1.0, 30.0]),
)
# Every token has more than 1e-5, so that nobody's rest is smaller than the smallest that we take it for.
mild_pairs = st.builds(
    pair,
    st.integers(0, 9),
    st.integers(2, 30),
    seed=st.integers(0, 10_000),
    bias=st.booleans(),
    train_head=st.booleans(),
    softcap=st.sampled_from([1.0, 3.0]),
)
chunks = st.fixed_dictionaries({"token_chunk": st.integers(1, 11), "vocabulary_chunk": st.integers(1, 33)})


@settings(max_examples=150, deadline=None)
@given(made=pairs, divergence=kinds, chunk=chunks, anticipated=st.sampled_from(["no", "yes", "wrong"]))
def test_values_entropies_and_gradients_are_those_of_the_dense_definition(made, divergence, chunk, anticipated):
    weights = {"no": None, "yes": made.weights, "wrong": made.weights.flip(0) + 1}[anticipated]
    per_token, entropy = chunked_divergence(*made.arguments, divergence, anticipated_weights=weights, **chunk)
    expected, expected_entropy = made.dense(divergence)
    assert_close(per_token, expected)
    assert_close(entropy, expected_entropy)
    assert not entropy.requires_grad
    assert_close(made.gradients(per_token), made.gradients(expected), 1e-8)


@settings(max_examples=100, deadline=None)
@given(
    made=mild_pairs,
    divergence=kinds,
    chunk=chunks,
    share=st.floats(0, 1),
    anticipated=st.booleans(),
)
def test_with_a_top_k_they_are_those_of_the_dense_definition_over_k_and_the_rest(
    made, divergence, chunk, share, anticipated
):
    divergence = replace(divergence, temperature=1.0)
    vocabulary = len(made.student.weight)
    ids, logprobs = top(made, 1 + round(share * (vocabulary - 2)))
    per_token, entropy = topk_divergence(
        made.student_hidden,
        made.student,
        ids,
        logprobs,
        divergence,
        anticipated_weights=made.weights if anticipated else None,
        **chunk,
    )
    s = dense_logprobs(made.student_hidden, made.student)
    t = dense_logprobs(made.teacher_hidden, made.teacher).detach()
    expected = dense_compare(buckets(s, ids), buckets(t, ids), divergence)
    assert_close(entropy, -(s.exp() * s).sum(-1).detach())
    assert_close(per_token, expected)
    assert_close(made.gradients(per_token), made.gradients(expected), 1e-8)


@pytest.mark.parametrize("train_head", [True, False], ids=["full", "frozen head"])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_the_generalised_jsd_is_trls_in_loss_and_gradients(beta: float, softcap: float | None, train_head: bool):
    # TRL's tiles have 32,768 columns: two here.
    made = pair(40, 33_000, dtype=torch.float32, scale=0.5, softcap=softcap, train_head=train_head)
    divergence = Divergence(beta=beta, temperature=0.9)
    ours, our_entropy = chunked_divergence(*made.arguments, divergence, anticipated_weights=made.weights)
    theirs, their_entropy = chunked_divergence(*made.arguments, divergence, kernel=trl_kernel)
    assert_close(weighted_mean(ours, made.weights, 40), weighted_mean(theirs, made.weights, 40), 1e-6)
    assert_close(our_entropy, their_entropy, 1e-5)
    assert_close(made.gradients(ours), made.gradients(theirs), 1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_under_autocast_it_is_trls_too(beta: float):
    made = pair(40, 300, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours, entropy = chunked_divergence(*made.arguments, Divergence(beta=beta), anticipated_weights=made.weights)
        theirs, _ = chunked_divergence(*made.arguments, Divergence(beta=beta), kernel=trl_kernel)
        statistics = token_statistics(*made.arguments, torch.zeros(40, dtype=torch.int64))
    assert ours.dtype == entropy.dtype == torch.float32
    assert_close(weighted_mean(ours, made.weights, 40), weighted_mean(theirs, made.weights, 40), 1e-5)
    # TRL rounds the gradient of each logit to bfloat16; on a CPU that saves nothing, and we do not.
    for mine, their in zip(made.gradients(ours), made.gradients(theirs), strict=True):
        assert (mine - their).norm() < 0.004 * their.norm()
    assert_close(statistics.student_entropy, entropy, 1e-5)


@pytest.mark.parametrize("anticipate", [True, False])
@pytest.mark.parametrize("divergence", KINDS, ids=name_of)
def test_gradients_pass_gradcheck(divergence: Divergence, anticipate: bool):
    made = pair(4, 9, softcap=2.0, scale=0.8)
    weights = made.weights if anticipate else None

    def full(hidden, weight, bias):
        head = Head(weight, bias, made.student.scale, made.student.softcap)
        return chunked_divergence(
            hidden,
            head,
            made.teacher_hidden,
            made.teacher,
            divergence,
            anticipated_weights=weights,
            token_chunk=3,
            vocabulary_chunk=4,
        )[0]

    assert torch.autograd.gradcheck(full, made.leaves)


@pytest.mark.parametrize("divergence", AT_ONE, ids=name_of)
def test_gradients_of_a_top_k_pass_gradcheck(divergence: Divergence):
    made = pair(4, 9, softcap=2.0, scale=0.8)
    ids, logprobs = top(made, 3)

    def full(hidden, weight, bias):
        head = Head(weight, bias, made.student.scale, made.student.softcap)
        return topk_divergence(hidden, head, ids, logprobs, divergence, token_chunk=3, vocabulary_chunk=4)[0]

    assert torch.autograd.gradcheck(full, made.leaves)


@pytest.mark.parametrize("divergence", KINDS, ids=name_of)
def test_a_divergence_is_0_with_no_gradient_between_equals_and_never_negative(divergence: Divergence):
    per_token, _ = chunked_divergence(*pair(50, 40, dtype=torch.float32, spread=3).arguments, divergence)
    assert per_token.min() > 0
    made = pair(50, 40, spread=3)
    same = Head(made.student.weight.detach(), made.student.bias.detach(), made.student.scale)
    equal, _ = chunked_divergence(made.student_hidden, made.student, made.student_hidden, same, divergence)
    assert_close(equal, torch.zeros(50, dtype=torch.float64), 1e-12)
    for gradient in made.gradients(equal):
        assert gradient.abs().max() < 1e-12


@settings(max_examples=60, deadline=None)
@given(made=pairs, divergence=kinds, spread=st.floats(1, 100))
def test_a_divergence_that_mixes_is_bounded_however_far_apart_the_models_are(made, divergence, spread):
    apart = [hidden * spread for hidden in (made.student_hidden, made.teacher_hidden)]
    per_token, _ = chunked_divergence(apart[0], made.student, apart[1], made.teacher, divergence)
    assert bool((per_token > -1e-9).all())
    share = divergence.beta if divergence.kind == "jsd" else divergence.skew
    if share in (0, 1):
        return
    bound = -math.log(share)
    if divergence.kind == "jsd":
        # The entropy of a coin with this share: log 2 at beta = 1/2.
        bound = -share * math.log(share) - (1 - share) * math.log1p(-share)
    assert bool((per_token <= bound + 1e-9).all())


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(divergence=kinds, first=chunks, second=chunks, order=st.permutations(range(13)), seed=st.integers(0, 999))
def test_neither_chunks_nor_the_order_of_tokens_change_anything(divergence, first, second, order, seed):
    made = pair(13, 30, seed=seed)
    one, entropy = chunked_divergence(*made.arguments, divergence, **first)
    other, _ = chunked_divergence(*made.arguments, divergence, **second)
    assert_close(one, other)
    hidden, *head = made.gradients(one)
    assert_close(made.gradients(other), [hidden, *head])
    moved = replace(
        made,
        student_hidden=made.student_hidden.detach()[order].requires_grad_(),
        teacher_hidden=made.teacher_hidden[order],
        weights=made.weights[order],
    )
    shuffled, shuffled_entropy = chunked_divergence(*moved.arguments, divergence, **second)
    assert_close(shuffled, one[order])
    assert_close(shuffled_entropy, entropy[order])
    assert_close(moved.gradients(shuffled), [hidden[order], *head])


@pytest.mark.parametrize("divergence", AT_ONE, ids=name_of)
def test_a_top_k_of_the_whole_vocabulary_is_the_whole_divergence(divergence: Divergence):
    made = pair(9, 30)
    whole, _ = chunked_divergence(*made.arguments, divergence)
    ids, logprobs = top(made, 30)
    per_token, _ = topk_divergence(made.student_hidden, made.student, ids, logprobs, divergence)
    assert_close(per_token, whole)
    assert_close(made.gradients(per_token), made.gradients(whole))


@settings(max_examples=60, deadline=None)
@given(divergence=kinds, seed=st.integers(0, 9999), k=st.integers(1, 28))
def test_one_outcome_for_the_rest_gives_a_lower_bound_that_grows_with_k(divergence, seed, k):
    divergence = replace(divergence, temperature=1.0)
    made = pair(9, 30, seed=seed, softcap=3.0)
    whole, _ = chunked_divergence(*made.arguments, divergence)
    less, more = (
        topk_divergence(made.student_hidden, made.student, *top(made, size), divergence)[0] for size in (k, k + 1)
    )
    assert bool((less > -1e-9).all())
    assert bool((less <= more + 1e-9).all())
    assert bool((more <= whole + 1e-9).all())


@pytest.mark.parametrize("divergence", AT_ONE, ids=name_of)
def test_a_rest_of_nothing_on_either_side_stays_finite(divergence: Divergence):
    """Logits so far apart that all but the top 2 underflow: for both models, for the student, for the teacher."""
    sharp = torch.tensor([[120.0, 119.0] + [-120.0] * 8])
    flat = torch.zeros(1, 10)
    ids = torch.tensor([[0, 1]])
    for student, teacher in ((sharp, sharp), (sharp, flat), (flat, sharp)):
        hidden = student.clone().requires_grad_()
        logprobs = teacher.log_softmax(-1)[:, :2]
        per_token, entropy = topk_divergence(hidden, Head(torch.eye(10)), ids, logprobs, divergence)
        (gradient,) = torch.autograd.grad(per_token.sum(), hidden)
        per_token = per_token.detach()
        assert bool(per_token.isfinite().all() and gradient.isfinite().all() and entropy.isfinite().all())
        # A softmax does not see a shift of all logits.
        assert abs(float(gradient.sum())) < 1e-5
        if student is teacher:
            assert abs(float(per_token)) < 1e-4


def test_a_reverse_kl_charges_the_student_for_mass_where_the_teacher_seems_to_have_none():
    logprobs = torch.tensor([[0.75, 0.25]]).log()
    per_token, _ = topk_divergence(torch.zeros(1, 10), Head(torch.eye(10)), torch.tensor([[0, 1]]), logprobs, REVERSE)
    expected = 0.1 * math.log(0.1 / 0.75) + 0.1 * math.log(0.1 / 0.25) + 0.8 * math.log(0.8 / SMALLEST_TAIL)
    assert float(per_token) == pytest.approx(expected, abs=1e-5)


def test_a_rest_that_the_student_makes_tiny_still_pulls_it_exactly():
    """1 - (sum of the others) would be 0 in float32; the student's own logits know better."""
    logits = torch.tensor([[0.0, -30.0, -31.0, -32.0]], dtype=torch.float32)
    ids, logprobs = torch.tensor([[0]]), torch.tensor([[0.5]]).log()
    per_token, _ = topk_divergence(logits, Head(torch.eye(4)), ids, logprobs, FORWARD)
    tail = float(torch.logsumexp(logits.double()[0, 1:], 0) - torch.logsumexp(logits.double()[0], 0))
    assert float(per_token) == pytest.approx(0.5 * (math.log(0.5) - 0.0) + 0.5 * (math.log(0.5) - tail), rel=1e-6)


def test_probabilities_that_rounding_made_sum_to_more_than_1_are_scaled_to_fit():
    hidden = torch.zeros(1, 4)
    ids, logprobs = torch.tensor([[0, 1]]), torch.tensor([[0.502, 0.502]]).log()
    per_token, _ = topk_divergence(hidden, Head(torch.eye(4)), ids, logprobs, FORWARD)
    assert float(per_token) == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize("divergence", AT_ONE, ids=name_of)
def test_padding_in_a_top_k_changes_nothing(divergence: Divergence):
    made = pair(6, 20)
    ids, logprobs = top(made, 4)
    padded_ids = torch.cat([ids, torch.tensor([[0, -1]]).expand(6, 2)], 1)
    padded = torch.cat([logprobs, torch.full((6, 2), -math.inf)], 1)
    one, _ = topk_divergence(made.student_hidden, made.student, ids, logprobs, divergence)
    other, _ = topk_divergence(made.student_hidden, made.student, padded_ids, padded, divergence)
    assert_close(other, one)
    assert_close(made.gradients(other), made.gradients(one))


class Largest(TorchDispatchMode):
    """Keeps the number of entries of the largest tensor that any operation returned."""

    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(tensor, Tensor):
                self.entries = max(self.entries, tensor.numel())
        return found


@pytest.mark.parametrize("kind", ["logits", "top k", "statistics", "statistics of a top k"])
@pytest.mark.parametrize("train_head", [True, False])
def test_no_tensor_is_larger_than_a_tile_or_the_head(kind: str, train_head: bool):
    tokens, vocabulary, tile = 300, 500, 4
    made = pair(tokens, vocabulary, dtype=torch.float32, train_head=train_head)
    ids, logprobs = top(made, 8)
    taken = torch.zeros(tokens, dtype=torch.int64)
    with Largest() as largest:
        if kind == "logits":
            per_token, _ = chunked_divergence(*made.arguments, JSD, token_chunk=tile)
            made.gradients(per_token)
        elif kind == "top k":
            per_token, _ = topk_divergence(*made.arguments[:2], ids, logprobs, JSD, token_chunk=tile)
            made.gradients(per_token)
        elif kind == "statistics":
            token_statistics(*made.arguments, taken, token_chunk=tile)
        else:
            topk_statistics(ids, logprobs, taken.float(), *made.arguments[:2], taken, token_chunk=tile)
    assert 0 < largest.entries <= max(vocabulary * 6, tokens * 9, tile * (vocabulary + 1))
    assert largest.entries < tokens * vocabulary / 40


def test_logits_are_computed_again_only_where_the_weights_were_not_anticipated(monkeypatch):
    sweeps = []
    real = autograd.sweep
    monkeypatch.setattr(autograd, "sweep", lambda *arguments: sweeps.append(arguments[4]) or real(*arguments))

    def sweeps_of(made: Pair, factor: Tensor | float, **settings) -> int:
        sweeps.clear()
        per_token, _ = chunked_divergence(*made.arguments, REVERSE, **settings)
        (per_token * factor).sum().backward()
        return len(sweeps)

    trained, frozen = pair(), pair(train_head=False)
    weights = trained.weights
    assert sweeps_of(trained, weights, anticipated_weights=weights) == 1
    assert sweeps_of(trained, weights / 1234.5, anticipated_weights=weights * 7) == 1
    assert sweeps_of(trained, 1.0, anticipated_weights=torch.ones(7)) == 1
    assert sweeps_of(trained, 0.0, anticipated_weights=torch.zeros(7)) == 1
    assert sweeps_of(trained, weights, anticipated_weights=weights.flip(0)) == 2
    assert sweeps_of(trained, weights, anticipated_weights=torch.zeros(7)) == 2
    assert sweeps_of(trained, weights) == 2
    # A head that is not trained costs nothing: each token's gradient is multiplied later.
    assert sweeps_of(frozen, weights) == 1
    assert frozen.student.weight.grad is None
    with torch.no_grad():
        sweeps.clear()
        chunked_divergence(*trained.arguments, REVERSE, anticipated_weights=weights)
        assert sweeps == [None]


def test_without_gradients_none_are_made(monkeypatch):
    products = []
    real = tiles.add_product
    for module in (autograd, tiles):
        monkeypatch.setattr(
            module, "add_product", lambda *args, **settings: products.append(settings) or real(*args, **settings)
        )
    made = pair()
    with torch.no_grad():
        per_token, _ = chunked_divergence(*made.arguments, REVERSE, anticipated_weights=made.weights)
    assert not per_token.requires_grad
    assert products == [{"keep": False}] * 2


def test_a_second_backward_pass_gives_the_same_gradient_again():
    made = pair()
    per_token, _ = chunked_divergence(*made.arguments, JSD, anticipated_weights=made.weights)
    loss = weighted_mean(per_token, made.weights, 2)
    first = torch.autograd.grad(loss, made.leaves, retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    second = torch.autograd.grad(loss, made.leaves)
    assert_close(list(second), kept)
    assert_close(list(first), kept)


def test_a_tied_head_gets_the_gradient_of_both_its_uses():
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(20, 6, generator=generator, dtype=torch.float64).requires_grad_()
    teacher_hidden, teacher = torch.randn(8, 6, generator=generator, dtype=torch.float64), Head(table.detach() + 0.3)
    ids = torch.arange(8)
    found = []
    for dense in (False, True):
        hidden = torch.tanh(table[ids])
        if dense:
            t = dense_logprobs(teacher_hidden, teacher)
            per_token = dense_compare(dense_logprobs(hidden, Head(table)), t, REVERSE)
        else:
            per_token, _ = chunked_divergence(hidden, Head(table), teacher_hidden, teacher, REVERSE, token_chunk=3)
        found.append(torch.autograd.grad(per_token.sum(), table)[0])
    assert_close(found[0], found[1])


def test_nothing_flows_to_the_teacher_or_through_the_weights():
    made = pair()
    teacher = replace(made.teacher, weight=made.teacher.weight.requires_grad_())
    teacher_hidden = made.teacher_hidden.requires_grad_()
    weights = made.weights.requires_grad_()
    logprobs = top(made, 3)[1]
    assert logprobs.requires_grad
    for per_token, _ in (
        chunked_divergence(
            made.student_hidden, made.student, teacher_hidden, teacher, JSD, anticipated_weights=weights
        ),
        chunked_divergence(made.student_hidden, made.student, teacher_hidden, teacher, JSD, kernel=trl_kernel),
        topk_divergence(made.student_hidden, made.student, top(made, 3)[0], logprobs, JSD),
    ):
        weighted_mean(per_token, weights, weights.sum()).backward()
    assert teacher.weight.grad is None
    assert teacher_hidden.grad is None
    assert weights.grad is None
    assert made.student_hidden.grad is not None


@pytest.mark.parametrize("kind", ["logits", "top k", "trl"])
def test_no_tokens_give_zero_with_a_graph(kind: str):
    made = pair(0, 11, dtype=torch.float32)
    if kind == "top k":
        per_token, entropy = topk_divergence(*made.arguments[:2], *top(made, 3), REVERSE)
    else:
        kernel = trl_kernel if kind == "trl" else None
        per_token, entropy = chunked_divergence(*made.arguments, REVERSE, kernel=kernel)
    assert per_token.shape == entropy.shape == (0,)
    loss = weighted_mean(per_token, made.weights, 0)
    loss.backward()
    assert float(loss.detach()) == 0
    # Present and zero: several processes that wait for each other's gradients all have one.
    assert made.student.weight.grad.abs().sum() == 0
    assert made.student_hidden.grad.shape == (0, 5)
    empty = torch.zeros(0, dtype=torch.int64)
    assert token_statistics(*made.arguments, empty).kl.shape == (0,)
    assert topk_statistics(*top(made, 3), empty.float(), *made.arguments[:2], empty).kl.shape == (0,)


def test_positions_that_are_left_out_may_hold_anything():
    made = pair(6, 12)
    mask = torch.tensor([True, False, True, True, False, True])
    garbage = torch.where(mask.unsqueeze(1), made.student_hidden.detach(), math.nan).requires_grad_()
    teacher_garbage = torch.where(mask.unsqueeze(1), made.teacher_hidden, math.inf)
    per_token, _ = chunked_divergence(
        garbage[mask], made.student, teacher_garbage[mask], made.teacher, JSD, anticipated_weights=made.weights[mask]
    )
    weighted_mean(per_token, made.weights[mask], 4).backward()
    assert bool((garbage.grad[~mask] == 0).all())
    expected = weighted_mean(made.dense(JSD)[0], made.weights * mask, 4)
    (gradient,) = torch.autograd.grad(expected, made.student_hidden)
    assert_close(garbage.grad, gradient)


def test_half_precision_is_summed_in_float32():
    """Rounding the inputs is all that half precision costs: more tokens than bfloat16 has digits still add up."""
    made = pair(600, 700, dtype=torch.float32, bias=False)
    for dtype in (torch.bfloat16, torch.float16):
        half = Pair(
            made.student_hidden.detach().to(dtype).requires_grad_(),
            Head(made.student.weight.detach().to(dtype).requires_grad_()),
            made.teacher_hidden.to(dtype),
            Head(made.teacher.weight.to(dtype)),
            made.weights,
        )
        same = Pair(
            half.student_hidden.detach().float().requires_grad_(),
            Head(half.student.weight.detach().float().requires_grad_()),
            half.teacher_hidden.float(),
            Head(half.teacher.weight.float()),
            made.weights,
        )
        for divergence in (FORWARD, REVERSE, JSD):
            per_token, entropy = chunked_divergence(*half.arguments, divergence)
            expected, expected_entropy = chunked_divergence(*same.arguments, divergence)
            assert per_token.dtype == entropy.dtype == torch.float32
            assert_close(per_token, expected, 1e-6)
            assert_close(entropy, expected_entropy, 1e-6)
            rounding = torch.finfo(dtype).eps
            for gradient, exact in zip(half.gradients(per_token), same.gradients(expected), strict=True):
                assert gradient.dtype == dtype
                torch.testing.assert_close(gradient.float(), exact, rtol=rounding, atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(made=pairs, chunk=chunks, temperature=st.sampled_from([1.0, 0.7]), seed=st.integers(0, 99))
def test_statistics_are_those_of_the_dense_distributions(made, chunk, temperature, seed):
    taken = torch.randint(len(made.student.weight), made.weights.shape, generator=torch.Generator().manual_seed(seed))
    found = token_statistics(*made.arguments, taken, temperature, **chunk)
    s = dense_logprobs(made.student_hidden, made.student, temperature).detach()
    t = dense_logprobs(made.teacher_hidden, made.teacher, temperature)
    assert_close(found.teacher_logprob, t.gather(1, taken.unsqueeze(1)).squeeze(1))
    assert_close(found.student_logprob, s.gather(1, taken.unsqueeze(1)).squeeze(1))
    assert_close(found.teacher_entropy, -(t.exp() * t).sum(1))
    assert_close(found.student_entropy, -(s.exp() * s).sum(1))
    assert_close(found.cross_entropy, -(s.exp() * t).sum(1))
    assert_close(found.kl, kl(s, t))
    assert not found.kl.requires_grad
    alone = token_statistics(None, None, made.teacher_hidden, made.teacher, taken, temperature, **chunk)
    assert_close(alone.teacher_entropy, found.teacher_entropy)
    assert_close(alone.teacher_logprob, found.teacher_logprob)
    assert alone.kl is alone.cross_entropy is alone.student_logprob is alone.student_entropy is None


def test_statistics_of_a_top_k_are_exact_for_the_student_and_bounds_for_the_teacher():
    made = pair(12, 40, softcap=3.0)
    taken = torch.arange(12)
    whole = token_statistics(*made.arguments, taken)
    for k in (1, 5, 39, 40):
        ids, logprobs = top(made, k)
        found = topk_statistics(
            ids, logprobs, whole.teacher_logprob, *made.arguments[:2], taken, token_chunk=5, vocabulary_chunk=7
        )
        assert_close(found.teacher_logprob, whole.teacher_logprob)
        assert_close(found.student_logprob, whole.student_logprob)
        assert_close(found.student_entropy, whole.student_entropy)
        for name in ("teacher_entropy", "cross_entropy", "kl"):
            assert bool((getattr(found, name) <= getattr(whole, name) + 1e-9).all())
        if k >= 39:
            assert_close(found.kl, whole.kl)
            assert_close(found.cross_entropy, whole.cross_entropy)
            assert_close(found.teacher_entropy, whole.teacher_entropy)
        bucketed, _ = topk_divergence(*made.arguments[:2], ids, logprobs, REVERSE)
        assert_close(found.kl, bucketed.detach())
        alone = topk_statistics(ids, logprobs, whole.teacher_logprob)
        assert_close(alone.teacher_entropy.double(), found.teacher_entropy, 1e-5)
        assert alone.kl is None


def test_a_weighted_mean_ignores_what_has_weight_0_and_survives_an_empty_batch():
    per_token = torch.tensor([1.0, math.nan, 3.0], requires_grad=True)
    loss = weighted_mean(per_token, torch.tensor([0.5, 0.0, 2.0]), 4)
    loss.backward()
    assert float(loss.detach()) == (0.5 + 6) / 4
    assert per_token.grad.tolist() == [0.125, 0.0, 0.5]
    per_token.grad = None
    nothing = weighted_mean(per_token, torch.zeros(3), torch.tensor(0.0))
    nothing.backward()
    assert float(nothing.detach()) == 0
    assert per_token.grad.tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match=r"per_token has shape \[3\], weights \[2\]"):
        weighted_mean(per_token, torch.ones(2), 1)


def test_micro_batches_add_up_to_the_batch():
    made = pair(12, 20)
    whole, _ = chunked_divergence(*made.arguments, JSD, anticipated_weights=made.weights)
    expected = torch.autograd.grad(weighted_mean(whole, made.weights, 12), made.leaves[1:])
    sums = [torch.zeros_like(leaf) for leaf in made.leaves[1:]]
    for rows in (slice(0, 1), slice(1, 9), slice(9, 9), slice(9, 12)):
        part, _ = chunked_divergence(
            made.student_hidden[rows],
            made.student,
            made.teacher_hidden[rows],
            made.teacher,
            JSD,
            anticipated_weights=made.weights[rows],
        )
        for total, gradient in zip(
            sums, torch.autograd.grad(weighted_mean(part, made.weights[rows], 12), made.leaves[1:]), strict=True
        ):
            total += gradient
    assert_close(sums, list(expected))


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"kind": "tvd"}, "unknown divergence kind='tvd'; known: jsd, skewed_forward, skewed_reverse"),
        ({"beta": 1.5}, r"beta=1.5 must lie in \[0, 1\]"),
        ({"skew": 1.0}, r"skew=1.0 must lie in \[0, 1\)"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"temperature": math.nan}, "temperature=nan must be above 0"),
    ],
)
def test_an_unknown_divergence_is_refused(settings_: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Divergence(**settings_)


def test_shapes_that_do_not_match_are_refused_with_both_sides_named():
    made = pair(4, 10)
    hidden, student, teacher_hidden, teacher = made.arguments
    ids, logprobs = top(made, 3)
    taken = torch.zeros(4, dtype=torch.int64)
    cases = [
        (lambda: Head(torch.ones(3)), r"shape \[V, H\], got \[3\]"),
        (
            lambda: Head(torch.ones(3, 2), torch.ones(2)),
            r"bias of a head of 3 tokens must have that length, got \[2\]",
        ),
        (lambda: Head(torch.ones(3, 2), softcap=0.0), "softcap=0.0 must be above 0"),
        (
            lambda: chunked_divergence(hidden, student, teacher_hidden[:2], teacher, JSD),
            "have 4 tokens, teacher's 2",
        ),
        (
            lambda: chunked_divergence(hidden, student, teacher_hidden, Head(teacher.weight[:9]), JSD),
            "student's head has 10 tokens, teacher's 9. .*cut both heads",
        ),
        (
            lambda: chunked_divergence(teacher_hidden, student, teacher_hidden, teacher, JSD),
            r"student's hidden states have shape \[4, 6\], and its head \[10, 5\]",
        ),
        (
            lambda: chunked_divergence(*made.arguments, JSD, anticipated_weights=torch.ones(3)),
            r"anticipated_weights has shape \[3\], expected \[4\]",
        ),
        (lambda: chunked_divergence(*made.arguments, JSD, token_chunk=0), "token_chunk=0 must be 1 or more"),
        (
            lambda: topk_divergence(hidden, student, ids, logprobs, Divergence(temperature=0.7)),
            "temperature=0.7: a teacher's top-k .* only .* at temperature 1",
        ),
        (
            lambda: topk_divergence(hidden, student, ids[:3], logprobs, JSD),
            r"with N = 4, got \[3, 3\] and \[4, 3\]",
        ),
        (
            lambda: topk_divergence(hidden, student, ids + 10, logprobs, JSD),
            "has id 1., but the student's vocabulary has 10 tokens",
        ),
        (
            lambda: topk_divergence(hidden, student, torch.full_like(ids, 7), logprobs, JSD),
            "token 0 of the teacher's top k has id 7 twice",
        ),
        (
            lambda: topk_divergence(hidden, student, ids, torch.zeros(4, 3), JSD),
            "the 3 log-probabilities of token 0 sum to a probability of 3",
        ),
        (
            lambda: topk_divergence(hidden, student, ids, torch.full((4, 3), math.nan), JSD),
            "sum to a probability of nan",
        ),
        (lambda: token_statistics(hidden, None, teacher_hidden, teacher, taken), "give both or none"),
        (
            lambda: token_statistics(None, None, teacher_hidden, teacher, taken - 100),
            "taken holds id -100, but the vocabulary has 10 tokens",
        ),
        (
            lambda: token_statistics(hidden[:3], student, teacher_hidden, teacher, taken),
            "student: 3 tokens and a vocabulary of 10; teacher: 4 and 10",
        ),
        (lambda: topk_statistics(ids, logprobs, taken.float(), hidden, student), "give all or none"),
        (
            lambda: topk_statistics(ids, logprobs, taken.float(), hidden[:2], student, taken),
            "4 tokens of the teacher, but student_hidden has 2",
        ),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_a_kernel_gets_what_was_checked_and_may_refuse():
    made = pair(dtype=torch.float32)
    with pytest.raises(ValueError, match="'jsd' only, not 'skewed_reverse'"):
        chunked_divergence(*made.arguments, Divergence("skewed_reverse"), kernel=trl_kernel)
    with pytest.raises(ValueError, match="cut both heads"):
        chunked_divergence(*made.arguments[:3], Head(torch.ones(3, 6)), JSD, kernel=trl_kernel)
