"""The classes of label images: those of published data sets, of a file of the user's, or the values themselves."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from maskdino_jax.data.catalog import NAMED, Catalog, label_values
from maskdino_jax.data.files import find, read_bytes

UNLABELLED = 255  # value of pixels without a class, unless the list says otherwise


@dataclasses.dataclass(frozen=True)
class ClassList:
    """Classes, and what the pixels of label images mean."""

    catalog: Catalog
    values: tuple[int, ...]  # of each class, in the order of the catalog; empty: the list is none for label images
    unlabelled: tuple[int, ...]  # values that mean no class


def class_list(classes: str, root: Path) -> ClassList:
    """The list that `config.data.classes` names.

    Args:
        classes: a list that comes along (`Catalog.named`), pixel values such as "0,1,4", or a file relative to `root`:
            lines of names, where a class is the number of its line from 0, or JSON. That is a list of names, or COCO's
            "categories", alone or under this key; beside it "unlabelled" may name the value that means no class.

    Raises:
        FileNotFoundError: it is none of these.
        ValueError: the file cannot be understood.
    """
    if classes in NAMED:
        catalog = Catalog.named(classes)
        values = label_values(classes)
        return ClassList(catalog, *((values.of_classes, (values.unlabelled,)) if values else ((), ())))
    if set(classes) <= set("0123456789,"):
        return _of_values([{"id": int(value), "name": f"class {value}"} for value in classes.split(",")])
    path = find(root, classes)
    if path is None:
        raise FileNotFoundError(
            f"config.data.classes = {classes!r}: there is no {root / classes}. Give a file relative to "
            f"config.data.root, or one of {', '.join(NAMED)}."
        )
    return _read(path)


def join_values(values: Iterable[int]) -> str:
    """Pixel values as `class_list` takes them."""
    return ",".join(map(str, sorted(values)))


def _read(path: Path) -> ClassList:
    try:
        content = read_bytes(path).decode("utf-8-sig")
        if path.suffix != ".json":
            return _of_values(_numbered(content.rstrip().splitlines()))
        content = json.loads(content)
        content = content if isinstance(content, dict) else {"categories": content}
        entries = content["categories"]
        if all(isinstance(entry, str) for entry in entries):
            entries = _numbered(entries)
        return _of_values(entries, content.get("unlabelled", UNLABELLED))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no list of classes ({type(error).__name__}: {error}). Give a name in each line, or JSON with "
            '"categories": [{"id": 0, "name": "road"}, ...].'
        ) from error


def _numbered(names: list[str]) -> list[dict[str, Any]]:
    names = [name.strip() for name in names]
    if "" in names:
        raise ValueError(f"line {names.index('') + 1} is empty")
    return [{"id": number, "name": name} for number, name in enumerate(names)]


def _of_values(entries: list[dict[str, Any]], unlabelled: int = UNLABELLED) -> ClassList:
    """A class for each value, by ascending one; a label image does not count objects, so that they are stuff."""
    catalog = Catalog.from_coco([{"isthing": 0} | entry for entry in entries])
    values = tuple(category.id for category in catalog.categories)
    wrong = [value for value in values if not isinstance(value, int) or not 0 <= value <= 255]
    if wrong or not values:
        raise ValueError(f"{wrong[0]!r} is no value of a pixel, 0 to 255" if wrong else "it is empty")
    return ClassList(catalog, values, (unlabelled,) if unlabelled not in values else ())
