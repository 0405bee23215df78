import asyncio
import math
import pickle
import re
import threading
import time

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.tiny import save_llama
from rlkd.engines import Contrast, EngineError, Sampling, TokenScores, open_engine, run
from rlkd.engines.transformers import TransformersEngine

CHAT = [{"role": "user", "content": "How many eggs are left?"}]
PROMPTS = [
    "She sold 48/2 =",
    "yes or no?",
    CHAT,
    "Höhe: 3 µm, 漢字 🙂",
    "e",
    "The answer is supported by the question: " * 2,
]
GREEDY = Sampling(max_new_tokens=12)


@pytest.fixture(scope="module")
def reference(model_folder):
    """The same model and tokenizer, used one request at a time in the plainest way."""
    return AutoModelForCausalLM.from_pretrained(model_folder).eval(), AutoTokenizer.from_pretrained(model_folder)


def encode(tokenizer, prompt):
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def plain_greedy(reference, prompt, new_tokens):
    """One forward pass a token, no cache, no batch, no padding."""
    model, tokenizer = reference
    ids = encode(tokenizer, prompt)
    start = len(ids)
    with torch.no_grad():
        for _ in range(new_tokens):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                return tokenizer.decode(ids[start:-1]), "stop", len(ids) - start
    return tokenizer.decode(ids[start:]), "length", new_tokens


