import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rewards import Failed, RewardError
from rewards.remote import HttpReward
from tests.helpers.rewards import build_reward


class Scorer(ThreadingHTTPServer):
    """Scores by length, after the answers in `script`: a status, or the body of a reply."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = []
        self.requests = []
        self.tokens = set()

    @property
    def url(self):
        return f"http://me:secret@127.0.0.1:{self.server_address[1]}/score?key=secret"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_POST(self):
        samples = json.loads(self.rfile.read(int(self.headers["content-length"])))["samples"]
        self.server.requests.append(samples)
        self.server.tokens.add(self.headers.get("authorization"))
        answer = self.server.script.pop(0) if self.server.script else None
        body = {"scores": [len(sample["completion"]) for sample in samples]} if answer is None else answer
        status = body if isinstance(body, int) else 200
        data = json.dumps({} if isinstance(body, int) else body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server():
    made = Scorer()
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def score(reward, *texts, **columns):
    given = {name: [value] * len(texts) for name, value in columns.items()}
    return asyncio.run(reward(prompts=["2 + 3?"] * len(texts), completions=list(texts), **given))


def test_a_batch_is_scored_in_parts_and_carries_the_named_columns(server):
    assert score(HttpReward(server.url, batch=2, columns=["answer"]), "a", "bb", "ccc", answer="5", id="x") == [
        1,
        2,
        3,
    ]
    assert sorted(len(samples) for samples in server.requests) == [1, 2]
    assert {tuple(sample) for samples in server.requests for sample in samples} == {
        ("question", "completion", "answer")
    }


def test_null_is_not_applicable_and_an_error_a_failure(server):
    server.script = [{"scores": [0.5, None, {"error": "no such language"}, "high"]}]
    found = score(HttpReward(server.url), "a", "b", "c", "d")
    assert found[:3] == [0.5, None, Failed("no such language")]
    assert found[3] == Failed("the server answered 'high' for a score; expected a number, null or an error")


def test_a_server_that_says_later_is_asked_again(server):
    server.script = [503, 429]
    assert score(HttpReward(server.url, pause=0.0), "abc") == [3]
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("answers", "cause"),
    [
        ([503, 503], "answered with status 503, after 2 attempts"),
        ([404], "answered with status 404"),
        ([{"rewards": [1.0]}], 'expected {"scores": [...]}'),
        ([{"scores": [1.0, 2.0]}], "answered 2 scores for 1 samples"),
    ],
)
def test_no_scores_are_a_failure_whose_cause_has_no_secret(server, answers, cause):
    server.script = answers
    [found] = score(HttpReward(server.url, retries=1, pause=0.0), "abc")
    assert isinstance(found, Failed)
    assert cause in found.cause
    assert "secret" not in found.cause


def test_a_description_has_no_secret(server):
    assert HttpReward(server.url).describe().startswith("the server at http://127.0.0.1:")
    assert "secret" not in HttpReward(server.url).describe()


def test_a_server_that_is_not_there_is_refused_before_a_run(server):
    HttpReward(server.url).check_ready()
    server.script = [{"scores": [1.0]}]
    with pytest.raises(RewardError, match=r"1 scores for 0 samples. It must answer \{\"samples\": \[\]\}"):
        HttpReward(server.url).check_ready()
    with pytest.raises(RewardError, match=r"no answer from http://127.0.0.1:9/ .* after 1 attempts"):
        HttpReward("http://127.0.0.1:9/", retries=0).check_ready()


def test_the_token_comes_from_the_environment(server, monkeypatch):
    with pytest.raises(RewardError, match="there is no environment variable SCORER_KEY"):
        HttpReward(server.url, token="SCORER_KEY").check_ready()
    monkeypatch.setenv("SCORER_KEY", "abc")
    score(HttpReward(server.url.replace("me:secret@", ""), token="SCORER_KEY"), "a")
    assert server.tokens == {"Bearer abc"}


def test_it_is_built_from_a_config_and_needs_its_columns(server):
    reward = build_reward("http", {"url": server.url, "columns": ["gold"]})
    with pytest.raises(RewardError, match="needs the column 'gold'"):
        reward.check_columns(["answer"])
    assert asyncio.run(reward(prompts=["?"], completions=["abcd"], gold=["5"])) == [4.0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"url": "localhost:8000"}, "begins with http"), ({"batch": 0}, "batch 0"), ({"timeout": 0}, "timeout 0")],
)
def test_what_does_not_fit_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        HttpReward(**{"url": "http://127.0.0.1:9/", **wrong})
