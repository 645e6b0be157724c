"""The server over HTTP, and `--mode=serve` as a process that Ctrl-C ends."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from maskdino_jax.serve import Gallery, serve
from tests.serve.images import encoded, opened
from tests.serve.running import ask, served, told

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def port(gallery: Gallery) -> Iterator[int]:
    with served(gallery) as port:
        yield port


def test_an_image_and_its_pictures(port: int, predictor) -> None:
    status, _, body = ask(port, "POST", "/images", encoded())
    found = json.loads(body)
    assert status == 200
    assert (found["height"], found["width"]) == (40, 60)
    for style in found["styles"]:
        status, headers, picture = ask(port, "GET", f"/images/{found['key']}/{style}?threshold=0.5")
        assert (status, headers["content-type"]) == (200, "image/jpeg")
        assert headers["x-count"] == ("2" if style == "semantic" else "1")
        assert opened(picture).shape == (512, 768, 3)
    assert predictor.calls == 1


def test_the_page_is_all_that_a_browser_needs(port: int) -> None:
    status, headers, page = ask(port, "GET", "/")
    assert status == 200
    assert headers["content-security-policy"].startswith("default-src 'self'")
    asked = re.findall(r'(?:src|href)="([^"]+)"', page.decode())
    assert "page.js" in asked
    for name in asked:
        assert name == "data:," or ask(port, "GET", f"/{name}")[0] == 200
    about = json.loads(ask(port, "GET", "/model")[2])
    assert about["name"] == "two halves"
    assert about["max_upload_mb"] == 0.1


def test_an_upload_that_announces_too_much_is_refused(port: int, predictor) -> None:
    answer = ask(port, "POST", "/images", b"", Content_Length="100001")
    assert answer[0] == 413
    assert told(answer) == "This file is too large: give one of at most 0.1 MB."
    assert predictor.calls == 0


def test_an_upload_that_does_not_announce_its_size_is_cut_off(port: int, predictor) -> None:
    parts = (bytes(10_000) for _ in range(11))  # of unknown number: sent in chunks
    answer = ask(port, "POST", "/images", parts)
    assert answer[0] == 413
    assert predictor.calls == 0


def test_an_upload_of_just_the_limit_is_read(port: int) -> None:
    assert ask(port, "POST", "/images", bytes(100_000))[0] == 415


def test_another_type_of_file_is_refused(port: int) -> None:
    answer = ask(port, "POST", "/images", b"%PDF-1.7")
    assert answer[0] == 415
    assert "not an image that can be read" in told(answer)


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/images/unknown/panoptic", 404, "no longer kept"),
        ("/images/{key}/cubist", 400, "there is detection, instance, panoptic, semantic"),
        ("/images/{key}/panoptic?threshold=2", 400, "give a number from 0 to 1"),
        ("/images/{key}/panoptic?threshold=nan", 400, "give a number from 0 to 1"),
        ("/images/{key}/panoptic?threshold=high", 400, "threshold = 'high': give a number from 0 to 1"),
    ],
)
def test_a_wrong_address_is_explained(port: int, path: str, status: int, text: str) -> None:
    key = json.loads(ask(port, "POST", "/images", encoded())[2])["key"]
    answer = ask(port, "GET", path.format(key=key))
    assert answer[0] == status
    assert text in told(answer)


def test_a_model_that_fails_says_so(gallery: Gallery, caplog: pytest.LogCaptureFixture) -> None:
    def fail(pixels, *, score_threshold):
        raise RuntimeError("out of memory")

    fail.config = gallery.predictor.config
    gallery.predictor = fail
    with served(gallery) as port:
        answer = ask(port, "POST", "/images", encoded())
    assert answer[0] == 500
    assert "the server's log says why" in told(answer)
    assert "out of memory" in caplog.text


def test_a_name_from_elsewhere_is_refused_on_loopback_only(gallery: Gallery) -> None:
    with served(gallery) as port:
        assert ask(port, "GET", "/model", Host="attacker.example")[0] == 400
        assert ask(port, "GET", "/model", Host=f"localhost:{port}")[0] == 200
    with served(gallery, host="0.0.0.0") as port:
        assert ask(port, "GET", "/model", Host="my-machine.example")[0] == 200


def test_limits_and_addresses_are_checked(gallery: Gallery, port: int) -> None:
    with pytest.raises(ValueError, match="--max_upload_mb=0: give a positive number"):
        serve(gallery, "two halves", host="127.0.0.1", port=0, max_upload_mb=0)
    with pytest.raises(OSError, match=f"--port={port} cannot be listened on .*give another --port"):
        serve(gallery, "two halves", host="127.0.0.1", port=port, max_upload_mb=1)


def test_a_missing_library_names_the_extra(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install maskdino-jax\[serve\]"):
        serve(gallery, "two halves", host="127.0.0.1", port=0, max_upload_mb=1)


_PROGRAM = """
import logging
logging.basicConfig(level=logging.INFO)
from maskdino_jax.serve import Gallery, serve
from tests.serve.conftest import TwoHalves
serve(Gallery(TwoHalves()), "two halves", host="127.0.0.1", port=0, max_upload_mb=1)
"""


def test_ctrl_c_ends_it_without_a_traceback() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", _PROGRAM], env=environment, stderr=subprocess.PIPE, text=True)
    line = process.stderr.readline()
    while "until Ctrl-C" not in line:
        assert line, "the server has ended"
        line = process.stderr.readline()
    port = int(re.search(r"http://127\.0\.0\.1:(\d+)", line)[1])
    assert ask(port, "GET", "/")[0] == 200
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=20)[1]
    assert process.returncode == 0
    assert "stopped" in rest
    assert "Traceback" not in rest
