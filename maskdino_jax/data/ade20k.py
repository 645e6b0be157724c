"""ADE20K beyond its semantic labels: the objects of `annotations_instance`, in the numbering of the reference.

Its panoptic and instance JSON number the 150 classes from 0, one less than the label images. The instances are of 100
of them, those that are things; the image files number these from 1 in the same order.
"""

import functools
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

from maskdino_jax.data.catalog import Catalog
from maskdino_jax.data.faults import DataError


@functools.cache
def categories() -> tuple[dict, ...]:
    """The 150 classes as COCO's "categories", by id, which is the label less one."""
    return tuple(
        {"id": entry.id - 1, "name": entry.name, "isthing": int(entry.is_thing), "color": list(entry.color)}
        for entry in Catalog.named("ade20k").categories
    )


@functools.cache
def things() -> tuple[dict, ...]:
    """The 100 classes that have instances; the position counts as in the image files, less one."""
    return tuple(entry for entry in categories() if entry["isthing"])


def objects(pixels: UInt8[np.ndarray, "h w 3"], what: str) -> Iterator[tuple[int, int]]:
    """Number and category id of each object in an image of `annotations_instance`, by ascending number.

    Red is the class, 1 to 100, green the number of the object in this image, 0 where there is none.

    Raises:
        ValueError: an object has several classes, or one that does not exist; `what` says where.
    """
    classes_of_numbers = np.unique(pixels[..., 1].astype(np.uint16) * 256 + pixels[..., 0])
    last = 0
    for number, of_class in (divmod(int(value), 256) for value in classes_of_numbers):
        if number == 0:
            continue
        if number == last or not 1 <= of_class <= len(things()):
            problem = "several classes" if number == last else f"class {of_class}"
            raise DataError(
                "unknown label value",
                f"{what}: object {number} (green) has {problem}; red must be one of 1 to {len(things())}. "
                "Restore the image from annotations_instance of ADE20K.",
            )
        yield number, things()[of_class - 1]["id"]
        last = number
