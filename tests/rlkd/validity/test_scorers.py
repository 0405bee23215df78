"""The built-in scorers, on tiny random models and a server on the loopback device that answers as a script says."""

import json
import logging
import math
import pickle
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rlkd.engines import run
from rlkd.engines.transformers import TransformersEngine
from rlkd.errors import UsageError
from rlkd.validity import StepQuestion, ValidityError, load_scorer, score_pairs
from rlkd.validity.judge import TEMPLATE, grade
from tests.helpers.quick_retries import shorten_pauses

CHAT = [{"role": "user", "content": "How much is 3 * 4 + 2?"}]


class ScriptedServer:
    """Answers chats and texts with what `answer(text of the request)` returns; None is a server's error."""

    def __init__(self):
        self.answer = lambda text: ""
        self.requests = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments):
                pass

            def reply(self, content, status=200):
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self):
                self.reply({"object": "list", "data": [{"id": "m", "object": "model"}]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.requests.append(body)
                text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
                found = outer.answer(text)
                if found is None:
                    return self.reply({"error": {"message": "broken", "type": "bad", "code": 400}}, 400)
                part = {"message": {"role": "assistant", "content": found}} if "messages" in body else {"text": found}
                choice = {"index": 0, "finish_reason": "stop", "logprobs": None, **part}
                usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
                self.reply({"id": "1", "object": "x", "created": 0, "model": "m", "choices": [choice], "usage": usage})

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def spec(self):
        return f"http://127.0.0.1:{self.http.server_port}/v1#m"


@pytest.fixture
def server(monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    shorten_pauses(monkeypatch)
    made = ScriptedServer()
    yield made
    made.http.shutdown()
    made.http.server_close()


def question(step, prefix="", prompt="How much is 3 * 4 + 2?\n", answer="14", **more):
    return StepQuestion(prompt, prefix, step, answer, **more)


# Likelihood


def test_the_likelihood_of_a_step_is_the_mean_log_probability_of_its_tokens(tiny_model):
    scorer = load_scorer("likelihood", {"engine": f"transformers:{tiny_model}"})
    values = run(scorer([question("3 * 4 = 12."), question("So 14.", prefix="3 * 4 = 12. ")]))
    [whole] = run(
        TransformersEngine(tiny_model).score([("How much is 3 * 4 + 2?\n", "3 * 4 = 12. So 14.")])
    )  # a token is a character
    first, second = whole.logprobs[:11], whole.logprobs[12:]
    assert values == pytest.approx([sum(first) / 11, sum(second) / 6], abs=1e-4)


def test_messages_and_their_rendered_text_have_one_likelihood(tiny_model):
    scorer = load_scorer("likelihood", {"engine": f"transformers:{tiny_model}"})
    rendered = f"<|user|>{CHAT[0]['content']}<|end|><|assistant|>"
    asked = [question("So 14.", "12. ", CHAT), question("So 14.", "12. ", rendered), question("So 14.", "12. ", "?")]
    chat, text, other = run(scorer(asked))
    assert chat == text
    assert abs(chat - other) > 1e-4


def test_a_special_token_that_template_and_tokenizer_both_begin_with_stands_there_once(tiny_model, tmp_path):
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.bos_token = "<|system|>"
    place = tokenizer.convert_tokens_to_ids("<|system|>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|system|> $A", special_tokens=[("<|system|>", place)]
    )
    tokenizer.chat_template = "<|system|>" + tokenizer.chat_template
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer("a")["input_ids"][0] == place
    scorer = load_scorer("likelihood", {"engine": f"transformers:{tiny_model}", "tokenizer": str(tmp_path)})
    [text] = run(scorer.texts([question("s", "p", CHAT)]))
    assert text == f"<|user|>{CHAT[0]['content']}<|end|><|assistant|>p"


def test_the_reductions_of_the_likelihood_are_ordered_and_none_for_no_tokens():
    logprobs = [[-0.1] * 9 + [-5.0], []]
    found = {
        name: load_scorer("likelihood", {"reduction": name, "quantile": 0.95}).from_token_logprobs(logprobs)
        for name in ("mean", "max", "quantile")
    }
    assert found["max"] == [-5.0, None]
    assert found["mean"] == [pytest.approx(-0.59), None]
    assert found["max"][0] < found["quantile"][0] < found["mean"][0]


def test_a_step_that_no_longer_fits_the_context_fails_alone_and_is_logged(tiny_model, caplog):
    scorer = load_scorer("likelihood", {"engine": f"transformers:{tiny_model}"})
    with caplog.at_level(logging.WARNING):
        good, bad = run(scorer([question("So 14."), question("x" * 5000)]))
    assert good is not None
    assert bad is None
    assert "1 of 2 steps have no validity" in caplog.text
    assert "context is 4096" in caplog.text


def test_the_likelihood_of_the_trainers_teacher_cannot_score_texts():
    with pytest.raises(ValidityError, match="cannot score texts"):
        score_pairs(load_scorer("likelihood"), [question("a")], [question("b")])


def test_messages_at_a_server_need_the_name_of_a_tokenizer(server):
    scorer = load_scorer("likelihood", {"engine": server.spec})
    with pytest.raises(ValidityError, match="Set `tokenizer`"):
        score_pairs(scorer, [question("a", prompt=CHAT)], [question("b", prompt=CHAT)])


# Rollout


def scripted_rollouts(server, **parameters):
    return load_scorer("rollout", {"engine": server.spec, "samples": 4, **parameters})


@pytest.mark.slow
def test_a_rollout_counts_the_completions_that_reach_the_right_answer(server):
    replies = iter(["#### 14", "#### 15", "#### 14", "so it is 14, I think", "#### 9", "#### 14", "#### 1", "#### 2"])
    lock = threading.Lock()

    def answer(text):
        with lock:
            return next(replies) if "good" in text else "#### 13"

    server.answer = answer
    good, bad = score_pairs(scripted_rollouts(server), [question("good. ")], [question("bad. ")])
    assert (good, bad) == ([3 / 6], [1 / 6])
    assert {body["prompt"] for body in server.requests} == {
        "How much is 3 * 4 + 2?\ngood. ",
        "How much is 3 * 4 + 2?\nbad. ",
    }
    assert len({body["seed"] for body in server.requests}) == 8


@pytest.mark.slow
def test_proposals_without_a_single_right_completion_have_no_validity(server):
    server.answer = lambda text: "#### 14" if "good" in text else "#### 13"
    teacher = [question("good. "), question("poor. ", prefix="elsewhere ")]
    student = [question("bad. "), question("bad. ", prefix="elsewhere ")]
    assert score_pairs(scripted_rollouts(server), teacher, student) == ([5 / 6, None], [1 / 6, None])


def test_a_step_that_announces_an_answer_is_judged_by_it_without_sampling(server):
    server.answer = lambda text: None
    found = score_pairs(scripted_rollouts(server), [question("#### 14")], [question("#### 15")])
    assert found == ([5 / 6], [1 / 6])
    assert server.requests == []


def test_completions_that_fail_are_left_out_of_the_count_and_logged(server, caplog):
    calls = iter(["#### 14", None, "#### 13", None])
    lock = threading.Lock()

    def answer(text):
        with lock:
            return next(calls)

    server.answer = answer
    with caplog.at_level(logging.WARNING):
        assert run(scripted_rollouts(server).count([question("a. ")])) == [(1, 2)]
    assert "broken" in caplog.text


def test_a_question_without_an_answer_or_with_an_unreadable_one_has_no_rollout_validity(server, caplog):
    server.answer = lambda text: "#### 14"
    with caplog.at_level(logging.WARNING):
        found = run(scripted_rollouts(server)([question("a", answer=None), question("b", answer="???")]))
    assert found == [None, None]


@pytest.mark.slow
def test_a_dead_server_is_a_failure_and_no_zero(server, caplog):
    server.http.shutdown()
    server.http.server_close()
    for name in ("rollout", "judge", "prm", "likelihood"):
        scorer = load_scorer(name, {"engine": server.spec, "deadline": 1.0})
        with pytest.raises(UsageError):
            scorer.check_ready()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert score_pairs(scorer, [question("a")], [question("b")]) == ([None], [None])
        assert f"validity scorer {name!r}: " in caplog.text
        assert "Connection error" in caplog.text or "deadline" in caplog.text


def test_rollouts_of_a_model_in_this_process_are_the_same_in_every_call(tiny_model):
    parameters = {"engine": f"transformers:{tiny_model}", "samples": 2, "max_new_tokens": 4}
    scorer = load_scorer("rollout", parameters | {"fallback": "last_number"})
    asked = [question("So 1", prompt=CHAT, answer="1"), question("So 7", prompt=CHAT, answer="1")]
    assert run(scorer(asked)) == run(scorer(asked))


def test_equal_samples_are_refused_before_any_request(server):
    with pytest.raises(ValidityError, match="samples=4 at temperature 0 are all the same"):
        scripted_rollouts(server, temperature=0.0)


# Judge


def test_a_judges_grade_is_a_tenth_of_its_number_and_every_candidate_is_a_call_of_its_own(server):
    server.answer = lambda text: '{"grade": 9}' if "12 + 2" in text else '{"grade": 2}'
    scorer = load_scorer("judge", {"engine": server.spec})
    found = score_pairs(scorer, [question("12 + 2 = 14")], [question("12 - 2 = 10")])
    assert found == ([0.9], [0.2])
    assert len(server.requests) == 2
    for body in server.requests:
        [message] = body["messages"]
        assert "How much is 3 * 4 + 2?" in message["content"]
        assert "(nothing yet)" in message["content"]
        assert "json_schema" in json.dumps(body)


def test_a_reply_without_a_grade_is_a_failure_of_that_step_alone(server, caplog):
    server.answer = lambda text: "I like it" if "12 + 2" in text else '{"grade": 2}'
    with caplog.at_level(logging.WARNING):
        found = run(load_scorer("judge", {"engine": server.spec})([question("12 + 2 = 14"), question("no")]))
    assert found == [None, 0.2]
    assert "no grade in 'I like it'" in caplog.text


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        ('{"grade": 7}', 7),
        ('```json\n{"grade": 0}\n```', 0),
        (" 10/10. ", 10),
        ("8", 8),
        ('{"grade": 11}', None),
        ('{"grade": -1}', None),
        ('{"grade": 7.5}', None),
        ('{"grade": true}', None),
        ('{"grade": "7"}', None),
        ('{"score": 7}', None),
        ("7 or 8", None),
        ("11", None),
        ("", None),
    ],
)
def test_a_grade_is_read_only_where_there_is_one(reply, wanted):
    assert grade(reply) == wanted


def test_a_template_of_ones_own_sees_the_row(server):
    server.answer = lambda text: "5" if text == "Rate b after a for geometry, given 14." else ""
    template = "Rate {{ step }} after {{ prefix }} for {{ columns.topic }}, given {{ answer }}."
    scorer = load_scorer("judge", {"engine": server.spec, "template": template})
    assert run(scorer([question("b", "a", columns={"topic": "geometry"})])) == [0.5]
    with pytest.raises(ValidityError, match=r"no attribute 'topic'.*columns level"):
        score_pairs(scorer, [question("b", columns={"level": 1})], [question("c", columns={"level": 1})])


@pytest.mark.parametrize("template", ["{{ stepp }}", "{% if %}", "{{ step.__class__.__mro__ }}{{ nothing() }}"])
def test_a_template_that_does_not_render_is_refused_when_the_scorer_is_built(server, template):
    with pytest.raises(ValidityError, match="does not render"):
        load_scorer("judge", {"engine": server.spec, "template": template})


def test_text_that_looks_like_a_template_is_only_text(server):
    seen = []
    server.answer = lambda text: seen.append(text) or "3"
    run(load_scorer("judge", {"engine": server.spec})([question("{{ 7 * 7 }}{% raw %}")]))
    assert "{{ 7 * 7 }}{% raw %}" in seen[0]
    assert TEMPLATE.count("{{") == 3


# Process reward model


@pytest.fixture(scope="module")
def heads(tiny_model, tmp_path_factory):
    """Folders of tiny random classifiers: by token, by sequence, and with one output."""
    import torch
    from transformers import (
        AutoConfig,
        AutoTokenizer,
        LlamaForSequenceClassification,
        LlamaForTokenClassification,
    )

    made = {}
    kinds = {
        "token": (LlamaForTokenClassification, {"num_labels": 2, "id2label": {0: "bad", 1: "good"}}),
        "sequence": (LlamaForSequenceClassification, {"num_labels": 3}),
        "logit": (LlamaForSequenceClassification, {"num_labels": 1}),
    }
    for name, (kind, settings) in kinds.items():
        folder = tmp_path_factory.mktemp(name)
        config = AutoConfig.from_pretrained(tiny_model, **settings, initializer_range=0.3)
        config.max_position_embeddings = 128
        torch.manual_seed(1)
        kind(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
        made[name] = str(folder)
    return made


def head_logits(folder, text, kind):
    import torch
    from transformers import AutoTokenizer

    model = kind.from_pretrained(folder).eval()
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.no_grad():
        return model(**ids).logits


def test_a_token_classifier_is_read_at_the_end_of_the_step(heads):
    from transformers import LlamaForTokenClassification

    scorer = load_scorer("prm", {"model": heads["token"]})
    short, long = run(scorer([question("b", "a", "p"), question("12 + 2 = 14", "3 * 4 = 12. ", "p")]))
    for value, text in ((short, "p\nab\n"), (long, "p\n3 * 4 = 12. 12 + 2 = 14\n")):
        logits = head_logits(heads["token"], text, LlamaForTokenClassification)[0, -1]
        assert value == pytest.approx(logits.softmax(-1)[1].item(), abs=1e-5)
    assert abs(short - long) > 1e-3


def test_a_sequence_classifier_gives_the_share_of_the_class_that_is_named(heads):
    from transformers import LlamaForSequenceClassification

    shares = head_logits(heads["sequence"], "p\nab\n", LlamaForSequenceClassification)[0].softmax(-1).tolist()
    asked = [question("b", "a", "p"), question("a much longer step", "a", "p")]
    for good, wanted in ((0, shares[0]), ("LABEL_2", shares[2])):
        found = run(load_scorer("prm", {"model": heads["sequence"], "good": good})(asked))
        assert found[0] == pytest.approx(wanted, abs=1e-5)


def test_a_single_output_is_a_logit(heads):
    from transformers import LlamaForSequenceClassification

    logit = head_logits(heads["logit"], "p\nab\n", LlamaForSequenceClassification)[0, 0].item()
    [found] = run(load_scorer("prm", {"model": heads["logit"]})([question("b", "a", "p")]))
    assert found == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-5)


def test_validities_of_a_classifier_do_not_depend_on_the_batch(heads):
    asked = [question("x" * length, prompt="p") for length in (3, 40, 9, 27, 1, 80)]
    together = run(load_scorer("prm", {"model": heads["token"]})(asked))
    alone = run(load_scorer("prm", {"model": heads["token"], "batch_tokens": 1})(asked))
    assert together == pytest.approx(alone, abs=1e-5)


def test_a_step_beyond_the_context_of_the_classifier_fails_alone(heads, caplog):
    with caplog.at_level(logging.WARNING):
        found = run(load_scorer("prm", {"model": heads["token"]})([question("a"), question("x" * 200)]))
    assert found[0] is not None
    assert found[1] is None
    assert "do not fit the model's context of 128" in caplog.text


def test_a_deadline_that_has_passed_fails_what_is_unfinished(heads, caplog):
    with caplog.at_level(logging.WARNING):
        assert run(load_scorer("prm", {"model": heads["token"], "deadline": 0.0})([question("a")])) == [None]
    assert "the deadline of 0.0 s passed" in caplog.text


def test_a_checkpoint_that_is_no_classifier_or_lacks_the_class_is_refused_with_the_way_out(heads, tiny_model):
    with pytest.raises(ValidityError, match="is a LlamaForCausalLM; expected one that ends in"):
        load_scorer("prm", {"model": tiny_model}).check_ready()
    with pytest.raises(ValidityError, match=r"has no class 'fine'; it has \{0: 'bad', 1: 'good'\}"):
        load_scorer("prm", {"model": heads["token"], "good": "fine"}).check_ready()
    with pytest.raises(ValidityError, match="set `good`"):
        load_scorer("prm", {"model": heads["sequence"]}).check_ready()


def test_an_engine_chooses_one_of_two_labels(tiny_model):
    scorer = load_scorer("prm", {"engine": f"transformers:{tiny_model}", "labels": ["+", "-"]})
    [value] = run(scorer([question("So 14.")]))
    prompt = [{"role": "user", "content": scorer_text("So 14.")}]
    [(good, bad)] = run(TransformersEngine(tiny_model).choose([prompt], ["+", "-"]))
    assert value == pytest.approx(math.exp(good) / (math.exp(good) + math.exp(bad)), abs=1e-6)
    swapped = load_scorer("prm", {"engine": f"transformers:{tiny_model}", "labels": ["-", "+"]})
    assert run(swapped([question("So 14.")])) == [pytest.approx(1 - value, abs=1e-6)]


def scorer_text(step):
    from rlkd.validity.prm import CHAT
    from rlkd.validity.templates import render

    return render(CHAT, question(step), "How much is 3 * 4 + 2?\n")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "either `model`"),
        ({"model": "a", "engine": "transformers:b"}, "either `model`"),
        ({"engine": "transformers:b", "labels": ["Yes"]}, "expected two"),
        ({"engine": "transformers:b", "good": 1}, "with `engine` set `labels`"),
        ({"model": "a", "labels": ["+", "-"]}, "together with `engine`"),
    ],
)
def test_parameters_that_contradict_each_other_are_refused(parameters, message):
    with pytest.raises(ValidityError, match=message):
        load_scorer("prm", parameters)


# All of them


def test_every_scorer_pickles_with_its_settings(tiny_model, heads):
    engine = f"transformers:{tiny_model}"
    for name, parameters in {
        "likelihood": {"engine": engine, "reduction": "max"},
        "rollout": {"engine": engine, "samples": 2, "max_new_tokens": 3, "fallback": "last_number"},
        "judge": {"engine": engine},
        "prm": {"model": heads["token"]},
    }.items():
        scorer = load_scorer(name, parameters)
        asked = [question("So 14.")]
        before = run(scorer(asked))
        assert run(pickle.loads(pickle.dumps(scorer))(asked)) == before


@pytest.mark.parametrize("name", ["judge", "rollout"])
def test_a_scorer_that_needs_an_engine_says_so(name):
    with pytest.raises(ValidityError, match="needs the parameter 'engine'"):
        load_scorer(name)


def test_a_server_without_the_name_of_its_model_is_refused():
    with pytest.raises(ValidityError, match="name the model"):
        load_scorer("judge", {"engine": "http://127.0.0.1:9/v1"})
