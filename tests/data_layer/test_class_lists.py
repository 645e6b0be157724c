"""Class lists of label images: files of a user's, pixel values, and what is none."""

import json
import re
import zipfile
from pathlib import Path

import pytest

from maskdino_jax.data.catalog import Catalog
from maskdino_jax.data.class_lists import ClassList, class_list, join_values


def facts(found: ClassList) -> list[tuple[int, str, bool]]:
    return [(entry.id, entry.name, entry.is_thing) for entry in found.catalog.categories]


def test_a_line_is_a_class_whose_value_is_the_number_of_the_line_from_zero(tmp_path: Path):
    (tmp_path / "classes.txt").write_bytes("\ufeffroad\r\n traffic light \nHäuser\n\n".encode())
    found = class_list("classes.txt", tmp_path)
    assert facts(found) == [(0, "road", False), (1, "traffic light", False), (2, "Häuser", False)]
    assert (found.values, found.unlabelled) == ((0, 1, 2), (255,))


@pytest.mark.parametrize("wrap", [lambda entries: entries, lambda entries: {"categories": entries}])
def test_json_is_a_list_of_names_or_categories_in_any_order(tmp_path: Path, wrap):
    path = tmp_path / "classes.json"
    path.write_text(json.dumps(wrap(["road", "sky"])))
    assert facts(class_list(path.name, tmp_path)) == [(0, "road", False), (1, "sky", False)]
    entries = [{"id": 7, "name": "sky"}, {"id": 2, "name": "car", "isthing": 1}, {"id": 4, "name": "road"}]
    path.write_text(json.dumps(wrap(entries)))
    found = class_list(path.name, tmp_path)
    assert facts(found) == [(2, "car", True), (4, "road", False), (7, "sky", False)]
    assert found.values == (2, 4, 7)
    path.write_text(json.dumps(wrap(entries[::-1])))
    assert class_list(path.name, tmp_path) == found


def test_json_may_say_which_value_is_unlabelled(tmp_path: Path):
    content = {"categories": [{"id": 1, "name": "a"}, {"id": 255, "name": "b"}]}
    for unlabelled, expected in ((0, (0,)), (255, ())):
        (tmp_path / "a.json").write_text(json.dumps(content | {"unlabelled": unlabelled}))
        assert class_list("a.json", tmp_path).unlabelled == expected


def test_values_are_classes_by_themselves():
    found = class_list(join_values({9, 0, 3}), Path())
    assert facts(found) == [(0, "class 0", False), (3, "class 3", False), (9, "class 9", False)]
    assert (found.values, found.unlabelled) == ((0, 3, 9), (255,))
    assert class_list("0,255", Path()).unlabelled == ()


def test_lists_that_come_along_keep_their_values():
    found = class_list("cityscapes", Path())
    assert found == ClassList(Catalog.named("cityscapes"), tuple(range(19)), (255,))
    assert class_list("coco_panoptic", Path()).values == ()


def test_a_list_may_lie_in_the_archive(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as file:
        file.writestr("classes.txt", "road\nsky")
    for root in (tmp_path, tmp_path / "mine.zip"):
        assert class_list("classes.txt", root).catalog.names == ("road", "sky")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "it is empty"),
        ("a.txt", "road\n\nsky", "line 2 is empty"),
        ("a.txt", "\n".join(map(str, range(257))), "256 is no value of a pixel, 0 to 255"),
        ("a.json", "[", "JSONDecodeError"),
        ("a.json", "[]", "it is empty"),
        ("a.json", '{"names": []}', "KeyError: 'categories'"),
        ("a.json", '[{"id": 1}]', "KeyError: 'name'"),
        ("a.json", '[{"id": "1", "name": "road"}]', "category id '1': give categories whole numbers"),
        ("a.json", '[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]', "category id 1 occurs twice"),
        ("a.json", "3", "TypeError"),
    ],
)
def test_what_is_no_list_is_named(tmp_path: Path, name: str, content: str, message: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(
        ValueError, match=rf"{name} is no list of classes \(.*{re.escape(message)}.*Give a name in each"
    ):
        class_list(name, tmp_path)


def test_a_missing_file_names_the_option_and_the_lists_that_come_along(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"config\.data\.classes = 'ade': there is no .*/ade\..*ade20k, city"):
        class_list("ade", tmp_path)
    with pytest.raises(ValueError, match=r"config\.data\.classes = 'classes\.txt' is no list that comes along"):
        Catalog.named("classes.txt")
