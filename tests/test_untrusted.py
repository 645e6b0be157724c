"""Files from elsewhere, damaged or hostile: they end in errors of this project, and nothing leaves its folder."""

import dataclasses
import io
import json
import pickle
import re
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from maskdino_jax.checkpoints import torch_files
from maskdino_jax.checkpoints.weights import open_weights
from maskdino_jax.config import Config, ConfigError, from_dict
from maskdino_jax.data.annotations import read_instances, read_json, read_panoptic
from maskdino_jax.data.catalog import Catalog
from maskdino_jax.data.files import leads_outside
from maskdino_jax.data.images import load_ids, load_image, load_labels
from maskdino_jax.validation import validate
from maskdino_jax.workdir import claim

ERRORS = (ValueError, FileNotFoundError)  # all of this project are one of the two
FEW = settings(derandomize=True, max_examples=60, deadline=5000, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=3000)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just(10**400) | st.just("../x"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


def few_and_many(*given_arguments: Any) -> Callable:
    """A property, tried on some examples in every run of the tests, and on thousands in `make test-slow`."""

    def decorate(test: Callable) -> Callable:
        @pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.slow)])
        def run(many: bool, tmp_path: Path) -> None:
            (MANY if many else FEW)(given(*given_arguments)(test))(tmp_path)

        run.__doc__, run.__name__ = test.__doc__, test.__name__
        return run

    return decorate


def accepted_or_refused(read: Callable[[], Any]) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's about odd files
            read()
    except ERRORS:
        return False
    return True


def _paths(value: Any, path: tuple = ()) -> list[tuple]:
    """The way to each value within a JSON document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [way for key, inner in items for way in _paths(inner, (*path, key))]


@st.composite
def mutated(draw: Callable, content: Any) -> Any:
    """A document with one to three values replaced, dropped or doubled."""
    content = json.loads(json.dumps(content))
    for _ in range(draw(st.integers(1, 3))):
        ways = _paths(content)
        if not ways:
            break
        *way, last = draw(st.sampled_from(ways))
        place = content
        for key in way:
            place = place[key]
        action = draw(st.sampled_from(["replace", "drop", "double"]))
        if action == "drop":
            del place[last]
        elif action == "double" and isinstance(place, list):
            place.append(place[last])
        else:
            place[last] = draw(JSON)
    return content


@st.composite
def damaged(draw: Callable, content: bytes) -> bytes:
    """A file with up to eight bytes changed, perhaps cut short."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(0, 8))):
        changed[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(changed[: draw(st.just(len(content)) | st.integers(0, len(content)))])


INSTANCES = {
    "images": [
        {"id": 1, "file_name": "1.png", "height": 6, "width": 8},
        {"id": 2, "file_name": "a/2.png", "height": 6, "width": 8},
    ],
    "annotations": [
        {
            "id": 11,
            "image_id": 1,
            "category_id": 7,
            "iscrowd": 0,
            "bbox": [2, 1, 3, 2],
            "segmentation": [[2, 1, 5, 1, 5, 3, 2, 3]],
        },
        {
            "id": 12,
            "image_id": 2,
            "category_id": 9,
            "iscrowd": 1,
            "segmentation": {"size": [6, 8], "counts": [10, 4, 34]},
        },
        {"id": 13, "image_id": 2, "category_id": 7, "segmentation": {"size": [6, 8], "counts": [40, 8]}},
    ],
    "categories": [{"id": 9, "name": "sky"}, {"id": 7, "name": "cat", "color": [1, 2, 3]}],
}
PANOPTIC = INSTANCES | {
    "annotations": [
        {"image_id": 1, "file_name": "1.png", "segments_info": [{"id": 261, "category_id": 7, "iscrowd": 0}]},
        {"image_id": 2, "file_name": "2.png", "segments_info": [{"id": 3, "category_id": 9, "area": 4}]},
    ]
}


def _write(folder: Path, content: Any) -> Path:
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return path


@few_and_many(mutated(INSTANCES))
def test_instances_json_is_read_or_refused(tmp_path: Path, content: Any) -> None:
    path = _write(tmp_path, content)
    for masks in (True, False):
        accepted_or_refused(lambda masks=masks: read_instances(path, masks))
        accepted_or_refused(lambda masks=masks: read_instances(path, masks, report=lambda *_: None))


@few_and_many(mutated(PANOPTIC))
def test_panoptic_json_is_read_or_refused(tmp_path: Path, content: Any) -> None:
    path = _write(tmp_path, content)
    accepted_or_refused(lambda: read_panoptic(path))
    accepted_or_refused(lambda: read_panoptic(path, report=lambda *_: None))


@few_and_many(damaged(json.dumps(INSTANCES).encode()))
def test_damaged_json_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "annotations.json"
    path.write_bytes(content)
    accepted_or_refused(lambda: read_instances(path))


def test_the_valid_documents_are_accepted(tmp_path: Path) -> None:
    assert accepted_or_refused(lambda: read_instances(_write(tmp_path, INSTANCES)))
    assert accepted_or_refused(lambda: read_panoptic(_write(tmp_path, PANOPTIC)))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000, "1" * 5000])
