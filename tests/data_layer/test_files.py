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
from maskdino_jax.data.files import children, exists, find, is_folder, names_below, open_file, read_bytes


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


def test_a_folder_holds_folders_archives_and_files(archive: Path):
    assert children(archive) == (["pictures"], ["top.json"])
    assert children(archive / "pictures") == (["a"], ["2.png", "notes.txt"])
    assert children(archive / "pictures/a") == ([], ["1.PNG"])
    (archive.parent / "folder").mkdir()
    (archive.parent / ".hidden").touch()
    (archive.parent / "_shown.json").touch()
    assert children(archive.parent) == (["folder", "pictures.zip"], ["_shown.json"])
    folders = (archive, archive / "pictures", archive / "pictures/a", archive.parent, archive.parent / "folder")
    assert all(is_folder(path) for path in folders)
    assert not any(is_folder(path) for path in (archive / "top.json", archive / "a", archive.parent / "_shown.json"))


def test_folders_of_an_archive_need_no_entry_of_their_own_and_may_have_one(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("empty/", b"")
        file.writestr("x/y/z/1.png", b"one")
    path = tmp_path / "a.zip"
    assert [is_folder(path / name) for name in ("empty", "x", "x/y", "x/y/z", "z")] == [True] * 4 + [False]
    assert (children(path), children(path / "x")) == ((["empty", "x"], []), (["y"], []))
    assert names_below(path, ("",)) == ["x/y/z/1.png"]


def test_an_uncompressed_archive_in_an_archive_is_a_folder(archive: Path, tmp_path: Path):
    outer = tmp_path / "outer.zip"
    with zipfile.ZipFile(outer, "w") as file:
        file.writestr("before.txt", b"0" * 999)
        file.write(archive, "deep/pictures.zip", zipfile.ZIP_STORED)
        file.write(archive, "packed.zip", zipfile.ZIP_DEFLATED)
    inner = outer / "deep/pictures.zip"
    assert read_bytes(inner / "pictures/a/1.PNG") == b"one"
    with open_file(inner / "pictures/notes.txt") as file:
        file.seek(-2, 2)
        assert file.read() == b"ee"
        file.seek(1)
        assert file.read(2) == b"hr"
    assert children(outer / "deep") == (["pictures.zip"], [])
    assert names_below(inner, (".png",)) == ["pictures/2.png", "pictures/a/1.PNG"]
    archive.rename(tmp_path / "elsewhere")
    assert find(tmp_path, "pictures/2.png") == find(outer, "pictures/2.png") == inner / "pictures/2.png"
    assert find(tmp_path, "pictures/3.png") is None
    with pytest.raises(FileNotFoundError, match=r"pictures\.zip holds no pictures/3\.png"):
        read_bytes(inner / "pictures/3.png")
    message = r"outer\.zip holds packed\.zip compressed, .*: take that one archive out, .*`unzip -j .* packed\.zip -d "
    with pytest.raises(ValueError, match=message):
        read_bytes(outer / "packed.zip/top.json")


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