def plain_score(reference, prompt, continuation):
    model, tokenizer = reference
    start = encode(tokenizer, prompt)
    more = tokenizer(continuation, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        table = model(torch.tensor([start + more])).logits[0].log_softmax(-1)
    return [float(table[len(start) + place - 1, token]) for place, token in enumerate(more)]


def test_greedy_text_is_that_of_the_plainest_loop(engine, reference):
    expected = [plain_greedy(reference, prompt, 12) for prompt in PROMPTS]
    got = run(engine.generate(PROMPTS, GREEDY))
    assert [(c.text, c.finish_reason, c.n_tokens) for c in got] == expected
    assert len({text for text, *_ in expected}) > 3  # the model does say different things


def test_greedy_text_does_not_depend_on_batching_or_order(engine, model_folder):
    together = run(engine.generate(PROMPTS, GREEDY))
    alone = [run(engine.generate([prompt], GREEDY))[0] for prompt in PROMPTS]
    reversed_ = run(engine.generate(PROMPTS[::-1], GREEDY))[::-1]
    small_batches = TransformersEngine(str(model_folder), device="cpu", batch_tokens=64)
    assert together == alone == reversed_ == run(small_batches.generate(PROMPTS, GREEDY))


def test_an_end_token_ends_the_text_and_is_counted(engine, reference):
    prompts = [f"{word} {number}" for word in ("eggs", "clips", "true", "a") for number in range(12)]
    ended = [
        (completion, prompt)
        for completion, prompt in zip(run(engine.generate(prompts, Sampling(max_new_tokens=40))), prompts, strict=True)
        if completion.finish_reason == "stop"
    ]
    assert ended, "the tiny model never ends a text: the test needs another seed"
    for completion, prompt in ended[:3]:
        assert (completion.text, "stop", completion.n_tokens) == plain_greedy(reference, prompt, 40)
        assert "<|im_end|>" not in completion.text


def test_equal_greedy_prompts_are_computed_once(engine, monkeypatch):
    rows = []
    monkeypatch.setattr(
        "rlkd.engines.transformers.generate_batch",
        lambda loaded, batch, **settings: rows.extend(batch) or [None] * len(batch),
    )
    run(engine.generate(["a", "b", "a", "a"], GREEDY))
    assert len(rows) == 2
    run(engine.generate(["a", "b", "a", "a"], Sampling(max_new_tokens=12, temperature=1.0)))
    assert len(rows) == 6


def test_scores_are_those_of_one_request_at_a_time(engine, reference, model_folder):
    requests = [(prompt, text) for prompt in PROMPTS for text in (" 24 clips", "yes", " a much longer one: 3 µm 🙂")]
    small_batches = TransformersEngine(str(model_folder), device="cpu", batch_tokens=100)
    for result, small, (prompt, text) in zip(
        run(engine.score(requests)), run(small_batches.score(requests)), requests, strict=True
    ):
        expected = plain_score(reference, prompt, text)
        assert result.logprobs == pytest.approx(expected, abs=1e-4)
        assert small.logprobs == pytest.approx(expected, abs=1e-4)


def shared(words, endings):
    """Requests with long beginnings in common, and some with none."""
    return [(f"{word} and what follows it at length, {ending}", text) for word in words for ending, text in endings]


ENDINGS = [
    ("", " yes"),
    ("once more:", " 24 clips"),
    ("and then some, " * 3, " no"),
    ("once more", " a longer one: 3 µm"),
]


def test_requests_that_begin_alike_are_read_once_and_scored_as_if_each_were_alone(engine, reference, model_folder):
    requests = [
        *shared(["She sold clips", "A", "How many eggs are left"], ENDINGS),
        ("e", "x"),
        (CHAT, "yes"),
        (CHAT, "no"),
    ]
    small_batches = TransformersEngine(str(model_folder), device="cpu", batch_tokens=60)
    expected = [pytest.approx(plain_score(reference, *request), abs=1e-4) for request in requests]
    assert [item.logprobs for item in run(engine.score(requests))] == expected
    assert [item.logprobs for item in run(small_batches.score(requests))] == expected
    assert [item.logprobs for item in run(engine.score(requests[::-1]))][::-1] == expected
    [chosen] = run(engine.choose(["Is it so, after all that has been said about it? "], ["yes", "no"]))
    assert chosen == pytest.approx(
        [
            sum(plain_score(reference, "Is it so, after all that has been said about it? ", word))
            for word in ("yes", "no")
        ],
        abs=1e-3,
    )


def test_a_shared_beginning_saves_the_tokens_that_are_shared(engine, monkeypatch):
    run(engine.score([("a", "b")]))
    read = []
    model = engine._loaded.model
    forward = model.forward

    def counting(*args, **kwargs):
        read.append(int(kwargs["input_ids"].numel()))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counting)
    [beginning] = shared(["She sold clips to many friends in April"], [("", "")])
    requests = [(f"{beginning[0]}, {number}", " clips") for number in "abcdefgh"]
    run(engine.score(requests))
    alone = sum(len(engine._loaded.tokenizer(prompt)["input_ids"]) for prompt, _ in requests)
    assert sum(read) < alone / 3


def test_the_division_into_groups_saves_the_most():
    from rlkd.engines.passes import TokenRow, shared_prefixes

    common, deep = list(range(20)), list(range(100, 200))
    texts = [[*common, 1, 2, 3], [*common, 4, 5], common + deep + [6, 7], common + deep + [8], [9] * 30, common[:10]]
    rows = [TokenRow(place, ids, len(ids) - 1) for place, ids in enumerate(texts)]
    groups, alone = shared_prefixes(rows)
    assert {(frozenset(row.index for row in group.rows), group.shared) for group in groups} == {
        (frozenset({0, 1}), 20),
        (frozenset({2, 3}), 119),
    }
    assert {row.index for row in alone} == {4, 5}
    # Of equal prompts the last token stays: it predicts the first of the continuation.
    twins = [TokenRow(0, [*deep, 1], 100), TokenRow(1, [*deep, 2], 100)]
    [group], _ = shared_prefixes(twins)
    assert group.shared == 99