def test_json_of_hostile_depth_or_numbers_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json is not JSON"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("side", [10**400, 2**20 + 1, float("inf"), float("nan"), 0, -3, 2.5, "8"])
def test_a_size_that_no_image_has_is_refused(tmp_path: Path, side: Any) -> None:
    content = json.loads(json.dumps(INSTANCES))
    content["images"][1]["width"] = side
    with pytest.raises(ValueError, match="image 2: height and width are 6 and "):
        read_instances(_write(tmp_path, content))


OUTSIDE = [
    "../x.jpg",
    "a/../../x.jpg",
    "/etc/passwd",
    "..",
    "C:\\x.jpg",
    "c:/x.jpg",
    "a\\..\\..\\x",
    "\\\\host\\x",
    "a\0.jpg",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_file_name_that_leaves_the_data_is_refused_with_file_and_entry(tmp_path: Path, name: str) -> None:
    images, entries = (json.loads(json.dumps(content)) for content in (INSTANCES, PANOPTIC))
    images["images"][1]["file_name"] = name
    with pytest.raises(ValueError, match=r"annotations\.json: image 2: file_name .* leads out of the folder"):
        read_instances(_write(tmp_path, images))
    entries["annotations"][1]["file_name"] = name
    with pytest.raises(ValueError, match=r"annotations\.json: the annotation .*: file_name .* leads out of"):
        read_panoptic(_write(tmp_path, entries))


@given(st.lists(st.sampled_from(["..", ".", "a", "b.jpg", "", "..."]), max_size=5).map("/".join))
@settings(FEW, max_examples=300)
def test_a_name_that_is_accepted_stays_in_its_folder(name: str) -> None:
    """The oracle is the file system's own arithmetic of paths."""
    folder = Path("/root/of/data")
    if not leads_outside(name):
        resolved = Path(re.sub("/+", "/", f"{folder}/{name}")).resolve()
        assert resolved == folder or folder in resolved.parents


def test_a_link_may_lead_anywhere(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "elsewhere/1.png")
    (tmp_path / "images").symlink_to(tmp_path / "elsewhere")
    assert load_image(tmp_path / "images/1.png").shape == (6, 8, 3)


def _picture(kind: str, **options: Any) -> bytes:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (16, 24, 3), np.uint8)
    image = Image.fromarray(pixels if options.pop("color", True) else pixels[..., 0])
    exif = image.getexif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=exif, **options)
    return buffer.getvalue()


PICTURES = [
    _picture("JPEG"),
    _picture("PNG"),
    _picture("PNG", color=False),
    _picture("JPEG", progressive=True),
    _picture("WEBP"),
    _picture("TIFF"),
]


