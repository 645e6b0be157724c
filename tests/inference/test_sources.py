"""Pictures from files, folders, archives, addresses and videos; a server on this machine stands for the web."""

import contextlib
import http.server
import io
import itertools
import struct
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskdino_jax.inference import download
from maskdino_jax.inference.sources import NamedImage, open_source, read


def pixels_of(seed: int, height: int = 12, width: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def same(found: NamedImage, name: str, pixels: np.ndarray) -> bool:
    return found.name == name and np.array_equal(found.pixels, pixels)


def test_every_way_to_give_a_picture_gives_its_pixels(tmp_path):
    pixels = pixels_of(0)
    (tmp_path / "a.png").write_bytes(png(pixels))
    for picture in (tmp_path / "a.png", str(tmp_path / "a.png")):
        assert same(read(picture), "a.png", pixels)
    for picture in (pixels, Image.fromarray(pixels)):
        assert same(read(picture), "image.png", pixels)
        assert same(next(open_source(picture)), "image.png", pixels)
    named = NamedImage("frame", pixels)
    assert read(named) is named


def test_a_folder_gives_its_images_by_name_and_an_archive_does_too(tmp_path):
    for number, name in enumerate(("b.png", "a.PNG", "c.jpg.txt", "below/d.png", "clip.mp4")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pixels_of(number)))
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in (tmp_path / "photos").glob("*.*"):
            archive.write(path, path.name)
    for folder in ("photos", "photos.zip"):
        first, second = open_source(tmp_path / folder)
        assert same(first, "a.PNG", pixels_of(1))
        assert same(second, "b.png", pixels_of(0))


def test_pictures_of_a_list_have_numbers_and_are_read_when_they_are_asked_for(tmp_path):
    (tmp_path / "a.png").write_bytes(png(pixels_of(1)))
    found = open_source([pixels_of(0), tmp_path / "a.png", tmp_path / "missing.png"])
    assert same(next(found), "000000.png", pixels_of(0))
    assert same(next(found), "a.png", pixels_of(1))
    with pytest.raises(FileNotFoundError, match=r"missing\.png: there is no such image"):
        next(found)
    endless = open_source(pixels_of(number) for number in itertools.count())
    assert [one.name for one in itertools.islice(endless, 2)] == ["000000.png", "000001.png"]


