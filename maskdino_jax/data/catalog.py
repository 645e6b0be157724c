"""The classes of a data set: names, things and stuff, colours, and their contiguous indices."""

import colorsys
import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

NAMED = ("coco_instances", "coco_panoptic", "ade20k", "cityscapes")  # lists that come with the package

_LISTS = Path(__file__).parent / "classes"
_GOLDEN_RATIO = 0.618034  # consecutive multiples of it, modulo one, spread hues evenly whatever the number of classes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Category:
    """One class. `id` is the annotation file's; the model only knows its position in the catalog."""

    id: int
    name: str
    is_thing: bool  # things are counted, stuff (sky, road) is not
    color: tuple[int, int, int]  # RGB, 0 to 255

    def __post_init__(self) -> None:
        kinds = {"id": int, "name": str, "is_thing": bool}
        odd = [name for name, kind in kinds.items() if not isinstance(getattr(self, name), kind)]
        if len(self.color) != 3 or not all(isinstance(part, int) and 0 <= part <= 255 for part in self.color):
            odd.append("color")
        if odd:
            raise ValueError(
                f"category {str(self.id)[:40]}: {odd[0]} is {str(getattr(self, odd[0]))[:40]!r}. A category has a "
                "whole number as its id, a name, and perhaps a color of three numbers from 0 to 255."
            )


@dataclasses.dataclass(frozen=True)
class Catalog:
    """All classes; the position in `categories` is the contiguous class index of labels and logits."""

    categories: tuple[Category, ...]

    @classmethod
    def from_coco(cls, categories: Iterable[Mapping[str, Any]]) -> "Catalog":
        """Order the "categories" of a COCO JSON: things first, then stuff, each by ascending id.

        That is the order of the published checkpoints (80 things, then 53 stuff classes). Categories without "isthing",
        as in instance annotations, are things; those without "color" take one from a fixed palette.

        Raises:
            ValueError: two categories share an id, or one has an id or a color that is none.
        """
        categories = list(categories)
        ids = [category["id"] for category in categories]
        text = [id for id in ids if not isinstance(id, int)]
        if text:
            raise ValueError(f"category id {str(text[0])[:40]!r}: give categories whole numbers as their ids.")
        twice = sorted({id for id in ids if ids.count(id) > 1})
        if twice:
            raise ValueError(f"category id {twice[0]} occurs twice: give each category its own id.")
        ordered = sorted(categories, key=lambda category: (not category.get("isthing", 1), category["id"]))
        return cls(
            tuple(
                Category(
                    id=category["id"],
                    name=category["name"],
                    is_thing=bool(category.get("isthing", 1)),
                    color=_color(category.get("color"), position),
                )
                for position, category in enumerate(ordered)
            )
        )

    @classmethod
    def named(cls, name: str) -> "Catalog":
        """A list that comes with the package, in the order of the published checkpoints.

        Args:
            name: `coco_instances` (80 classes), `coco_panoptic` (133), `ade20k` (150; ids are the labels 1 to 150) or
                `cityscapes` (19; ids are those of labelIds).

        Raises:
            ValueError: there is no such list.
        """
        if name not in NAMED:
            raise ValueError(f"config.data.classes = {name!r} is no list that comes along: give one of {NAMED}.")
        return cls(
            tuple(
                Category(
                    id=entry["id"],
                    name=entry["name"],
                    is_thing=bool(entry["isthing"]),
                    color=tuple(entry["color"]),
                )
                for entry in _class_list(name)["categories"]
            )
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Catalog":
        """The inverse of `to_dict`, also after a way through JSON.

        Raises:
            ValueError: `values` are something else.
        """
        try:
            entries = [Category(**entry | {"color": tuple(entry["color"])}) for entry in values["categories"]]
        except (TypeError, LookupError) as error:
            raise ValueError(f"the classes of the checkpoint are damaged ({error}). Use another checkpoint.") from error
        return cls(tuple(entries))

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint stores of it: plain JSON."""
        return dataclasses.asdict(self)

    @property
    def num_classes(self) -> int:
        return len(self.categories)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(category.name for category in self.categories)

    @property
    def is_thing(self) -> Bool[np.ndarray, "k"]:
        return np.array([category.is_thing for category in self.categories], bool)

    @functools.cached_property
    def _positions(self) -> dict[int, int]:
        return {category.id: position for position, category in enumerate(self.categories)}

    def index(self, category_id: int) -> int:
        """Contiguous index of an annotation file's category id.

        Raises:
            ValueError: there is no such category; the message lists those there are.
        """
        try:
            return self._positions[category_id]
        except KeyError:
            known = ", ".join(map(str, sorted(self._positions)))
            raise ValueError(f"category id {category_id!r} is unknown: the data set has {known}.") from None


@dataclasses.dataclass(frozen=True)
class LabelValues:
    """What the pixels of a data set's label PNG mean."""

    of_classes: tuple[int, ...]  # the value of each class, in the order of the catalog
    unlabelled: int


def label_values(name: str) -> LabelValues | None:
    """The pixel values of `ade20k` or `cityscapes`; None for the COCO lists, which have none."""
    content = _class_list(name)
    if "unlabelled" not in content:
        return None
    return LabelValues(tuple(entry["label"] for entry in content["categories"]), content["unlabelled"])


def _class_list(name: str) -> dict[str, Any]:
    """A JSON file in the form of COCO's "categories", and with "label" and "unlabelled" if there are label PNG."""
    return json.loads((_LISTS / f"{name}.json").read_text(encoding="utf-8"))


def _color(value: Any, position: int) -> tuple[int, ...]:
    if not value:
        return _palette(position)
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _palette(position: int) -> tuple[int, int, int]:
    value = (1.0, 0.8, 0.6)[position % 3]
    red, green, blue = colorsys.hsv_to_rgb(position * _GOLDEN_RATIO % 1, 0.75, value)
    return round(255 * red), round(255 * green), round(255 * blue)
