import asyncio
import json
import logging
import math
import pickle
import threading
import time

import pytest
import torch

from rlkd.engines import EngineError, Sampling, TokenScores, open_engine, run
from rlkd.engines.server import ServerEngine, choice_logprobs, continuation_start
from rlkd.engines.tokens import encode_prompt
from rlkd.engines.transformers import TransformersEngine

CHAT = [{"role": "user", "content": "How many eggs are left?"}]
PROMPTS = ["She sold 48/2 =", "yes or no?", CHAT, "Höhe: 3 µm, 漢字 🙂", "e"]
GREEDY = Sampling(max_new_tokens=12)
SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}}


def faulty(fault, *, times=10**9, only=lambda body: True):
    """A fault for the first `times` requests that `only` accepts."""
    left = [times]

    def check(body):
        if left[0] > 0 and only(body):
            left[0] -= 1
            return fault
        return None

    return check


def asks(text):
    return lambda body: body.get("prompt") == text


@pytest.fixture
def remote(server):
    return ServerEngine(server.url, "tiny", concurrency=4, timeout=10, retries=3)


def test_greedy_text_is_the_same_through_the_server_and_in_this_process(remote, engine):
    assert run(remote.generate(PROMPTS, GREEDY)) == run(engine.generate(PROMPTS, GREEDY))


def test_greedy_text_does_not_depend_on_order_or_company(remote):
    together = run(remote.generate(PROMPTS, GREEDY))
    assert run(remote.generate(PROMPTS[::-1], GREEDY))[::-1] == together
    assert [run(remote.generate([prompt], GREEDY))[0] for prompt in PROMPTS] == together


def test_stop_strings_truncate_the_text_alike(remote, engine):
    [free] = run(engine.generate(["She sold"], Sampling(max_new_tokens=20)))
    sampling = Sampling(max_new_tokens=20, stop=(free.text[4:6],))
    assert run(remote.generate(["She sold"], sampling)) == run(engine.generate(["She sold"], sampling))


def test_sampling_settings_reach_the_server_and_equal_prompts_get_seeds_of_their_own(remote, server):
    run(remote.generate(["a", "a"], Sampling(max_new_tokens=3, temperature=0.7, top_p=0.5, stop=("q",), seed=10)))
    assert sorted(body["seed"] for body in server.requests) == [10, 11]
    assert all(
        (b["temperature"], b["top_p"], b["stop"], b["max_tokens"]) == (0.7, 0.5, ["q"], 3) for b in server.requests
    )


def test_equal_requests_are_sent_once_where_the_answer_is_deterministic(remote, server):
    first, _, third = run(remote.generate(["a", "b", "a"], GREEDY))
    assert first == third
    run(remote.score([("a", " b")] * 3))
    run(remote.choose(["a"] * 3, ["yes", "no"]))
    assert len(server.requests) == 2 + 1 + 1


def test_scores_agree_with_those_computed_in_this_process(remote, engine):
    requests = [("She sold", " 24 clips"), ("yes or no?", " yes"), ("16 - 3 - 4 =", " 9 eggs")]
    for left, right in zip(run(remote.score(requests)), run(engine.score(requests)), strict=True):
        assert left.logprobs == pytest.approx(right.logprobs, abs=1e-4)


def test_with_a_tokenizer_any_text_and_messages_are_scored_alike(server, engine, model_folder):
    remote = ServerEngine(server.url, "tiny", tokenizer=str(model_folder))
    requests = [(prompt, text) for prompt in PROMPTS for text in ("yes", " 漢字 🙂", "ö and more")]
    for left, right in zip(run(remote.score(requests)), run(engine.score(requests)), strict=True):
        assert left.logprobs == pytest.approx(right.logprobs, abs=1e-4)
    [empty] = run(remote.score([("", "yes")]))
    assert "the prompt has no tokens" in str(empty)


def test_scoring_messages_without_a_tokenizer_says_what_to_do(remote):
    refused, scored = run(remote.score([(CHAT, "yes"), ("a", " b")]))
    assert "tokenizer=" in str(refused)
    assert isinstance(scored, TokenScores)


