"""Uploaded images with what the model found in them, drawn anew for each threshold without asking the model again."""

import dataclasses
import io
import secrets
import threading
from collections import OrderedDict

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from maskdino_jax.inference.predictor import Predictor
from maskdino_jax.inference.results import Panoptic, Segments
from maskdino_jax.inference.visualize import draw

STYLES = ("detection", "instance", "panoptic", "semantic")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
_MOST_PIXELS = 50_000_000  # of a file, before it is reduced
_LONG_SIDE = 2048  # pixels; larger images are reduced, so that a picture is drawn within a moment
_KEPT = 8  # images
_QUALITY = 90  # of JPEG


class NotAnImage(ValueError):  # noqa: N818 - what the sender did, not what went wrong here
    """The upload is no image of a known format, or a damaged one."""


class TooManyPixels(ValueError):  # noqa: N818
    """The image is larger than what is decoded."""


class Forgotten(LookupError):  # noqa: N818
    """Newer images have taken the place of this one."""


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """One image, and everything that the model found in it, however unsure."""

    key: str
    pixels: UInt8[np.ndarray, "h w 3"]  # RGB, upright
    segments: Segments

    @property
    def styles(self) -> tuple[str, ...]:
        """The pictures that can be drawn of it."""
        found = self.segments
        there = {
            "detection": found.instances is not None,
            "instance": found.instances is not None and found.instances.bits is not None,
            "panoptic": found.panoptic is not None,
            "semantic": found.semantic is not None,
        }
        return tuple(style for style in STYLES if there[style])

    def counts(self, threshold: float) -> dict[str, int]:
        """Objects, segments or classes in each picture."""
        shown, counts = above(self.segments, threshold), {}
        for style in self.styles:
            if style == "semantic":
                counts[style] = len(np.unique(shown.semantic))
            else:
                counts[style] = len(shown.panoptic.segments if style == "panoptic" else shown.instances)
        return counts


class Gallery:
    """The latest images. One at a time goes through the model; threads may call it at will."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self._model = threading.Lock()
        self._entries: OrderedDict[str, Entry] = OrderedDict()

    def add(self, data: bytes) -> Entry:
        """Predict the image of a file and keep the results; the oldest of more than eight are dropped.

        Raises:
            NotAnImage, TooManyPixels: the file cannot be taken; the message is for its sender.
        """
        pixels = decode(data)
        with self._model:
            entry = Entry(secrets.token_urlsafe(12), pixels, self.predictor(pixels, score_threshold=0))
            self._entries[entry.key] = entry
            while len(self._entries) > _KEPT:
                self._entries.popitem(last=False)
        return entry

    def entry(self, key: str) -> Entry:
        """Raises `Forgotten` if the image is not kept any more."""
        if key not in self._entries:
            raise Forgotten("This image is no longer kept: choose it once more.")
        return self._entries[key]

    def picture(self, key: str, style: str, threshold: float) -> bytes:
        """A JPEG of the results of one image; in all but the semantic one only what is at least so sure.

        Raises:
            Forgotten: the image is not kept any more.
            ValueError: there is no such picture of it.
        """
        entry = self.entry(key)
        if style not in entry.styles:
            raise ValueError(f"style = {style!r}: there is {', '.join(entry.styles)} of this image.")
        picture = draw(entry.pixels, above(entry.segments, threshold), score_threshold=threshold, style=style)
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=_QUALITY)
        return file.getvalue()


def decode(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """The upright RGB image of a file, its longer side at most 2048 pixels; see `Gallery.add` for what is raised."""
    formats = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise TooManyPixels(
            f"The image is too large: give one of at most {_MOST_PIXELS // 10**6} megapixels."
        ) from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise NotAnImage(f"This file is not an image that can be read: give {formats}.") from error
    with image:
        if image.width * image.height > _MOST_PIXELS:  # before any of them is decoded
            raise TooManyPixels(
                f"The image has {image.width} x {image.height} pixels: give one of at most "
                f"{_MOST_PIXELS // 10**6} megapixels."
            )
        try:
            image.draft("RGB", (_LONG_SIDE, _LONG_SIDE))  # a JPEG is decoded no larger than need be
            upright = ImageOps.exif_transpose(image).convert("RGB")
        except Exception as error:  # a damaged file may raise whatever its decoder does
            raise NotAnImage("This image is damaged: it cannot be decoded to its end. Give another copy.") from error
    upright.thumbnail((_LONG_SIDE, _LONG_SIDE))
    return np.asarray(upright)


def above(segments: Segments, threshold: float) -> Segments:
    """What is at least so sure: instances, and regions of the panoptic map, whose pixels belong to nothing then. The
    classes of a semantic map are not rated and stay."""
    instances, panoptic = segments.instances, segments.panoptic
    if panoptic is not None:
        kept = tuple(segment for segment in panoptic.segments if segment.score >= threshold)
        ids = np.where(np.isin(panoptic.ids, [segment.id for segment in kept]), panoptic.ids, 0)
        panoptic = Panoptic(ids.astype(np.int32), kept)
    return dataclasses.replace(
        segments, panoptic=panoptic, instances=None if instances is None else instances.above(threshold)
    )