def test_a_model_with_a_sliding_window_shares_nothing_and_is_scored_all_the_same(model_folder, tmp_path):
    from transformers import MistralConfig, MistralForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = MistralConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            sliding_window=8,
            max_position_embeddings=192,
        )
        MistralForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    windowed = TransformersEngine(str(tmp_path), device="cpu")
    reference = AutoModelForCausalLM.from_pretrained(tmp_path).eval(), tokenizer
    requests = shared(["She sold clips"], ENDINGS)
    scored = run(windowed.score(requests))
    assert not windowed._loaded.shares_prefixes
    for item, request in zip(scored, requests, strict=True):
        assert item.logprobs == pytest.approx(plain_score(reference, *request), abs=1e-4)


def test_a_model_whose_rotary_positions_depend_on_the_length_of_a_pass_shares_nothing(model_folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    rotary = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
        "original_max_position_embeddings": 40,
    }
    sizes = {"max_position_embeddings": 192, "initializer_range": 0.3}
    save_llama(tmp_path, tokenizer, seed=3, rope_parameters=rotary, **sizes)
    stretched = TransformersEngine(str(tmp_path), device="cpu")
    reference = AutoModelForCausalLM.from_pretrained(tmp_path).eval(), tokenizer
    beginning = "She sold clips to 9 of her friends; "
    requests = [(f"{beginning}then {word} what follows it at length", f" {word}") for word in ("yes", "not")]
    assert len(tokenizer(beginning)["input_ids"]) < 40 < len(tokenizer(requests[0][0])["input_ids"])
    scored = run(stretched.score(requests))
    assert not stretched._loaded.shares_prefixes
    for item, request in zip(scored, requests, strict=True):
        assert item.logprobs == pytest.approx(plain_score(reference, *request), abs=1e-4)


def test_ranks_count_the_likelier_tokens(engine, reference):
    model, tokenizer = reference
    requests = [*shared(["She sold clips"], ENDINGS), ("e", " 24 clips"), ("a", "")]
    for item, (prompt, text) in zip(run(engine.score_with_ranks(requests)), requests, strict=True):
        start, more = encode(tokenizer, prompt), tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            table = model(torch.tensor([start + more])).logits[0]
        assert len(item.ranks) == len(more) == item.n_tokens
        for place, (token, rank) in enumerate(zip(more, item.ranks, strict=True)):
            row = table[len(start) + place - 1]
            likelier = int((row > row[token] + 1e-4).sum()), int((row > row[token] - 1e-4).sum())
            assert likelier[0] + 1 <= rank <= likelier[1] + 1


def test_the_score_of_greedy_text_is_the_best_at_every_token(engine, reference):
    model, tokenizer = reference
    [completion] = run(engine.generate(["She sold"], Sampling(max_new_tokens=1)))
    [best] = run(engine.score([("She sold", completion.text)]))
    with torch.no_grad():
        table = model(torch.tensor([encode(tokenizer, "She sold")])).logits[0, -1].log_softmax(-1)
    assert best.logprobs == pytest.approx([float(table.max())], abs=1e-4)


def test_the_score_of_an_empty_continuation_is_certain(engine):
    assert run(engine.score([("a", "")])) == [TokenScores(())]


def test_choices_get_the_summed_log_probability_of_their_tokens(engine, reference):
    choices = ["yes", "no", "supported by eggs"]
    results = run(engine.choose(["Well?", CHAT], choices))
    for result, prompt in zip(results, ["Well?", CHAT], strict=True):
        assert result == pytest.approx([sum(plain_score(reference, prompt, choice)) for choice in choices], abs=1e-3)


PAIRS = [(first, second) for first, second in zip(PROMPTS, PROMPTS[1:] + PROMPTS[:1], strict=True)]


def plain_contrast(reference, pair, contrast, new_tokens):
    """One forward pass a token and prompt, one token of the vocabulary after the other; no cache, batch or padding."""
    model, tokenizer = reference
    starts, written = [encode(tokenizer, prompt) for prompt in pair], []
    with torch.no_grad():
        while len(written) < new_tokens:
            towards, away = (model(torch.tensor([start + written])).logits[0, -1].log_softmax(-1) for start in starts)
            least = contrast.plausibility * float(towards.exp().max())
            candidates = [token for token in range(len(towards)) if math.exp(towards[token]) >= least]
            written.append(max(candidates, key=lambda token: float(towards[token] - contrast.weight * away[token])))
            if written[-1] == tokenizer.eos_token_id:
                return tokenizer.decode(written[:-1])
    return tokenizer.decode(written)


