"""A small server with OpenAI's protocol on a free local port, answering with a real model, that misbehaves on demand.

`server.faults` holds functions from the request's body to a fault or None; the first fault found is acted out. A fault
is a dict: `status` (with `message` and `headers`), `body` (sent as it is, with status 200), `hang` or `drop`. With
`server.vllm` it is one of vLLM's: it says so in its list of models, counts tokens, and knows `prompt_logprobs` and
`logprob_token_ids`.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from rlkd.engines import EngineError, Sampling
from rlkd.engines.tokens import encode_prompt
from rlkd.engines.transformers import TransformersEngine


class LoopbackServer:
    def __init__(self, engine: TransformersEngine) -> None:
        self.engine = engine
        self.lock = threading.Lock()
        self.released = threading.Event()
        self.reset()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/v1"

    def reset(self) -> None:
        self.released.set()  # lets hanging requests of the last test end
        self.released = threading.Event()
        self.faults: list[Callable[[dict[str, Any]], dict[str, Any] | None]] = []
        self.models = ["tiny"]
        self.vllm = False
        self.names_tokens = True  # whether its version knows `logprob_token_ids`
        self.delay = 0.0
        self.in_flight = self.most_in_flight = 0
        self.requests: list[dict[str, Any]] = []  # the bodies, in order of arrival
        self.answered: list[dict[str, Any]] = []  # those that got a good answer
        self.headers: list[dict[str, str]] = []

    def shut_down(self) -> None:
        self.released.set()
        self.http.shutdown()
        self.http.server_close()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if body["model"] not in self.models:
            return 404, _error(f"The model `{body['model']}` does not exist")
        loaded = _loaded(self.engine)
        if path == "/tokenize" and self.vllm:
            return self._tokenize(body, loaded.tokenizer)
        chat = path.endswith("/chat/completions")
        given = body["messages"] if chat else body["prompt"]
        with self.lock:
            try:
                ids = given if isinstance(given, list) and not chat else encode_prompt(loaded.tokenizer, given)
            except ValueError as error:
                return 400, _error(str(error))
        if len(ids) + body["max_tokens"] > loaded.context:
            return 400, _error(f"maximum context length is {loaded.context} tokens, the prompt has {len(ids)}")
        if self.vllm and "prompt_logprobs" in body:
            return 200, self._prompt_logprobs(ids, body["model"])
        wants_logprobs = bool(body.get("logprobs"))
        if wants_logprobs:
            content = self._logprobs(ids, body, chat)
        else:
            sampling = Sampling(
                max_new_tokens=body["max_tokens"],
                temperature=body["temperature"],
                top_p=body.get("top_p", 1.0),
                stop=tuple(body.get("stop", ())),
                seed=body.get("seed"),
            )
            [made] = asyncio.run(self.engine.generate([given], sampling))
            if isinstance(made, EngineError):
                return 400, _error(str(made))
            content = {"text": made.text, "finish_reason": made.finish_reason, "n": made.n_tokens, "logprobs": None}
        choice = {"index": 0, "finish_reason": content["finish_reason"], "logprobs": content["logprobs"]}
        choice |= {"message": {"role": "assistant", "content": content["text"]}} if chat else {"text": content["text"]}
        return 200, {
            "id": "1",
            "created": 0,
            "model": body["model"],
            "object": "chat.completion" if chat else "text_completion",
            "choices": [choice],
            "usage": {
                "prompt_tokens": len(ids),
                "completion_tokens": content["n"],
                "total_tokens": len(ids) + content["n"],
            },
        }

    def _tokenize(self, body: dict[str, Any], tokenizer: Any) -> tuple[int, dict[str, Any]]:
        with self.lock:
            if "messages" in body:
                return 200, {"tokens": encode_prompt(tokenizer, body["messages"])}
            return 200, {
                "tokens": tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"])["input_ids"]
            }

    def _prompt_logprobs(self, ids: list[int], model: str) -> dict[str, Any]:
        """The layout of vLLM: nothing for the first token, then a map from each token's id."""
        with self.lock, torch.inference_mode():
            table = _loaded(self.engine).model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        known = [{str(token): {"logprob": float(table[place, token])}} for place, token in enumerate(ids[1:])]
        choice = {"index": 0, "text": "x", "finish_reason": "length", "prompt_logprobs": [None, *known]}
        answer = {"id": "1", "created": 0, "model": model, "object": "text_completion", "choices": [choice]}
        return {**answer, "usage": {"prompt_tokens": len(ids), "completion_tokens": 1, "total_tokens": len(ids) + 1}}

    def _logprobs(self, ids: list[int], body: dict[str, Any], chat: bool) -> dict[str, Any]:
        """One new token, with log-probabilities in the layout of vLLM: echoed tokens, then the new one."""
        assert body["max_tokens"] == 1
        loaded = _loaded(self.engine)
        with self.lock, torch.inference_mode():
            table = loaded.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            new = int(table[-1].argmax())
            text = loaded.tokenizer.decode
            top = body["top_logprobs"] if chat else body["logprobs"]
            best = [(text([i]), float(p)) for p, i in zip(*(t.tolist() for t in table[-1].topk(top)), strict=True)]
        if chat:
            entry = {"token": text([new]), "logprob": best[0][1], "bytes": None}
            entry["top_logprobs"] = [{"token": token, "logprob": p, "bytes": None} for token, p in best]
            return {"text": text([new]), "finish_reason": "length", "n": 1, "logprobs": {"content": [entry]}}
        if self.vllm and self.names_tokens and "logprob_token_ids" in body:
            best = [(f"token_id:{token}", float(table[-1, token])) for token in body["logprob_token_ids"]]
        shown = [*ids, new] if body.get("echo") else [new]
        values = [None, *(float(table[place, token]) for place, token in enumerate([*ids, new][1:]))]
        tokens = [text([token]) for token in shown]
        logprobs = {
            "tokens": tokens,
            "token_logprobs": values[-len(shown) :],
            "text_offset": [sum(map(len, tokens[:place])) for place in range(len(tokens))],
            "top_logprobs": [None] * (len(shown) - 1) + [dict(best)],
        }
        return {"text": "".join(tokens), "finish_reason": "length", "n": 1, "logprobs": logprobs}


