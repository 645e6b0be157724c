"""One image from an http or https address: its size and the time for it are bounded, nothing else is asked for."""

import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import Future
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO

from maskdino_jax.data.images import Encoded

MOST_BYTES = 64 << 20
MOST_SECONDS = 30.0  # until all of it is here, from looking up the server's name on
_CHUNK = 1 << 16  # bytes
_GONE = (404, 410)


def is_address(picture: str | Path) -> bool:
    """Whether a picture is named by an address of the web, not by the path of a file."""
    return isinstance(picture, str) and picture.lower().startswith(("http://", "https://"))


def download(address: str) -> Encoded:
    """The content that lies at an address. No other address is followed, not even one that it redirects to.

    Raises:
        FileNotFoundError: the server has nothing at this address.
        ConnectionError: there is no such server, or it does not answer in time.
        ValueError: it refuses, or answers with something else than an image, too much, or another address.
    """
    answer: Future[Encoded] = Future()
    # A thread of its own, for neither the look-up of names nor slow headers obey the timeout of a socket as a whole.
    threading.Thread(target=_settle, args=(answer, address), daemon=True).start()
    try:
        return answer.result(MOST_SECONDS)
    except (OSError, HTTPException) as error:  # URLError and TimeoutError are OSErrors
        if isinstance(error, FileNotFoundError):
            raise
        reason = getattr(error, "reason", None) or error
        message = f"{address} does not answer within {MOST_SECONDS:g} s{f' ({reason})' if str(reason) else ''}."
        raise ConnectionError(message) from error


def _settle(answer: Future[Encoded], address: str) -> None:
    try:
        answer.set_result(_ask(address, time.monotonic() + MOST_SECONDS))
    except Exception as error:  # the one who waits for the answer raises it
        answer.set_exception(error)


def _ask(address: str, deadline: float) -> Encoded:
    request = urllib.request.Request(address, headers={"User-Agent": "maskdino-jax", "Accept": "image/*"})
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=MOST_SECONDS) as response:
            kind = response.headers.get_content_type()
            if not kind.startswith("image/"):
                raise ValueError(f"{address} answers with {kind}, not with an image: give the address of one.")
            return Encoded(address, _content(address, response, deadline))
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in _GONE:
            raise FileNotFoundError(f"{address}: there is no such image ({error.code} {error.reason}).") from error
        raise ValueError(
            f"{address} cannot be read ({error.code} {error.reason}): save the image, and name the file."
        ) from error


def _content(address: str, response: HTTPResponse, deadline: float) -> bytes:
    """All of an answer; the length that it announces is not to be trusted."""
    parts, size = [], 0
    while part := response.read1(_CHUNK):
        parts.append(part)
        size += len(part)
        if size > MOST_BYTES:
            raise ValueError(f"{address} has more than {MOST_BYTES >> 20} MiB: save it, and name the file.")
        if time.monotonic() > deadline:
            raise TimeoutError("too slow")
    return b"".join(parts)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Says where an address leads to instead of going there: the user has not named that place."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        fp.close()
        raise ValueError(f"{req.full_url} leads to {newurl}: if that is the image you want, name that address.")