@few_and_many(st.sampled_from(PICTURES).flatmap(damaged))
def test_a_damaged_image_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.img"
    path.write_bytes(content)
    for read in (load_image, load_ids, load_labels):
        accepted_or_refused(lambda read=read: read(path))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("content", PICTURES[:2])
def test_a_truncated_image_is_refused_by_name(tmp_path: Path, content: bytes, share: float) -> None:
    (tmp_path / "x.jpg").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"x\.jpg cannot be read as an image .*: restore the file"):
        load_image(tmp_path / "x.jpg")


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    """A PNG of 3600 million pixels in a few bytes: the head says so, and nothing more is read."""
    side = 60_000
    chunk = lambda kind, data: len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
    head = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(content)
    with pytest.raises(ValueError, match=rf"bomb\.png is refused .*{side**2} pixels.*cut it into smaller images"):
        load_image(tmp_path / "bomb.png")


def _weights(kind: str) -> bytes:
    """Small files of weights in the formats that are read."""
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float32)}
    if kind == "pickle":
        return pickle.dumps({"model": arrays, "__author__": "x"}, 2)
    if kind == "safetensors":
        header = {
            "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
            "b": {"dtype": "F32", "shape": [3], "data_offsets": [24, 36]},
        }
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + b"".join(array.tobytes() for array in arrays.values())
    path = io.BytesIO()
    torch_files.write_pth(path, arrays)
    return path.getvalue()


WEIGHTS = [_weights(kind) for kind in ("zip", "pickle", "safetensors")]


@few_and_many(st.sampled_from(WEIGHTS).flatmap(damaged))
def test_damaged_weights_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    accepted_or_refused(lambda: torch_files.read(path))


def test_sound_weights_are_accepted(tmp_path: Path) -> None:
    for content in WEIGHTS:
        (tmp_path / "x.pth").write_bytes(content)
        assert accepted_or_refused(lambda: torch_files.read(tmp_path / "x.pth"))


STORED = json.loads(json.dumps(dataclasses.asdict(Config())))
CLASSES = Catalog.from_coco(INSTANCES["categories"]).to_dict()


@few_and_many(mutated(STORED))
def test_a_stored_config_is_taken_or_refused(tmp_path: Path, content: Any) -> None:
    accepted_or_refused(lambda: validate(from_dict(content)))


@few_and_many(mutated(CLASSES))
def test_stored_classes_are_taken_or_refused(tmp_path: Path, content: Any) -> None:
    accepted_or_refused(lambda: Catalog.from_dict(content).is_thing)


@few_and_many(damaged(json.dumps(STORED).encode()))
def test_a_damaged_config_of_a_workdir_is_taken_or_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    accepted_or_refused(lambda: claim(tmp_path, Config()))


META = {"config": STORED, "catalog": CLASSES, "step": 2, "metrics": {"panoptic_seg/PQ": 0.5}}


def _read_meta(workdir: Path, content: bytes) -> bool:
    folder = workdir / "checkpoints/2/meta"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata").write_bytes(content)
    return accepted_or_refused(lambda: open_weights(workdir, None))


@few_and_many(damaged(json.dumps(META).encode()) | mutated(META).map(lambda content: json.dumps(content).encode()))
def test_a_damaged_explanation_of_a_checkpoint_is_taken_or_refused(tmp_path: Path, content: bytes) -> None:
    _read_meta(tmp_path, content)


def test_a_sound_explanation_is_taken(tmp_path: Path) -> None:
    assert _read_meta(tmp_path, json.dumps(META).encode())


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("steps", "many", "config.train.steps = 'many': give a int"),
        ("steps", True, "config.train.steps = 'True': give a int"),
        ("ema_decay", float("nan"), "config.train.ema_decay = 'nan': give a float"),
        ("init_from", None, "config.train.init_from = 'None': give a str"),
        ("stepz", 1, "unknown option train.stepz"),
    ],
)
def test_an_odd_option_is_named(option: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        from_dict(STORED | {"train": STORED["train"] | {option: value}})