def test_what_is_no_picture_is_an_error_that_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: there is no such image, folder or video"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no image in this folder \(\.jpg"):
        open_source(tmp_path)
    with pytest.raises(ValueError, match=r"is a folder, of which .* use stream\("):
        read(tmp_path)
    (tmp_path / "a.MP4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"is a video, of which .* use stream\("):
        read(str(tmp_path / "a.MP4"))
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a\.png cannot be read as an image"):
        read(tmp_path / "a.png")
    with pytest.raises(ValueError, match="give RGB bytes"):
        open_source(np.zeros((4, 4), np.uint8))
    with pytest.raises(FileNotFoundError, match=r"ftp:/host/a\.png"):
        read("ftp://host/a.png")


# --- addresses -------------------------------------------------------------------------------------------------------

IMAGE = pixels_of(7)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        getattr(self, self.path.split("?")[0].strip("/").split("/")[0].split(".")[0])()

    def log_message(self, *_):
        """The tests' output is not the place for it."""

    def answer(self, content: bytes, kind: str = "image/png", status: int = 200, **headers: str):
        self.send_response(status)
        for name, value in {"Content-Type": kind, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(content)

    def image(self):
        self.answer(png(IMAGE))

    def page(self):
        self.answer(b"<html>", "text/html; charset=utf-8")

    def liar(self):
        self.answer(b"<html>")

    def large(self):
        self.answer(bytes(2 << 20))

    def elsewhere(self):
        self.answer(b"", status=302, Location="/image.png")

    def gone(self):
        self.send_error(404)

    def locked(self):
        self.send_error(403)

    def slow(self):
        """A byte now and then, so that no single wait is long."""
        self.send_response(200)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while not self.server.closing.wait(0.05):
                self.wfile.write(b"X")
                self.wfile.flush()


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.closing = threading.Event()


@pytest.fixture(scope="module")
def server():
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.closing.set()
        server.shutdown()


@pytest.fixture
def web(server, monkeypatch):
    """The address of the server, asked directly."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server.asked.clear()
    return f"http://127.0.0.1:{server.server_port}"


def test_an_image_from_an_address_is_called_as_there(web):
    assert same(read(f"{web}/image.png"), "image.png", IMAGE)
    assert same(read(f"{web}/image/%2e%2e%2fb.png?size=3"), "_2e_2e_2fb.png", IMAGE)
    assert same(read(f"{web}/image/"), "127.0.0.1", IMAGE)
    assert same(next(open_source(f"{web}/image.png")), "image.png", IMAGE)
    assert same(next(open_source([f"{web}/image.png"])), "image.png", IMAGE)


def test_nothing_is_asked_for_but_the_address_itself(web, server):
    with pytest.raises(
        ValueError, match=r"/elsewhere leads to http://127\.0\.0\.1:\d+/image\.png: .* name that address"
    ):
        read(f"{web}/elsewhere")
    assert server.asked == ["/elsewhere"]


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("page", ValueError, "/page answers with text/html, not with an image"),
        ("liar", ValueError, "/liar cannot be read as an image"),
        ("large", ValueError, "/large has more than 1 MiB"),
        ("gone", FileNotFoundError, r"/gone: there is no such image \(404"),
        ("locked", ValueError, r"/locked cannot be read \(403"),
    ],
)
def test_other_answers_are_errors_that_name_the_address(web, path, error, message, monkeypatch):
    monkeypatch.setattr(download, "MOST_BYTES", 1 << 20)
    with pytest.raises(error, match=message):
        read(f"{web}/{path}")


def test_no_answer_takes_longer_than_the_limit(web, monkeypatch):
    monkeypatch.setattr(download, "MOST_SECONDS", 0.3)
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"/slow does not answer within 0\.3 s"):
        read(f"{web}/slow")
    assert time.monotonic() - start < 3
    with pytest.raises(ConnectionError, match="does not answer"):
        read("http://127.0.0.1:9/image.png")


# --- videos ----------------------------------------------------------------------------------------------------------


def video(path: Path, frames: list[np.ndarray | int], height: int = 32, width: int = 48) -> Path:
    """A video of grey frames."""
    av = pytest.importorskip("av", reason="videos need PyAV, the extra `video`")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for value in frames:
            pixels = np.broadcast_to(np.uint8(value), (height, width))
            frame = av.VideoFrame.from_ndarray(np.stack([pixels] * 3, axis=-1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_frames_of_a_video_come_one_by_one_in_their_order(tmp_path):
    grey = [0, 60, 120, 180, 240]
    found = list(open_source(video(tmp_path / "my.clip.mp4", grey)))
    assert [one.name for one in found] == [f"my.clip_{number:06d}.png" for number in range(5)]
    for one, value in zip(found, grey, strict=True):
        assert (one.pixels.shape, one.pixels.dtype) == ((32, 48, 3), np.uint8)
        assert abs(one.pixels.astype(int) - value).max() <= 8  # compressed
    first = next(open_source(str(tmp_path / "my.clip.mp4")))
    np.testing.assert_array_equal(first.pixels, found[0].pixels)


def test_a_video_taken_upright_gives_upright_frames(tmp_path):
    """A telephone held upright writes its rows as columns, and in the header that they are to be turned clockwise."""
    path = video(tmp_path / "a.mp4", [np.repeat([230, 20], 24)])
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    (frame,) = open_source(path)
    assert frame.pixels.shape == (48, 32, 3)
    assert frame.pixels[:20].min() > 200
    assert frame.pixels[28:].max() < 50


def test_a_damaged_video_and_one_without_pictures_are_errors_that_name_it(tmp_path):
    av = pytest.importorskip("av", reason="videos need PyAV, the extra `video`")
    (tmp_path / "a.mp4").write_bytes(b"no video at all")
    with pytest.raises(ValueError, match=r"a\.mp4 cannot be read as a video"):
        list(open_source(tmp_path / "a.mp4"))
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(ValueError, match=r"sound\.mkv has no pictures"):
        list(open_source(tmp_path / "sound.mkv"))


def test_without_the_extra_a_video_is_an_error_that_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(ModuleNotFoundError, match=r"PyAV: pip install maskdino-jax\[video\]"):
        open_source(tmp_path / "a.mp4")
