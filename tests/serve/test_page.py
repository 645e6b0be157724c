"""The page in a real browser: upload, results, threshold, and files that are refused."""

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from maskdino_jax.serve import Gallery
from tests.evaluation.browser import Browser, program
from tests.serve.conftest import TwoHalves
from tests.serve.images import encoded, written
from tests.serve.running import served

LOADED = "[...document.images].every(image => image.complete && image.naturalWidth)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if program() is None:
        pytest.skip("no Chromium is installed")
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, gallery: Gallery) -> Iterator[Browser]:
    with served(gallery) as port:
        browser.open(f"http://127.0.0.1:{port}/", 1440)
        browser.wait("document.getElementById('model').textContent")
        yield browser


def _texts(browser: Browser) -> list[str]:
    """The captions of the pictures."""
    return browser.value("[...document.querySelectorAll('figcaption')].map(one => one.innerText.replace('\\n', ' '))")


def _status(browser: Browser) -> tuple[str, bool]:
    """What the page says, and whether as an error."""
    return tuple(
        browser.value("(s => [s.textContent, s.classList.contains('error')])(document.getElementById('status'))")
    )


def _move(browser: Browser, threshold: float) -> None:
    slider = "document.getElementById('threshold')"
    browser.value(f"{slider}.value = {threshold}, {slider}.dispatchEvent(new Event('input'))")


def test_upload_results_and_threshold(page: Browser, predictor: TwoHalves, tmp_path: Path) -> None:
    assert page.value("document.getElementById('results').hidden")
    page.choose("file", written(tmp_path / "grey.png", encoded()))
    page.wait(f"document.images.length === 4 && {LOADED}")
    assert _texts(page) == [
        "Detection 1 box",
        "Instances 1 object",
        "Panoptic 1 segment",
        "Semantic 2 classes, not scored",
    ]
    text, error = _status(page)
    assert not error
    assert text.startswith("grey.png: 60 \u00d7 40 pixels, ")
    before = page.value("[...document.images].map(image => image.src)")
    _move(page, 0.2)
    page.wait("document.querySelector('#panoptic img').dataset.threshold === '0.2'")
    page.wait("document.querySelectorAll('img[data-threshold=\"0.2\"]').length === 3")
    assert _texts(page)[:3] == ["Detection 2 boxes", "Instances 2 objects", "Panoptic 2 segments"]
    assert page.value("document.getElementById('value').textContent") == "20 %"
    after = page.value("[...document.images].map(image => image.src)")
    assert [one != other for one, other in zip(before, after, strict=True)] == [True, True, True, False]
    assert predictor.calls == 1
    asked = [one["params"]["request"]["url"] for one in page.messages if one["method"] == "Network.requestWillBeSent"]
    assert len(asked) > 8
    assert {address.partition(":")[0] for address in asked if "//127.0.0.1:" not in address} <= {"data", "blob"}


def test_a_dropped_file_is_uploaded(page: Browser, predictor: TwoHalves) -> None:
    page.value(
        """(() => {
        const canvas = document.createElement('canvas'); canvas.width = 30; canvas.height = 20;
        canvas.getContext('2d').fillRect(0, 0, 9, 9);
        canvas.toBlob((blob) => {
            const data = new DataTransfer();
            data.items.add(new File([blob], 'dropped.png'));
            window.dispatchEvent(new DragEvent('drop', {dataTransfer: data, cancelable: true}));
        });
        })()"""
    )
    page.wait(f"document.images.length === 4 && {LOADED}")
    assert _status(page)[0].startswith("dropped.png: 30 \u00d7 20 pixels")


def test_a_wrong_type_of_file_is_explained(page: Browser, tmp_path: Path) -> None:
    page.choose("file", written(tmp_path / "text.png", b"no image"))
    page.wait("document.getElementById('status').classList.contains('error')")
    assert _status(page)[0].startswith("This file is not an image that can be read: give JPEG, PNG")
    page.choose("file", written(tmp_path / "grey.png", encoded()))  # the next one is taken
    page.wait(f"document.images.length === 4 && {LOADED}")
    assert not _status(page)[1]


def test_too_large_a_file_is_explained(page: Browser, predictor: TwoHalves, tmp_path: Path) -> None:
    page.choose("file", written(tmp_path / "large.png", bytes(100_001)))
    page.wait("document.getElementById('status').classList.contains('error')")
    assert _status(page)[0] == "This file is too large: give one of at most 0.1 MB."
    methods = [one["params"]["request"]["method"] for one in page.messages if one["method"].endswith("WillBeSent")]
    assert set(methods) == {"GET"}  # it was not even sent
    assert predictor.calls == 0


@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_the_window(browser: Browser, gallery: Gallery, tmp_path: Path, width: int, dark: bool) -> None:
    with served(gallery) as port:
        browser.open(f"http://127.0.0.1:{port}/", width, dark=dark)
        browser.wait("document.getElementById('model').textContent")
        browser.choose("file", written(tmp_path / "grey.png", encoded()))
        browser.wait(f"document.images.length === 4 && {LOADED}")
        assert browser.value("document.documentElement.scrollWidth") <= width
        columns = browser.value("new Set([...document.images].map(image => image.getBoundingClientRect().left)).size")
        assert columns == (1 if width == 360 else 2)
        paper = browser.value("getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(19, 22, 26)" if dark else "rgb(255, 255, 255)")
