"""Stands in for `vllm serve` in tests: answers /health and /v1/models, and misbehaves on request.

    stub_server.py MODEL --host H --port P --served-model-name N [--stub WHAT ...] [anything else]

WHAT is one of

- `grandchildren`: starts two processes that ignore SIGTERM, one of them without a parent and with its own session;
- `deaf`: ignores SIGTERM itself;
- `die-on-request`: ends with exit code 7 at GET /die; `hang-on-request`: answers nothing after GET /hang;
- `crash`: ends at once; `crash-later`: after the first request for its models; `crash-second`: at its second start;
- `never-healthy`: /health answers 503; `other-name`: serves another name; `locked`: /v1/models accepts no key;
- `chatty`: writes a progress bar, and a byte that is not text;
- `late`: binds its port at once, as vLLM does, and listens when the file STUB_FOLDER/listen exists;
- `shares`: sets SO_REUSEPORT, as vLLM with data parallelism does.

With --api-key or VLLM_API_KEY it accepts only this key.
"""

import argparse
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

IGNORES = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (signal.SIGTERM, signal.SIGINT)]; "


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--served-model-name", dest="name")
    parser.add_argument("--lora-modules", nargs="*", default=[])
    parser.add_argument("--api-key", default=os.environ.get("VLLM_API_KEY"))
    parser.add_argument("--stub", nargs="*", default=[])
    options, _ = parser.parse_known_args()
    what = set(options.stub)
    print(f"stub for {options.model} starts", flush=True)
    if "crash-second" in what:
        seen = Path(os.environ["STUB_FOLDER"]) / "seen"
        if seen.exists():
            print("the second start fails", flush=True)
            sys.exit(3)
        seen.touch()
    if "crash" in what:
        print("ValueError: no such model", *["the way there"] * 30, sep="\n", file=sys.stderr, flush=True)
        sys.exit(2)
    if "grandchildren" in what:
        subprocess.Popen([sys.executable, "-c", f"{IGNORES}time.sleep(1e6)"])
        # A daemon: its parent ends, and it leads a session of its own.
        daemon = f"{IGNORES}import os; os.fork() and os._exit(0); os.setsid(); time.sleep(1e6)"
        subprocess.Popen([sys.executable, "-c", daemon]).wait()
    if "deaf" in what:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "chatty" in what:
        sys.stdout.buffer.write(b"a bar: 10%\ra bar: 100%\nbyte \xff\n")
        sys.stdout.flush()
    served = [options.name, *(module.partition("=")[0] for module in options.lora_modules)]
    hung = threading.Event()
    healthy = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if hung.is_set():
                time.sleep(1e6)
            if self.path == "/health":
                healthy.set()  # before the answer: the next question may come at once
                self.answer(503 if "never-healthy" in what else 200, b"")
            elif self.path == "/v1/models" and (
                "locked" in what or (options.api_key and self.headers["authorization"] != f"Bearer {options.api_key}")
            ):
                self.answer(401, b"{}")
            elif self.path == "/v1/models":
                names = ["another"] if "other-name" in what else served
                self.answer(200, json.dumps({"data": [{"id": name} for name in names]}).encode())
                if "crash-later" in what and healthy.is_set():
                    print("a fault in the engine", flush=True)
                    os._exit(9)
            elif self.path == "/die" and "die-on-request" in what:
                os._exit(7)
            elif self.path == "/hang" and "hang-on-request" in what:
                hung.set()
                self.answer(200, b"")
            elif self.path == "/pid":
                self.answer(200, str(os.getpid()).encode())
            else:
                self.answer(404, b"")

        def answer(self, code: int, body: bytes) -> None:
            self.send_response(code)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer((options.host, options.port), Handler, bind_and_activate=False)
    if "shares" in what:
        server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    server.server_bind()
    if "late" in what:
        print("bound", flush=True)
        while not (Path(os.environ["STUB_FOLDER"]) / "listen").exists():
            time.sleep(0.05)
    server.server_activate()
    print("listens", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
