"""A small local server that stands for a language model's server, and misbehaves as it is told."""

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, repeat
from typing import Any

from willis.reports.schema import Findings

Behaviour = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """One request; the server's next behaviour decides what becomes of it."""

    server: "AnsweringServer"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body)
        self.server.keys.append(self.headers.get("Authorization", ""))
        with self.server.turn:
            behave = next(self.server.behaviours)
        behave(self)

    def send(self, status: int, body: bytes, retry_after_s: int | None = None) -> None:
        self.send_response(status)
        if retry_after_s is not None:
            self.send_header("Retry-After", str(retry_after_s))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class AnsweringServer(ThreadingHTTPServer):
    """Keeps what it was asked."""

    daemon_threads = True

    def __init__(self, behaviours: Iterable[Behaviour]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviours = iter(behaviours)
        self.turn = threading.Lock()
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.num_connections = 0

    def finish_request(self, request: Any, client_address: Any) -> None:
        with self.turn:
            self.num_connections += 1
        try:
            super().finish_request(request, client_address)
        finally:
            with self.turn:
                self.num_connections -= 1

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


@contextmanager
def answering(*behaviours: Behaviour) -> Iterator[AnsweringServer]:
    """Serve; the last behaviour goes on for ever."""
    server = AnsweringServer(chain(behaviours[:-1], repeat(behaviours[-1])))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def says(content: str | Findings, finish_reason: str = "stop", after_s: float = 0) -> Behaviour:
    """Answer with these words."""
    text = content if isinstance(content, str) else content.model_dump_json()
    message = {"role": "assistant", "content": text}
    completion = {
        "id": "1", "object": "chat.completion", "created": 0, "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 700, "completion_tokens": 90, "total_tokens": 790},
    }  # fmt: skip

    def behave(handler: Handler) -> None:
        time.sleep(after_s)
        handler.send(200, json.dumps(completion).encode())

    return behave


def fails(status: int, message: str = "no", retry_after_s: int | None = None) -> Behaviour:
    """Answer with an error."""
    body = json.dumps({"error": {"message": message}}).encode()
    return lambda handler: handler.send(status, body, retry_after_s)


def sends(body: bytes) -> Behaviour:
    """Answer 200 with a body of any kind."""
    return lambda handler: handler.send(200, body)


def hangs(handler: Handler) -> None:
    """Hold the connection and say nothing."""
    time.sleep(30)


def drops(handler: Handler) -> None:
    """Close the connection in the middle of the answer."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
    handler.close_connection = True