def test_a_token_across_the_boundary_is_refused_with_the_way_out(remote):
    [refused] = run(remote.score([("The answer is sup", "ported")]))
    assert isinstance(refused, EngineError)
    assert "tokenizer=" in str(refused)


def test_the_score_of_an_empty_continuation_needs_no_request(remote, server):
    assert run(remote.score([("a", "")])) == [TokenScores(())]
    assert server.requests == []


def test_a_server_that_ignores_echo_is_not_believed(remote, server):
    body = (
        b'{"id": "1", "object": "text_completion", "created": 0, "model": "tiny", "choices": [{"index": 0,'
        b'"text": "x", "finish_reason": "length", "logprobs": {"tokens": ["x"], "token_logprobs": [-0.1]}}],'
        b'"usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}}'
    )
    server.faults.append(faulty({"body": body}))
    [refused] = run(remote.score([("a b", " c")]))
    assert "the 1 echoed tokens do not spell prompt and continuation" in str(refused)


@pytest.mark.parametrize("prompt", ["She sold", CHAT])
def test_choices_of_one_token_are_as_likely_through_the_server_as_in_this_process(remote, engine, prompt):
    run(engine.score([("a", "b")]))
    model, tokenizer = engine._loaded.model, engine._loaded.tokenizer
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([encode_prompt(tokenizer, prompt)])).logits[0, -1]
    top = [tokenizer.decode([token]) for token in logits.topk(20).indices.tolist()]
    spellings = [text.strip().casefold() for text in top]
    # Choices with one spelling among the 20: the server alone adds " yes" and "Yes" to "yes".
    choices = [text for text in top if text.isprintable() and text in spellings and spellings.count(text) == 1]
    assert len(choices) >= 3
    [there], [here] = run(remote.choose([prompt], choices)), run(engine.choose([prompt], choices))
    assert there == pytest.approx(here, abs=1e-4)
    assert list(there) == sorted(there, reverse=True)


@pytest.fixture
def vllm_server(server):
    server.vllm = True
    return server


def test_a_vllm_server_scores_by_token_ids_messages_and_split_words_too(remote, vllm_server, engine):
    requests = [("She sold", " 24 clips"), (CHAT, "yes"), ("The answer is sup", "ported"), ("Höhe", ": 3 µm 🙂")]
    for left, right in zip(run(remote.score(requests)), run(engine.score(requests)), strict=True):
        assert left.logprobs == pytest.approx(right.logprobs, abs=1e-4)
    [empty] = run(remote.score([("", "yes")]))
    assert "the prompt has no tokens" in str(empty)


@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_a_vllm_server_answers_choices_as_a_whole(vllm_server, engine, model_folder, with_tokenizer):
    tokenizer = str(model_folder) if with_tokenizer else None
    remote = ServerEngine(vllm_server.url, "tiny", tokenizer=tokenizer)
    choices = ["supported by eggs", "@@@@ and no likely token"]
    for left, right in zip(
        run(remote.choose(["Well?", CHAT], choices)), run(engine.choose(["Well?", CHAT], choices)), strict=True
    ):
        assert left == pytest.approx(right, abs=1e-3)


@pytest.mark.parametrize("names_tokens", [True, False])
def test_choices_of_one_token_cost_one_request_where_the_version_can_name_tokens(vllm_server, engine, names_tokens):
    vllm_server.names_tokens = names_tokens
    remote = ServerEngine(vllm_server.url, "tiny")
    for _ in range(2):
        [found] = run(remote.choose(["Well?"], ["e", "a"]))
        assert found == pytest.approx(run(engine.choose(["Well?"], ["e", "a"]))[0], abs=1e-4)
    sent = [body for body in vllm_server.requests if "max_tokens" in body]
    assert ["prompt_logprobs" in body for body in sent] == ([False] * 2 if names_tokens else [False] + [True] * 4)


def test_a_vllm_server_takes_no_defaults_from_the_checkpoint(remote, vllm_server):
    run(remote.generate(["a", CHAT], Sampling(max_new_tokens=2)))
    for body in vllm_server.requests:
        off = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
        assert {name: body.get(name) for name in off} == off