@pytest.mark.parametrize("shares_prefixes", [True, False])
@pytest.mark.parametrize("contrast", [Contrast(0.5, 0), Contrast(0.9, 0.7)])
def test_contrastive_text_is_that_of_the_plainest_loop(
    model_folder, reference, monkeypatch, shares_prefixes, contrast
):
    monkeypatch.setattr("rlkd.decoding.unsupported", lambda model: None if shares_prefixes else "no reason")
    engine = TransformersEngine(model_folder, device="cpu")
    found = run(engine.generate_contrasted(PAIRS, GREEDY, contrast))
    assert [each.text for each in found] == [plain_contrast(reference, pair, contrast, 12) for pair in PAIRS]
    assert [each.text for each in found] != [each.text for each in run(engine.generate(PROMPTS, GREEDY))]


def test_with_a_plausibility_of_1_only_the_likeliest_token_is_a_candidate(engine):
    sampling = Sampling(max_new_tokens=12, temperature=1.0, seed=5)
    found = run(engine.generate_contrasted(PAIRS, sampling, Contrast(0.9, 1)))
    assert found == run(engine.generate(PROMPTS, GREEDY))


@pytest.mark.parametrize("weight", [0, 0.5])
def test_without_a_contrast_the_text_is_that_of_the_first_prompt(engine, weight):
    pairs = [(prompt, prompt if weight else "yes") for prompt in PROMPTS]
    assert run(engine.generate_contrasted(pairs, GREEDY, Contrast(weight))) == run(engine.generate(PROMPTS, GREEDY))


def test_contrastive_sampling_repeats_and_is_another_draw_for_another_pair(engine):
    sampling = Sampling(max_new_tokens=12, temperature=1.0, seed=5)
    found = run(engine.generate_contrasted([PAIRS[0]] * 3, sampling, Contrast()))
    assert run(engine.generate_contrasted([PAIRS[0]] * 2, sampling, Contrast())) == found[:2]
    assert len({each.text for each in found}) == 3


@pytest.mark.parametrize("name", ["weight", "plausibility"])
def test_a_contrast_out_of_range_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}=1.5: expected a number from 0 to 1"):
        Contrast(**{name: 1.5})


@pytest.mark.parametrize("stop", ["e", "\n", "ö"])
def test_text_ends_before_the_first_stop_string(engine, stop):
    free = run(engine.generate(PROMPTS, Sampling(max_new_tokens=40)))
    # Take the stop string out of what the model writes, so that it does occur: two letters inside the first text.
    inner = free[0].text[3:5] + stop
    for stops in [(stop, inner), (free[0].text[3:5],)]:
        for cut, whole in zip(
            run(engine.generate(PROMPTS, Sampling(max_new_tokens=40, stop=stops))), free, strict=True
        ):
            places = [whole.text.find(text) for text in stops if text in whole.text]
            assert cut.text == (whole.text[: min(places)] if places else whole.text)
            if places:
                assert cut.finish_reason == "stop"
                assert cut.n_tokens <= whole.n_tokens


def test_a_stop_string_that_begins_in_the_prompt_does_not_stop(engine):
    [free] = run(engine.generate(["She sold 48"], Sampling(max_new_tokens=6)))
    straddling = "8" + free.text[0]
    assert straddling not in free.text
    assert run(engine.generate(["She sold 48"], Sampling(max_new_tokens=6, stop=(straddling,)))) == [free]


