"""A served gallery, in a thread of the test."""

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from typing import Any

from maskdino_jax.serve import Gallery
from maskdino_jax.serve.server import application


@contextlib.contextmanager
def served(gallery: Gallery, max_upload_mb: float = 0.1, host: str = "127.0.0.1") -> Iterator[int]:
    """The port of a server that runs until the end of the block."""
    import uvicorn

    app = application(gallery, "two halves", host=host, max_upload_mb=max_upload_mb)
    config = uvicorn.Config(app, port=0, log_level="error", log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def ask(port: int, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, body, {name.replace("_", "-"): text for name, text in headers.items()})
        answer = connection.getresponse()
        return answer.status, {name.lower(): text for name, text in answer.getheaders()}, answer.read()


def told(answer: tuple[int, dict[str, str], bytes]) -> str:
    return json.loads(answer[2])["error"]