def test_another_server_is_sent_nothing_of_vllms_own(remote, server):
    run(remote.generate(["a", CHAT], Sampling(max_new_tokens=2, temperature=0.5)))
    run(remote.choose(["a"], ["e", "b"]))
    assert not any(
        {"top_k", "min_p", "prompt_logprobs", "logprob_token_ids"} & body.keys() for body in server.requests
    )


def test_choices_that_no_likely_token_begins_are_an_error(remote):
    [refused] = run(remote.choose(["She sold"], ["@@@@", "^^^^"]))
    assert isinstance(refused, EngineError)
    assert "likeliest tokens" in str(refused)


def test_the_spellings_of_a_choice_are_added_up():
    yes, no = choice_logprobs([("Yes", math.log(0.5)), (" yes", math.log(0.2)), ("no", math.log(0.1))], ["yes", "no"])
    assert yes == pytest.approx(math.log(0.7))
    assert no == pytest.approx(math.log(0.1))


def test_a_token_that_begins_two_choices_counts_for_neither():
    top = [("s", -1.0), ("sup", -2.0), ("", -0.1), (" ", -0.1), ("uns", -3.0)]
    assert choice_logprobs(top, ["supported", "soon", "unsupported"]) == pytest.approx((-2.0, -math.inf, -3.0))


@pytest.mark.parametrize(
    ("tokens", "prompt", "continuation", "place"),
    [(["a", " b"], "a", " b", 1), (["<s>", "a", "", "ö"], "a", "ö", 2), (["a", "", "ö", " b"], "aö", " b", 3)],
)
def test_the_continuation_starts_at_the_boundary(tokens, prompt, continuation, place):
    assert continuation_start(tokens, prompt, continuation) == place


@pytest.mark.parametrize("tokens", [["a b"], ["a", "�", "�"], ["b"], []])
def test_tokens_that_do_not_show_the_boundary_are_refused(tokens):
    with pytest.raises(ValueError, match=r"the continuation|spell prompt"):
        continuation_start(tokens, "a", " b")


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 429, "headers": {"retry-after": "0"}},
        {"status": 503},
        {"status": 500},
        {"status": 408},
        {"status": 409},
        {"drop": True},
    ],
    ids=str,
)
def test_a_passing_trouble_is_tried_again_and_then_answered(remote, server, engine, fault):
    server.faults.append(faulty(fault, times=2))
    assert run(remote.generate(["e"], GREEDY)) == run(engine.generate(["e"], GREEDY))
    assert len(server.requests) == 3
    assert len(server.answered) == 1


@pytest.mark.slow
def test_a_request_that_hangs_is_given_up_and_tried_again(server, engine):
    remote = ServerEngine(server.url, "tiny", timeout=0.5, retries=2)
    server.faults.append(faulty({"hang": True}, times=1))
    assert run(remote.generate(["e"], GREEDY)) == run(engine.generate(["e"], GREEDY))
    server.faults.append(faulty({"hang": True}))
    [late] = run(remote.generate(["e"], GREEDY))
    assert "no answer within 0.5 s, 3 attempts" in str(late)


def test_the_pause_is_the_value_of_retry_after(remote, server):
    server.faults.append(faulty({"status": 429, "headers": {"retry-after": "0.6"}}, times=1))
    start = time.monotonic()
    assert not isinstance(run(remote.generate(["e"], GREEDY))[0], EngineError)
    assert 0.6 <= time.monotonic() - start < 3


def test_trouble_that_stays_ends_after_the_retries(remote, server):
    server.faults.append(faulty({"status": 503, "message": "warming up"}))
    [error] = run(remote.generate(["e"], GREEDY))
    assert len(server.requests) == 4
    assert remote.name in str(error)
    assert "503: warming up, 4 attempts" in str(error)


def test_a_server_that_is_not_there_is_named(server):
    remote = ServerEngine("http://127.0.0.1:9/v1", "tiny", retries=1)
    [error] = run(remote.generate(["e"], GREEDY))
    assert "http://127.0.0.1:9/v1#tiny: no connection" in str(error)


