"""The web server: a page, and three addresses that it asks."""

import contextlib
import logging
import socket
from importlib import resources
from types import ModuleType
from typing import Any

from maskdino_jax.serve.gallery import STYLES, Forgotten, Gallery, NotAnImage, TooManyPixels

_FILES = {
    "page.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
}
# The page asks nobody but this server, whatever an image is called.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_LOOPBACK = ("127.0.0.1", "localhost")
_MEGABYTE = 1_000_000
_GRACE = 5  # seconds that answers in the making have when the server is stopped


def serve(gallery: Gallery, name: str, *, host: str, port: int, max_upload_mb: float) -> None:
    """Answer until Ctrl-C or SIGTERM.

    Args:
        name: of the model, for the page.
        host: address to listen on; but for 127.0.0.1 anyone who reaches the machine can use the page.
        port: 0 takes a free one, which the log names.
        max_upload_mb: size of an uploaded file, in megabytes.

    Raises:
        ModuleNotFoundError: the extra `serve` is not installed.
        ValueError: `max_upload_mb` is not positive.
        OSError: the address cannot be listened on.
    """
    app, uvicorn = application(gallery, name, host=host, max_upload_mb=max_upload_mb), _libraries()[1]
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise OSError(f"--host={host} --port={port} cannot be listened on ({error}): give another --port.") from error
    shown = f"[{host}]" if ":" in host else host
    if host not in _LOOPBACK:
        logging.warning("--host=%s: everyone who reaches this machine can use the page; there is no password", host)
    logging.info("serving %s on http://%s:%d, until Ctrl-C", name, shown, listening.getsockname()[1])
    config = uvicorn.Config(app, log_level="warning", log_config=None, timeout_graceful_shutdown=_GRACE)
    with listening, contextlib.suppress(KeyboardInterrupt):  # uvicorn passes the signal on when it has ended
        uvicorn.Server(config).run(sockets=[listening])
    logging.info("stopped")


def application(gallery: Gallery, name: str, *, host: str, max_upload_mb: float) -> Any:
    """The Starlette application.

    `GET /` is the page, `GET /model` what it should know, `POST /images` takes the bytes of a file and tells what was
    found, `GET /images/KEY/STYLE?threshold=0.5` is a picture of it. Errors are {"error": text for the sender}.
    """
    if not max_upload_mb > 0:
        raise ValueError(f"--max_upload_mb={max_upload_mb}: give a positive number.")
    starlette, _ = _libraries()
    routing, responses = starlette.routing, starlette.responses
    limit = int(max_upload_mb * _MEGABYTE)
    options = gallery.predictor.config.inference
    about = {"name": name, "max_upload_mb": max_upload_mb, "threshold": options.score_threshold, "styles": STYLES}

    async def model(request: Any) -> Any:
        return responses.JSONResponse(about, headers=_HEADERS)

    async def add(request: Any) -> Any:
        data = await _body(request, limit)
        if data is None:
            text = f"This file is too large: give one of at most {max_upload_mb:g} MB."
            # The rest of it is not read, so that the connection cannot serve another request.
            return _error(responses, 413, text, {"Connection": "close"})
        try:
            entry = await starlette.concurrency.run_in_threadpool(gallery.add, data)
        except TooManyPixels as error:
            return _error(responses, 413, str(error))
        except NotAnImage as error:
            return _error(responses, 415, str(error))
        height, width = entry.pixels.shape[:2]
        found = {"key": entry.key, "height": height, "width": width, "styles": entry.styles}
        return responses.JSONResponse(found, headers=_HEADERS)

    async def picture(request: Any) -> Any:
        key, style = request.path_params["key"], request.path_params["style"]
        try:
            threshold = _threshold(request.query_params.get("threshold", options.score_threshold))
            drawn = await starlette.concurrency.run_in_threadpool(gallery.picture, key, style, threshold)
            count = gallery.entry(key).counts(threshold)[style]
        except Forgotten as error:
            return _error(responses, 404, str(error))
        except ValueError as error:
            return _error(responses, 400, str(error))
        return responses.Response(drawn, media_type="image/jpeg", headers=_HEADERS | {"X-Count": str(count)})

    async def failed(request: Any, error: Exception) -> Any:
        return _error(responses, 500, "The model failed on this image; the server's log says why.")

    routes = [
        routing.Route("/model", model),
        routing.Route("/images", add, methods=["POST"]),
        routing.Route("/images/{key}/{style}", picture),
        *(routing.Route(path, _file(responses, name)) for path, name in _paths().items()),
    ]
    middleware = []
    if host in _LOOPBACK:  # a page of elsewhere whose name is made to lead here must not use the model
        allowed = starlette.middleware.trustedhost.TrustedHostMiddleware
        middleware = [starlette.middleware.Middleware(allowed, allowed_hosts=list(_LOOPBACK))]
    return starlette.applications.Starlette(
        routes=routes, middleware=middleware, exception_handlers={Exception: failed}
    )


def _libraries() -> tuple[ModuleType, ModuleType]:
    try:
        import starlette.applications
        import starlette.concurrency
        import starlette.middleware.trustedhost
        import starlette.responses
        import starlette.routing
        import uvicorn
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "--mode=serve needs the libraries Starlette and uvicorn: pip install maskdino-jax[serve]"
        ) from error
    return starlette, uvicorn


def _paths() -> dict[str, str]:
    return {"/" if name == "page.html" else f"/{name}": name for name in _FILES}


def _file(responses: ModuleType, name: str) -> Any:
    content = (resources.files(__package__) / name).read_bytes()

    async def answer(request: Any) -> Any:
        return responses.Response(content, headers=_HEADERS | {"Content-Type": _FILES[name]})

    return answer


async def _body(request: Any, limit: int) -> bytes | None:
    """The bytes of an upload; None if there are more than `limit`, of which the rest is not read."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        return None
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > limit:
            return None
    return bytes(data)


def _threshold(text: Any) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ValueError(f"threshold = {text!r}: give a number from 0 to 1.")
    return value


def _error(responses: ModuleType, status: int, text: str, headers: dict[str, str] | None = None) -> Any:
    return responses.JSONResponse({"error": text}, status_code=status, headers=_HEADERS | (headers or {}))
