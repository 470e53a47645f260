"""A real HTTP server that keeps what is posted to it."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from tests.waiting import wait_for

if TYPE_CHECKING:
    from typing_extensions import Self


class HttpReceiver:
    """Answers each request with the next of `statuses`, and with 200 after these."""

    def __init__(self, statuses: tuple[int, ...] = ()) -> None:
        self.posts: list[tuple[str, Any]] = []
        self.gets: list[str] = []
        self.logins: list[str | None] = []
        left = list(statuses)
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.posts.append((self.path, json.loads(body)))
                self._answer()

            def do_GET(self) -> None:
                receiver.gets.append(self.path)
                self._answer()

            def _answer(self) -> None:
                receiver.logins.append(self.headers["Authorization"])
                self.send_response(left.pop(0) if left else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self.url = f"http://{self.host}"

    def wait_for_posts(self, count: int, missing: object = "") -> list[Any]:
        """The contents of the first posts, as soon as there are so many."""
        wait_for(lambda: len(self.posts) >= count, missing=lambda: missing)
        return [content for _, content in self.posts]

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