@pytest.mark.parametrize(
    "body", [b'{"choices": [', b'{"object": "x"}', b'{"choices": [{}]}', b"[]", b"<html>hello</html>"]
)
def test_an_answer_outside_the_protocol_is_an_error_that_is_not_repeated(remote, server, body):
    headers = {"content-type": "text/html"} if body.startswith(b"<") else None
    server.faults.append(faulty({"body": body, "headers": headers}))
    for [error] in (
        run(remote.generate(["e"], GREEDY)),
        run(remote.generate([CHAT], GREEDY)),
        run(remote.score([("e", " f")])),
        run(remote.choose(["e"], ["a", "b"])),
    ):
        assert "does not follow the protocol" in str(error)
    assert len(server.requests) == 4


def test_a_wrong_model_name_is_answered_with_the_offered_models(server):
    server.models = ["tiny", "other"]
    [error] = run(ServerEngine(server.url, "tyni").generate(["e"], GREEDY))
    assert len(server.requests) == 1
    assert f"{server.url}#tyni" in str(error)
    assert "404: The model `tyni` does not exist" in str(error)
    assert "other, tiny" in str(error)


def test_the_model_name_may_be_left_out_where_there_is_one(server, engine):
    remote = open_engine(server.url)
    assert remote.name == server.url
    assert run(remote.generate(PROMPTS, GREEDY)) == run(engine.generate(PROMPTS, GREEDY))
    assert remote.name == f"{server.url}#tiny"
    assert run(remote.models()) == ["tiny"]


def test_a_missing_model_name_with_several_models_is_an_error_that_lists_them(server):
    server.models = ["tiny", "other"]
    results = run(open_engine(server.url).generate(["a", "b"], GREEDY))
    assert all("2 models: other, tiny" in str(item) for item in results)
    assert server.requests == []


def test_one_failing_request_does_not_cost_the_others(remote, server, engine):
    prompts = ["a", "", "b", "x" * 400, "half a pair: \ud83d", "c"]
    server.faults.append(faulty({"status": 422, "message": "no b"}, only=asks("b")))
    results = run(remote.generate(prompts, GREEDY))
    assert [isinstance(item, EngineError) for item in results] == [False, True, True, True, True, False]
    assert "no tokens" in str(results[1])
    assert "no b" in str(results[2])
    assert "192 tokens, the prompt has 400" in str(results[3])
    assert "not valid text" in str(results[4])
    assert [results[0], results[5]] == run(engine.generate(["a", "c"], GREEDY))


def test_never_more_than_concurrency_requests_are_in_flight_over_all_callers(server):
    remote = ServerEngine(server.url, "tiny", concurrency=3)
    server.delay = 0.02

    async def two_calls():
        return await asyncio.gather(
            remote.generate([f"{n} a" for n in range(10)], Sampling(max_new_tokens=1)),
            remote.generate([f"{n} b" for n in range(10)], Sampling(max_new_tokens=1)),
        )

    for results in run(two_calls()):
        assert not any(isinstance(item, EngineError) for item in results)
    assert server.most_in_flight == 3


def test_no_request_is_sent_again_after_its_success(remote, server):
    server.faults.append(faulty({"status": 503}, times=5))
    prompts = [f"{number} eggs" for number in range(12)]
    results = run(remote.generate(prompts, Sampling(max_new_tokens=2)))
    assert not any(isinstance(item, EngineError) for item in results)
    assert sorted(body["prompt"] for body in server.answered) == sorted(prompts)
    assert len(server.requests) == 12 + 5


@pytest.mark.slow
def test_the_deadline_keeps_what_is_finished_and_names_the_rest(remote, server, engine):
    server.faults.append(faulty({"hang": True}, only=asks("slow")))
    start = time.monotonic()
    results = run(remote.generate(["a", "slow", "b"], GREEDY, deadline=1.0))
    assert time.monotonic() - start < 4
    assert "deadline of 1 s" in str(results[1])
    assert [results[0], results[2]] == run(engine.generate(["a", "b"], GREEDY))


def test_the_deadline_covers_the_question_for_the_model_name(server):
    remote = ServerEngine("http://127.0.0.1:9/v1", retries=100)
    start = time.monotonic()
    results = run(remote.generate(["a", "b"], GREEDY, deadline=0.3))
    assert time.monotonic() - start < 3
    assert all("deadline" in str(item) for item in results)


