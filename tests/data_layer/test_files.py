"""Archives are read in place: the same data set, unpacked and zipped."""

import dataclasses
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from maskdino_jax.config import DataConfig
from maskdino_jax.data import open_dataset
from maskdino_jax.data.files import exists, find, names_below, open_file, read_bytes


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as file:
        file.writestr("pictures/a/1.PNG", b"one")
        file.writestr("pictures/2.png", b"two")
        file.writestr("pictures/notes.txt", b"three")
        file.writestr("top.json", b"{}")
    return tmp_path / "pictures.zip"


def test_members_are_files_and_folders(archive: Path):
    assert read_bytes(archive / "pictures/a/1.PNG") == b"one"
    with open_file(archive / "pictures/notes.txt") as file:
        file.seek(2)
        assert file.read() == b"ree"
    assert [exists(archive / name) for name in ("pictures", "pictures/a", "top.json")] == [True] * 3
    assert [exists(archive / name) for name in ("picture", "pictures/3.png")] == [False] * 2
    assert names_below(archive / "pictures", (".png",)) == ["2.png", "a/1.PNG"]
    assert names_below(archive, (".json",)) == ["top.json"]


def test_a_name_is_found_unpacked_first_then_at_the_top_of_an_archive_then_below_its_own_name(archive: Path):
    root = archive.parent
    assert find(root, "pictures/2.png") == archive / "pictures/2.png"
    assert find(root, "2.png") == archive / "pictures/2.png"
    assert find(archive, "2.png") == archive / "pictures/2.png"
    assert find(root, "3.png") is None
    (root / "pictures").mkdir()
    (root / "pictures/2.png").write_bytes(b"unpacked")
    assert find(root, "pictures/2.png") == root / "pictures/2.png"


def test_what_is_missing_or_damaged_is_named(archive: Path):
    with pytest.raises(FileNotFoundError, match=r"pictures\.zip holds no pictures/3\.png"):
        read_bytes(archive / "pictures/3.png")
    damaged = archive.with_name("damaged.zip")
    content = bytearray(archive.read_bytes())
    content[content.index(b"one")] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged\.zip/pictures/a/1\.PNG is damaged .*CRC.* Restore"):
        read_bytes(damaged / "pictures/a/1.PNG")
    short = archive.with_name("short.zip")
    short.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"short\.zip is no zip archive, or is cut short"):
        read_bytes(short / "top.json")


def test_coco_as_it_is_published_in_archives_equals_the_unpacked_one(coco_panoptic: DataConfig, tmp_path: Path):
    unpacked, root = Path(coco_panoptic.root), tmp_path / "zipped"
    root.mkdir()
    shutil.make_archive(str(root / "val2017"), "zip", unpacked, "val2017")
    shutil.make_archive(str(root / "panoptic_val2017"), "zip", unpacked, "panoptic_val2017")
    shutil.make_archive(str(root / "annotations_trainval2017"), "zip", unpacked, "annotations")
    here = open_dataset(coco_panoptic, "val")
    there = pickle.loads(pickle.dumps(open_dataset(dataclasses.replace(coco_panoptic, root=str(root)), "val")))
    assert len(here) == len(there) > 0
    for index in range(len(here)):
        a, b = here[index], there[index]
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.objects.id_map, b.objects.id_map)
        np.testing.assert_array_equal(a.labels, b.labels)
    assert there.size(0) == here.size(0)