def test_stopping_saves_the_rest_of_the_tokens(engine):
    [free] = run(engine.generate(["She sold"], Sampling(max_new_tokens=40)))
    [cut] = run(engine.generate(["She sold"], Sampling(max_new_tokens=40, stop=(free.text[2],))))
    assert cut.n_tokens < 10 < free.n_tokens


def test_seeded_sampling_repeats_and_does_not_depend_on_batching(engine, model_folder):
    sampling = Sampling(max_new_tokens=10, temperature=1.0, top_p=0.9, seed=5)
    first = run(engine.generate(PROMPTS, sampling))
    small_batches = TransformersEngine(str(model_folder), device="cpu", batch_tokens=50)
    assert first == run(engine.generate(PROMPTS, sampling)) == run(small_batches.generate(PROMPTS, sampling))
    other_seed = Sampling(max_new_tokens=10, temperature=1.0, top_p=0.9, seed=6)
    assert first != run(engine.generate(PROMPTS, other_seed))


def test_equal_prompts_are_sampled_apart(engine):
    texts = {c.text for c in run(engine.generate(["eggs"] * 8, Sampling(max_new_tokens=10, temperature=1.5, seed=1)))}
    assert len(texts) > 4


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (2.0, 1.0), (1.0, 0.6)])
def test_tokens_are_drawn_with_the_probabilities_of_the_model(temperature, top_p):
    from rlkd.engines.completions import SeededSampling
    from rlkd.engines.passes import TokenRow

    logits = torch.tensor([2.0, 0.5, -1.0, 1.0, -torch.inf])
    expected = (logits / temperature).softmax(-1)
    if top_p < 1:  # by hand: .63 reaches .6 alone
        assert expected[0] > top_p
        expected = torch.tensor([1.0, 0, 0, 0, 0])
    draw = SeededSampling(
        Sampling(temperature=temperature, top_p=top_p, seed=0), [TokenRow(i, [0], 1) for i in range(20000)]
    )
    chosen = draw(torch.zeros(20000, 1), logits.expand(20000, -1)).argmax(-1)
    shares = torch.bincount(chosen, minlength=5) / 20000
    assert torch.allclose(shares, expected, atol=0.015)  # four standard deviations


def test_a_low_temperature_samples_the_greedy_text(engine):
    assert run(engine.generate(PROMPTS, Sampling(max_new_tokens=12, temperature=1e-4))) == run(
        engine.generate(PROMPTS, GREEDY)
    )


def test_the_global_random_state_is_left_alone_by_loading_and_by_every_call(model_folder):
    fresh = TransformersEngine(str(model_folder), device="cpu")
    before = torch.get_rng_state()
    run(fresh.generate(PROMPTS, Sampling(max_new_tokens=4, temperature=1.0, seed=3)))
    run(fresh.generate(PROMPTS, Sampling(max_new_tokens=4, temperature=1.0)))
    run(fresh.generate(PROMPTS, GREEDY))
    run(fresh.score([("a", "b")]))
    assert torch.equal(before, torch.get_rng_state())


def test_requests_that_cannot_be_answered_do_not_cost_the_others(engine, context):
    robot = [{"role": "robot", "content": "hello"}]
    prompts = ["a", "", "x" * 400, robot, "b"]
    results = run(engine.generate(prompts, GREEDY))
    assert [isinstance(item, EngineError) for item in results] == [False, True, True, True, False]
    assert "no tokens" in str(results[1])
    assert str(context) in str(results[2])
    assert "400" in str(results[2])
    assert "no robots" in str(results[3])
    assert all(engine.name in str(item) for item in results[1:4])
    scored = run(engine.score([(prompt, " eggs") for prompt in prompts]))
    assert [isinstance(item, EngineError) for item in scored] == [False, True, True, True, False]
    chosen = run(engine.choose(prompts, ["yes", "no"]))
    assert [isinstance(item, EngineError) for item in chosen] == [False, True, True, True, False]


