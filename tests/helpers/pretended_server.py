"""A server that answers what a vLLM server answers about itself."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class PretendedServer:
    """`answers`: status and JSON by path; tests change them."""

    def __init__(self, model: str):
        self.answers: dict[str, tuple[int, Any]] = {
            "/health": (200, None),
            "/version": (200, {"version": "0.30.0"}),
            "/v1/models": (200, {"data": [{"id": model, "root": model, "max_model_len": 1024}]}),
            "/server_info": (
                200,
                {
                    "vllm_config": {
                        "weight_transfer_config": {"backend": "gloo"},
                        "model_config": {"logprobs_mode": "processed_logprobs", "dtype": "torch.float32"},
                    }
                },
            ),
        }
        answers = self.answers

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, content = answers.get(self.path.split("?")[0], (404, {"detail": "Not Found"}))
                body = b"" if content is None else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def config(self) -> dict[str, Any]:
        return self.answers["/server_info"][1]["vllm_config"]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