def test_cancelling_a_call_ends_its_requests_and_is_not_swallowed(remote, server, engine):
    server.faults.append(faulty({"hang": True}, only=asks("slow")))

    async def cancel():
        task = asyncio.create_task(remote.generate(["slow", "a"], GREEDY))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await remote.generate(["a"], GREEDY)

    assert run(cancel()) == run(engine.generate(["a"], GREEDY))


def test_one_engine_serves_several_event_loops_one_after_another_and_at_once(remote, engine):
    expected = run(engine.generate(["e"], GREEDY))
    results = [asyncio.run(remote.generate(["e"], GREEDY)), run(remote.generate(["e"], GREEDY))]
    threads = [
        threading.Thread(target=lambda: results.append(asyncio.run(remote.generate(["e"], GREEDY)))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 5


def test_a_schema_is_sent_with_chat_and_with_text(remote, server):
    sampling = Sampling(max_new_tokens=4, json_schema=SCHEMA)
    assert remote.guided
    run(remote.generate([CHAT], sampling))
    run(remote.generate(["a"], sampling))
    chat, text = server.requests
    assert chat["response_format"]["type"] == "json_schema"
    assert chat["response_format"]["json_schema"] == {"name": "structure", "schema": SCHEMA, "strict": True}
    assert text["structured_outputs"] == {"json": SCHEMA}


def test_a_server_that_refuses_schemas_gets_unguided_requests_and_is_named_once(remote, server, engine, caplog):
    server.faults.append(faulty({"status": 400, "message": "no schemas"}, only=lambda body: "response_format" in body))
    chats = [[{"role": "user", "content": f"{number} eggs"}] for number in range(6)]
    with caplog.at_level(logging.WARNING, logger="rlkd"):
        results = run(remote.generate(chats, Sampling(max_new_tokens=12, json_schema=SCHEMA)))
    assert results == run(engine.generate(chats, GREEDY))
    assert not remote.guided
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no schemas" in caplog.text
    before = len(server.requests)
    run(remote.generate(chats[:1], Sampling(max_new_tokens=12, json_schema=SCHEMA)))
    assert ["response_format" in body for body in server.requests[before:]] == [False]


def test_a_schema_that_is_refused_costs_no_other_schema_its_guidance(remote, server):
    odd = {"type": "object", "not": {}}
    server.faults.append(
        faulty({"status": 400}, only=lambda body: body.get("structured_outputs", {}).get("json") == odd)
    )
    guided = []
    for schema in (odd, SCHEMA, odd, SCHEMA):
        [completion] = run(remote.generate(["a"], Sampling(max_new_tokens=2, json_schema=schema)))
        assert not isinstance(completion, EngineError)
        guided.append(remote.guided)
    assert guided == [False, True, True, True]
    sent = [body.get("structured_outputs", {}).get("json") for body in server.requests]
    assert sent == [odd, None, SCHEMA, None, SCHEMA]


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_a_server_that_breaks_every_reply_off_is_named_and_none_of_its_text_used(remote, vllm_server, reason):
    choice = {"index": 0, "text": "half an ans", "finish_reason": reason, "logprobs": None}
    body = {"id": "1", "object": "text_completion", "created": 0, "model": "tiny", "choices": [choice]}
    vllm_server.faults.append(faulty({"body": json.dumps(body).encode()}, only=lambda body: "max_tokens" in body))
    for [error] in (
        run(remote.generate(["e"], GREEDY)),
        run(remote.score([("e", " f")])),
        run(remote.choose(["e"], ["a", "b"])),
    ):
        assert f"the server gave the request up (finish_reason '{reason}'), 4 attempts" in str(error)


def test_ids_that_another_event_loop_forgets_meanwhile_are_still_returned(remote, vllm_server, monkeypatch):
    class Forgetful(dict):
        def __setitem__(self, text, ids):
            """Keep nothing, as if another loop had cleared it at once."""

    remote._known_ids = Forgetful()
    [scored] = run(remote.score([("She sold", " 24 clips")]))
    assert isinstance(scored, TokenScores)


def test_a_guided_request_that_fails_for_another_reason_keeps_the_guidance(remote):
    too_long = [{"role": "user", "content": "x" * 400}]
    [error] = run(remote.generate([too_long], Sampling(json_schema=SCHEMA)))
    assert "192 tokens" in str(error)
    assert remote.guided


def test_the_key_is_sent_and_shown_nowhere(server, monkeypatch, caplog):
    key = "sk-a-secret-that-must-not-show"
    monkeypatch.setenv("RLKD_TEST_KEY", key)
    remote = ServerEngine(server.url, "tiny", api_key_env="RLKD_TEST_KEY")
    with caplog.at_level(logging.DEBUG, logger="rlkd"):
        run(remote.generate(["a"], GREEDY))
        assert server.headers[0]["authorization"] == f"Bearer {key}"
        server.faults.append(faulty({"status": 401, "message": f"incorrect key {key}"}))
        [error] = run(remote.generate(["a"], GREEDY))
    assert "***" in str(error)
    assert "RLKD_TEST_KEY, which is set" in str(error)
    shown = [str(error), repr(error), repr(remote), remote.name, str(vars(remote)), caplog.text]
    assert not any(key in text for text in shown)
    assert key.encode() not in pickle.dumps(remote) + pickle.dumps(error)


@pytest.mark.parametrize(
    "url",
    [
        "http://user:secret@host/v1",
        "http://host/v1?key=secret",
        "ftp://host",
        "host:8000",
        "ftp://user:secret@host",
        "ftp://user:sec/secret@host",
        "user:secret@host:8000/v1",
        "ftp://host/v1?key=secret",
    ],
)
def test_a_url_that_is_no_server_or_carries_a_secret_is_refused(url):
    with pytest.raises(ValueError, match="base_url") as refusal:
        ServerEngine(url)
    assert "secret" not in str(refusal.value)
    for options in ({}, {"concurency": 3}):
        with pytest.raises(ValueError, match=r"base_url|does not name an engine|concurrency") as refusal:
            open_engine(url, **options)
        assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(("field", "value"), [("concurrency", 0), ("timeout", 0), ("retries", -1)])
def test_a_constructor_value_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=field):
        ServerEngine("http://host/v1", **{field: value})


def test_a_pickled_engine_carries_its_arguments_and_no_connection(remote):
    before = run(remote.generate(["a"], GREEDY))
    again = pickle.loads(pickle.dumps(remote))
    assert (again.name, again.concurrency, again.timeout, again.retries) == (remote.name, 4, 10, 3)
    assert len(again._connections) == 0
    assert run(again.generate(["a"], GREEDY)) == before


def test_no_requests_give_no_results_and_send_nothing(remote, server):
    assert run(remote.generate([], GREEDY)) == []
    assert run(remote.score([])) == []
    assert run(remote.choose([], ["a", "b"])) == []
    assert server.requests == []


def test_closing_ends_the_connections_and_a_later_request_opens_new_ones(remote):
    before = run(remote.generate(["a"], GREEDY))
    run(remote.close())
    assert len(remote._connections) == 0
    assert run(remote.generate(["a"], GREEDY)) == before


def test_both_engines_have_the_methods_of_the_contract():
    for name in ("generate", "score", "choose", "close"):
        assert asyncio.iscoroutinefunction(getattr(ServerEngine, name))
        assert asyncio.iscoroutinefunction(getattr(TransformersEngine, name))


@pytest.mark.parametrize("is_vllm", [True, False])
def test_arguments_of_the_chat_template_go_with_messages_only(server, is_vllm):
    server.vllm = is_vllm
    remote = open_engine(f'{server.url}?chat_template_kwargs={{"enable_thinking":false}}&retries=0#tiny')
    run(remote.generate([CHAT, "yes or no?"], GREEDY))
    run(remote.choose([CHAT, "yes or no?"], ["y", "n"]))
    sent = [(bool(body.get("messages")), body.get("chat_template_kwargs")) for body in server.requests]
    assert (True, {"enable_thinking": False}) in sent
    assert all((kwargs is not None) == has_messages for has_messages, kwargs in sent)