def test_a_prompt_that_leaves_no_room_for_the_new_tokens_names_the_lengths(engine, reference, context):
    prompt = "yes or no? " * 10
    length = len(encode(reference[1], prompt))
    room = context - length
    fits, too_long = (run(engine.generate([prompt], Sampling(max_new_tokens=n)))[0] for n in (room, room + 1))
    assert fits.n_tokens <= room
    assert f"{length} tokens" in str(too_long)
    assert "Shorten the request by 1 tokens" in str(too_long)


def test_text_that_is_not_valid_unicode_is_an_error_of_its_request(engine):
    results = run(engine.generate(["half a pair: \ud83d", "a"], GREEDY))
    assert isinstance(results[0], EngineError)
    assert not isinstance(results[1], EngineError)


def test_no_requests_give_no_results_and_load_nothing():
    engine = TransformersEngine("no/such-model")
    assert run(engine.generate([], GREEDY)) == []
    assert run(engine.score([])) == []
    assert run(engine.choose([], ["a", "b"])) == []


def test_a_model_that_does_not_load_is_named(tmp_path):
    engine = TransformersEngine(str(tmp_path / "nothing"))
    [error] = run(engine.generate(["a"], GREEDY))
    assert isinstance(error, EngineError)
    assert "nothing" in str(error)
    assert "does not load" in str(error)