def _loaded(engine: TransformersEngine) -> Any:
    if engine._loaded is None:
        asyncio.run(engine.score([("a", "b")]))
    return engine._loaded


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error"}}


def _handler(server: LoopbackServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            try:
                self.send_response(status)
                for name, value in {"content-type": "application/json", **(headers or {})}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except OSError:  # the client hung up
                self.close_connection = True

        def do_GET(self) -> None:
            owner = "vllm" if server.vllm else "tests"
            models = [{"id": name, "object": "model", "created": 0, "owned_by": owner} for name in server.models]
            self.reply(200, json.dumps({"object": "list", "data": models}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with server.lock:
                server.requests.append(body)
                server.headers.append({name.lower(): value for name, value in self.headers.items()})
                server.in_flight += 1
                server.most_in_flight = max(server.most_in_flight, server.in_flight)
            try:
                self.act(body)
            finally:
                with server.lock:
                    server.in_flight -= 1

        def act(self, body: dict[str, Any]) -> None:
            time.sleep(server.delay)
            with server.lock:
                fault = next((found for check in server.faults if (found := check(body))), None)
            if fault is None:
                status, answer = server.answer(self.path, body)
                if status == 200:
                    with server.lock:
                        server.answered.append(body)
                self.reply(status, json.dumps(answer).encode())
            elif "hang" in fault:
                server.released.wait(20)
                self.close_connection = True
            elif "drop" in fault:
                self.close_connection = True
                self.connection.close()
            elif "body" in fault:
                self.reply(200, fault["body"], fault.get("headers"))
            else:
                answer = _error(fault.get("message", "out of order"))
                self.reply(fault["status"], json.dumps(answer).encode(), fault.get("headers"))

    return Handler
