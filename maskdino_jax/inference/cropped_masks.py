"""Masks cut to the boxes around them: what they take depends on the objects, not on the size of the image."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from jaxtyping import Bool, Int, UInt8

from maskdino_jax.inference.run_lengths import encode_crop


class Rectangle(NamedTuple):
    """Pixels of an image, the ends exclusive."""

    top: int
    left: int
    bottom: int
    right: int

    def meet(self, other: "Rectangle") -> "Rectangle | None":
        """The pixels of both; None: there are none."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        bottom, right = min(self.bottom, other.bottom), min(self.right, other.right)
        return Rectangle(top, left, bottom, right) if top < bottom and left < right else None

    def inside(self, outer: "Rectangle") -> tuple[slice, slice]:
        """Rows and columns of an array of the pixels of `outer`, which contains it."""
        top, left = outer.top, outer.left
        return slice(self.top - top, self.bottom - top), slice(self.left - left, self.right - left)


class Crop(NamedTuple):
    """The part of a mask inside a rectangle of the image; all pixels outside are False."""

    top: int
    left: int
    bits: UInt8[np.ndarray, "h w8"]  # 8 pixels of a row in a byte, first pixel in the highest bit
    width: int  # pixels of a row; the bits beyond are zero

    @classmethod
    def around(cls, mask: Bool[np.ndarray, "h w"], top: int, left: int) -> Self | None:
        """The smallest crop of a mask whose corner lies at `top`, `left` of the image; None: it has no pixel."""
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            return None
        inner = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return cls(top + int(rows[0]), left + int(columns[0]), np.packbits(inner, axis=-1), inner.shape[1])

    @classmethod
    def union(cls, crops: Sequence["Crop"]) -> Self:
        """The crop of all pixels of some crops, at least one."""
        places = [crop.place for crop in crops]
        top, left = min(place.top for place in places), min(place.left for place in places)
        whole = Rectangle(top, left, max(place.bottom for place in places), max(place.right for place in places))
        mask = np.zeros((whole.bottom - top, whole.right - left), bool)
        for crop, place in zip(crops, places, strict=True):
            mask[place.inside(whole)] |= crop.mask
        return cls(top, left, np.packbits(mask, axis=-1), mask.shape[1])

    @property
    def place(self) -> Rectangle:
        """Where it lies in the image."""
        return Rectangle(self.top, self.left, self.top + len(self.bits), self.left + self.width)

    @property
    def mask(self) -> Bool[np.ndarray, "h w"]:
        """Its pixels, made anew at each access."""
        return np.unpackbits(self.bits, axis=-1, count=self.width).view(bool)


@dataclasses.dataclass(frozen=True)
class CroppedMasks:
    """Masks of one image, in place of an array of bits for each of them."""

    crops: tuple[Crop, ...]
    size: tuple[int, int]  # height, width of the image

    def __len__(self) -> int:
        return len(self.crops)

    def mask(self, index: int) -> Bool[np.ndarray, "h w"]:
        """One mask at the size of the image."""
        crop, whole = self.crops[index], np.zeros(self.size, bool)
        whole[crop.place.inside(Rectangle(0, 0, *self.size))] = crop.mask
        return whole

    def unpacked(self) -> Bool[np.ndarray, "n h w"]:
        """All masks at the size of the image."""
        return np.array([self.mask(index) for index in range(len(self))], bool).reshape(len(self), *self.size)

    def where(self, keep: Bool[np.ndarray, "n"]) -> "CroppedMasks":
        """Those that are to be kept."""
        return dataclasses.replace(self, crops=tuple(self.crops[index] for index in np.flatnonzero(keep)))

    @property
    def areas(self) -> Int[np.ndarray, "n"]:
        """Pixels of each."""
        return np.array([np.bitwise_count(crop.bits).sum(dtype=np.int64) for crop in self.crops], np.int64)

    def run_lengths(self) -> list[dict[str, Any]]:
        """COCO run lengths at the size of the image."""
        return [encode_crop(crop.bits, (crop.top, crop.left), self.size) for crop in self.crops]