def test_a_checkpoint_with_missing_weights_is_refused(model_folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    weights = {name: tensor for name, tensor in model.state_dict().items() if "layers.1.mlp" not in name}
    model.save_pretrained(tmp_path, state_dict=weights)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(tmp_path)
    [error] = run(TransformersEngine(str(tmp_path), device="cpu").generate(["a"], GREEDY))
    assert isinstance(error, EngineError)
    assert "layers.1.mlp" in str(error)


def test_a_failure_inside_the_model_is_an_error_of_its_batch(model_folder, monkeypatch):
    from rlkd.engines import transformers

    engine = TransformersEngine(str(model_folder), device="cpu", batch_tokens=1)
    real = transformers.score_batch

    def broken(loaded, rows, **settings):
        if rows[0].index == 1:
            raise torch.OutOfMemoryError("too much")
        return real(loaded, rows, **settings)

    monkeypatch.setattr(transformers, "score_batch", broken)
    good, bad, also_good = run(engine.score([("a", "b"), ("a", "c"), ("a", "d")]))
    assert isinstance(bad, EngineError)
    assert "Lower batch_tokens=1" in str(bad)
    assert isinstance(good, TokenScores)
    assert isinstance(also_good, TokenScores)


@pytest.mark.slow
def test_the_deadline_keeps_what_is_finished(model_folder):
    # One row a batch, and a prompt that would take far longer than the deadline at the end.
    engine = TransformersEngine(str(model_folder), device="cpu", batch_tokens=1)
    run(engine.score([("a", "b")]))
    prompts = [f"{number} eggs" + " and so on" * (number > 3) for number in range(400)]
    start = time.monotonic()
    results = run(engine.generate(prompts, Sampling(max_new_tokens=30), deadline=1.0))
    assert time.monotonic() - start < 4
    late = [item for item in results if isinstance(item, EngineError)]
    done = [place for place, item in enumerate(results) if not isinstance(item, EngineError)]
    assert late
    assert done
    assert all("deadline of 1 s" in str(item) for item in late)
    assert [results[done[0]]] == run(engine.generate([prompts[done[0]]], Sampling(max_new_tokens=30)))


def test_the_deadline_stops_a_generation_midway(engine):
    run(engine.score([("a", "b")]))
    start = time.monotonic()
    results = run(engine.generate(PROMPTS[:1] * 2, Sampling(max_new_tokens=150, stop=("\0",)), deadline=0.03))
    assert all(isinstance(item, EngineError) for item in results)
    assert time.monotonic() - start < 2


def test_a_deadline_holds_while_another_call_has_the_model(engine):
    run(engine.score([("a", "b")]))
    with engine._lock:
        [late] = run(engine.generate(["a"], GREEDY, deadline=0.1))
    assert isinstance(late, EngineError)
    assert not isinstance(run(engine.generate(["a"], GREEDY))[0], EngineError)


def test_cancelling_a_call_stops_its_thread_and_frees_the_model(engine):
    async def cancel():
        slow = [f"{number}" for number in range(300)]
        task = asyncio.create_task(engine.generate(slow, Sampling(max_new_tokens=150)))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    start = time.monotonic()
    run(cancel())
    assert not isinstance(run(engine.generate(["a"], GREEDY))[0], EngineError)
    assert time.monotonic() - start < 5


def test_two_callers_never_share_the_model(engine, monkeypatch):
    from rlkd.engines import transformers

    inside, most = 0, 0
    real = transformers.score_batch

    def counting(loaded, rows, **settings):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.02)
        inside -= 1
        return real(loaded, rows, **settings)

    monkeypatch.setattr(transformers, "score_batch", counting)
    expected = run(engine.score([("a", "b")]))
    results = []
    threads = [threading.Thread(target=lambda: results.append(run(engine.score([("a", "b")])))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert results == [expected] * 4


def test_column_major_weights_give_the_same_logits_and_stay_tied(model_folder):
    fast, plain = (
        TransformersEngine(str(model_folder), device="cpu", column_major=column_major)
        for column_major in (True, False)
    )
    requests = [(prompt, " 24 clips") for prompt in PROMPTS]
    for left, right in zip(run(fast.score(requests)), run(plain.score(requests)), strict=True):
        assert left.logprobs == pytest.approx(right.logprobs, abs=3e-5)
    assert run(fast.generate(PROMPTS, GREEDY)) == run(plain.generate(PROMPTS, GREEDY))
    model = fast._loaded.model
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert model.lm_head.weight.stride() == (1, model.config.vocab_size)
    assert plain._loaded.model.lm_head.weight.stride() == (64, 1)


def test_the_model_is_frozen(engine):
    run(engine.score([("a", "b")]))
    model = engine._loaded.model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_generation_config_of_the_checkpoint_does_not_change_the_text(engine, model_folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    model.generation_config.update(do_sample=True, temperature=2.0, top_k=3, repetition_penalty=1.8)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(tmp_path)
    other = TransformersEngine(str(tmp_path), device="cpu")
    assert run(other.generate(PROMPTS, GREEDY)) == run(engine.generate(PROMPTS, GREEDY))


def test_a_tokenizer_without_a_padding_token_gives_the_same_text(engine, model_folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    model.config.pad_token_id = model.generation_config.pad_token_id = None
    model.save_pretrained(tmp_path)
    other = TransformersEngine(str(tmp_path), device="cpu")
    assert run(other.generate(PROMPTS, GREEDY)) == run(engine.generate(PROMPTS, GREEDY))


def test_messages_without_a_chat_template_are_refused_and_text_is_not(model_folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(model_folder).save_pretrained(tmp_path)
    refused, answered = run(TransformersEngine(str(tmp_path), device="cpu").generate([CHAT, "a"], GREEDY))
    assert "no chat template" in str(refused)
    assert not isinstance(answered, EngineError)


def test_an_adapter_is_merged_into_the_weights(engine, reference, model_folder, tmp_path):
    peft = pytest.importorskip("peft")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        tuned = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), config).eval()
    tuned.save_pretrained(tmp_path)
    before = torch.get_rng_state()
    adapted = TransformersEngine(str(model_folder), device="cpu", adapter=str(tmp_path))
    [result] = run(adapted.score([("She sold", " 24 clips")]))
    assert torch.equal(before, torch.get_rng_state())
    assert result.logprobs == pytest.approx(plain_score((tuned, reference[1]), "She sold", " 24 clips"), abs=1e-3)
    [plain] = run(engine.score([("She sold", " 24 clips")]))
    assert abs(result.total - plain.total) > 1e-2
    assert str(tmp_path) in adapted.name


def test_a_pickled_engine_carries_its_arguments_and_no_weights(engine, model_folder):
    used = TransformersEngine(str(model_folder), device="cpu", batch_tokens=100, column_major=False)
    before = run(used.generate(["a"], GREEDY))
    data = pickle.dumps(used)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert again._loaded is None
    assert (again.name, again.batch_tokens, again.column_major) == (used.name, 100, False)
    assert run(again.generate(["a"], GREEDY)) == before


def test_closing_frees_the_weights_and_a_later_request_reads_them_again(model_folder):
    engine = TransformersEngine(str(model_folder), device="cpu")
    before = run(engine.generate(["a"], GREEDY))
    run(engine.close())
    assert engine._loaded is None
    assert run(engine.generate(["a"], GREEDY)) == before


@pytest.mark.slow
def test_a_model_name_is_resolved_when_the_weights_are_read(model_folder, monkeypatch):
    monkeypatch.setattr("rlkd.models.resolve_model", lambda name: str(model_folder) if name == "embedded" else name)
    engine = open_engine("transformers:embedded", device="cpu")
    assert engine.name == "transformers:embedded"
    [completion] = run(engine.generate(["a"], GREEDY))
    assert not isinstance(completion, EngineError)


@pytest.mark.parametrize(("field", "value"), [("dtype", "int8"), ("batch_tokens", 0)])
def test_a_constructor_value_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=field):
        TransformersEngine("x", **{field: value})


def test_log_probabilities_are_natural_and_finite(engine):
    [scored] = run(engine.score([(CHAT, "yes")]))
    assert all(math.isfinite(value) and value < 0 for value in scored.logprobs)


def test_a_model_that_is_trained_again_in_place_has_another_name(tmp_path):
    folder = tmp_path / "gsrm"
    folder.mkdir()
    assert TransformersEngine(str(folder)).name == f"transformers:{folder}"
    names = set()
    for content in (b"first", b"second one"):
        (folder / "model.safetensors").write_bytes(content)
        names.add(TransformersEngine(str(folder)).name)
        names.add(TransformersEngine("embedded", adapter=str(folder)).name)
    assert len(names) == 4
    assert TransformersEngine(str(folder)).name in names
    assert TransformersEngine("some/model").name == "transformers:some/model"


def test_a_shipped_structure_model_is_named_with_its_adapter():
    assert re.fullmatch(r"transformers:embedded-gsrm#[0-9a-f]{8}", TransformersEngine("embedded-gsrm").name)


def test_arguments_of_the_chat_template_reach_the_prompt_and_the_name(template_model) -> None:
    ask = [[{"role": "user", "content": "1+1?"}]]
    on, off = (
        open_engine(f"transformers:{template_model('thinking')}{options}")
        for options in ("", '?chat_template_kwargs={"enable_thinking":false}')
    )
    text = "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    whole = open_engine(f"transformers:{template_model('thinking')}")
    for engine, shown in ((on, text), (off, f"{text}<think>\n\n</think>\n\n")):
        assert run(engine.choose(ask, ["Yes", "No"])) == run(whole.choose([shown], ["Yes", "No"]))
    assert off.name == f'{on.name}?chat_template_kwargs={{"enable_thinking": false}}'
    assert pickle.loads(pickle.dumps(off)).chat_template_kwargs == {"enable_thinking": False}


def test_a_generation_ends_at_every_end_token_of_the_family(template_model) -> None:
    engine = open_engine(f"transformers:{template_model('no_system')}")
    run(engine.generate(["a"], Sampling(max_new_tokens=1)))
    tokens = engine._loaded.tokenizer.convert_ids_to_tokens(sorted(engine._loaded.end_ids))
    assert set(tokens) == {"<eos>", "<end_of_turn>"}
