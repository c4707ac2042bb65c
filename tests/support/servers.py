"""Stand-ins on this machine for the servers that weights are downloaded from."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import socket
import threading
from collections.abc import Iterator


class Server:
    """Answers with files, and remembers what was asked for."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.headers: dict[str, str] = {}
        """Sent with every file."""
        self.missing = 404
        """The status of what is not there."""
        self.asked: list[str] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._answer()

            def do_GET(self) -> None:
                outer.asked.append(self.path)
                self.wfile.write(self._answer())

            def _answer(self) -> bytes:
                data = outer.content.get(self.path)
                self.send_response(200 if data is not None else outer.missing)
                self.send_header("Content-Length", str(len(data or b"")))
                for name, value in outer.headers.items() if data is not None else ():
                    self.send_header(name, value)
                self.end_headers()
                return data or b""

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def put_on_hub(self, repository: str, name: str, data: bytes) -> None:
        """Keeps a file as the Hugging Face hub does, which names its SHA-256."""
        self.content[f"/{repository}/resolve/main/{name}"] = data
        self.content[f"/{repository}/resolve/{'0' * 40}/{name}"] = data
        self.headers = {"X-Repo-Commit": "0" * 40, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}


@contextlib.contextmanager
def running_server() -> Iterator[Server]:
    server = Server()
    try:
        yield server
    finally:
        server.close()


def refusing_url() -> str:
    """An address of this machine where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"
