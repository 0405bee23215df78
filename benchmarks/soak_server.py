"""Stands in for `vllm serve` in `soak.py`, where vLLM is not installed.

    soak_server.py MODEL --host H --port P --served-model-name N --weight-transfer-config '{"backend": "gloo"}'
    soak_server.py MODEL --host H --port P --served-model-name N --judge 0.01

The first samples from a model with transformers, behind the part of vLLM's protocol that TRL's client uses, and takes
weights by gloo or from files. The second is a judge without a model, which answers Yes or No; this share of its
requests gets no answer, and as many get an error.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class SampledRollouts:
    """A model that samples for TRL's client and takes a trainer's weights."""

    def __init__(self, folder: str, name: str, transfer: str):
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        torch.seed()  # or each start would draw the same completions
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        ends = self.model.generation_config.eos_token_id
        self.ends = set(ends if isinstance(ends, list) else [ends])
        self.folder, self.name, self.transfer = folder, name, transfer
        self.lock = threading.Lock()
        self.group: Any = None
        self.arrived: dict[str, Any] | None = None

    def models(self) -> list[dict[str, Any]]:
        """The entries of /v1/models."""
        length = self.model.config.max_position_embeddings
        return [{"id": self.name, "root": self.folder, "max_model_len": length, "owned_by": "vllm"}]

    def get(self, path: str) -> Any:
        """What the server says about itself."""
        if path == "/server_info":
            described = {"logprobs_mode": "processed_logprobs", "dtype": "torch.float32"}
            config = {"weight_transfer_config": {"backend": self.transfer}, "model_config": described}
            return {"vllm_config": config}
        return {"/version": {"version": "0.30.0"}, "/get_world_size": {"world_size": 1}}.get(path)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Answer a request; one at a time."""
        with self.lock:
            if path == "/v1/completions":
                return {"choices": self.sample(body)}
            if path == "/reset_prefix_cache":
                return {"success": True}
            steps = {
                "/init_weight_transfer_engine": lambda: self.join(body["init_info"]),
                "/start_weight_update": self.start,
                "/update_weights": lambda: self.receive(body["update_info"]),
                "/finish_weight_update": self.finish,
            }
            steps[path]()
            return {}

    def join(self, address: dict[str, Any]) -> None:
        """Join the trainer's group; an earlier one is left."""
        from rlkd.weight_transfer.transport import join

        if self.transfer == "gloo":
            if self.group is not None:
                self.group.close()
            where = (address["master_address"], address["master_port"], address["rank_offset"])
            self.group = join(*where, address["world_size"], address["seconds"])

    def start(self) -> None:
        """Begin an update."""
        if self.arrived is not None:
            raise RuntimeError("a weight update is already active")
        self.arrived = {}

    def receive(self, update: dict[str, Any]) -> None:
        """Take the announced weights."""
        import torch
        from safetensors.torch import load_file

        if self.arrived is None:
            raise RuntimeError("no weight update is active")
        if self.transfer == "gloo":
            if self.group is None:
                raise RuntimeError("no trainer has called init_weight_transfer_engine")
            for name, dtype, shape in zip(update["names"], update["dtype_names"], update["shapes"], strict=True):
                self.arrived[name] = self.group.receive(shape, getattr(torch, dtype))
        else:
            for path in update["paths"]:
                self.arrived |= load_file(path)

    def finish(self) -> None:
        """Load them into the model."""
        import torch

        arrived, self.arrived = self.arrived or {}, None
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(arrived[name])

    def sample(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """`n` completions of each prompt (a list of token ids), prompts in order, with log-probabilities."""
        import torch

        prompts: list[list[int]] = body["prompt"]
        width, count = max(map(len, prompts)), int(body["n"])
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.inference_mode():
            made = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                temperature=body["temperature"],
                top_p=1.0,
                top_k=0,
                max_new_tokens=body["max_tokens"],
                num_return_sequences=count,
                pad_token_id=0,
                output_scores=True,
                return_dict_in_generate=True,
            )
            tokens = made.sequences[:, width:]
            table = torch.stack(made.scores, dim=1).log_softmax(-1)
            logprobs = table.gather(-1, tokens[..., None])[..., 0].tolist()
        choices = []
        for index, (row, values) in enumerate(zip(tokens.tolist(), logprobs, strict=True)):
            length = next((place + 1 for place, token in enumerate(row) if token in self.ends), len(row))
            shown = [f"token_id:{token}" for token in row[:length]]
            best = [None] * length
            listed = {"tokens": shown, "token_logprobs": values[:length], "top_logprobs": best}
            choices.append(
                {
                    "index": index,
                    "prompt_token_ids": prompts[index // count],
                    "token_ids": row[:length],
                    "logprobs": listed,
                    "finish_reason": "stop" if row[length - 1] in self.ends else "length",
                }
            )
        return choices


class ErraticJudge:
    """Says whether two texts end with the same number or word, and misbehaves at random."""

    def __init__(self, name: str, share: float):
        self.name, self.share = name, share

    def models(self) -> list[dict[str, Any]]:
        """The entries of /v1/models."""
        return [{"id": self.name, "owned_by": "soak"}]

    def get(self, path: str) -> Any:
        """Nothing besides the models."""
        return None

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """A verdict; None for no answer. Raises `RuntimeError` as often."""
        draw = random.random()
        if draw < self.share:
            return None
        if draw < 2 * self.share:
            raise RuntimeError("a failure at random")
        texts = re.findall(r"^(?:First|Second): (.*)$", body["messages"][-1]["content"], flags=re.MULTILINE)
        ends = {text.rstrip(".?! ").rpartition(" ")[2] for text in texts}
        said, other = ("Yes", "No") if len(ends) == 1 else ("No", "Yes")
        top = [{"token": said, "logprob": -0.1}, {"token": other, "logprob": -2.4}]
        content = [{"token": said, "logprob": -0.1, "top_logprobs": top}]
        choice = {"index": 0, "finish_reason": "stop", "logprobs": {"content": content}}
        message = {"role": "assistant", "content": said}
        return {"id": "1", "created": 0, "model": self.name, "choices": [{**choice, "message": message}]}


def handler(server: SampledRollouts | ErraticJudge) -> type[BaseHTTPRequestHandler]:
    """HTTP around a server."""
    started = time.time()

    class StandInHandler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            if path == "/metrics":
                self.answer(200, f"process_start_time_seconds {started}\n".encode())
            elif path == "/health":
                self.answer(200, b"")
            elif path == "/v1/models":
                self.answer(200, json.dumps({"object": "list", "data": server.models()}).encode())
            else:
                found = server.get(path)
                self.answer(404 if found is None else 200, json.dumps(found or {}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or b"{}")
            try:
                answer = server.post(self.path.split("?")[0], body)
            except Exception as error:
                self.answer(500, json.dumps({"error": {"message": f"{type(error).__name__}: {error}"}}).encode())
                return
            if answer is None:
                self.rfile.read(1)  # until the client hangs up
                self.close_connection = True
            else:
                self.answer(200, json.dumps(answer).encode())

        def answer(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    return StandInHandler


class StandIn(ThreadingHTTPServer):
    """A thread for each connection; a burst of them is not refused."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Nothing: clients hang up."""


def pretend_vllm(folder: Path) -> Path:
    """A package `vllm` with the names that TRL imports; a run with gloo or disk never uses them."""
    names = {
        "__init__": "LLM = RequestOutput = SamplingParams = None",
        "sampling_params": "StructuredOutputsParams = None",
        "utils/network_utils": "get_ip = None",
        "distributed/weight_transfer/nccl_common": "trainer_init = None",
        "distributed/weight_transfer/packed_tensor": "packed_nccl_broadcast_producer = None",
    }
    for name, content in names.items():
        path = folder / "vllm" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        for parent in path.relative_to(folder).parents[:-1]:
            (folder / parent / "__init__.py").touch()
        path.write_text(content + "\n")
    metadata = folder / "vllm-0.30.0.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.30.0\n")
    (metadata / "top_level.txt").write_text("vllm\n")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--weight-transfer-config", type=json.loads, default={})
    parser.add_argument("--judge", type=float)
    given, _ = parser.parse_known_args()  # vLLM has more
    server: SampledRollouts | ErraticJudge
    if given.judge is None:
        server = SampledRollouts(
            given.model, given.served_model_name, given.weight_transfer_config.get("backend", "disk")
        )
    else:
        server = ErraticJudge(given.served_model_name, given.judge)
    StandIn((given.host, given.port), handler(server)).serve_forever()


if __name__ == "__main__":
    main()
