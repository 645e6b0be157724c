"""Large-scale jittering (Ghiasi et al. 2021) of an image together with its objects, equal to the reference.

Draws and pixels are apart: `draw` takes the random numbers from one generator, `jitter` is a pure function of them.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Int, UInt8

from maskdino_jax.config import DataConfig
from maskdino_jax.data.geometry import Geometry
from maskdino_jax.data.images import resize_bilinear
from maskdino_jax.data.objects import Boxes, Objects

PADDING = 128  # grey level of pixels beyond the image, before normalisation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A decoded image with its objects; crowds are not among them."""

    image: UInt8[np.ndarray, "h w 3"]  # RGB
    labels: Int[np.ndarray, "n"]  # contiguous class ids
    is_thing: Bool[np.ndarray, "n"]
    objects: Objects | Boxes  # n of them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draws:
    """The random numbers of one augmentation."""

    flip: bool
    scale: float  # of the image relative to the crop
    position: float  # in [0, 1], of the crop in what is left over; one number for both axes, as in the reference


def draw(rng: np.random.Generator, data: DataConfig) -> Draws:
    """Three draws, always in this order: flip, scale, position."""
    flip = rng.random() < data.flip
    scale = rng.uniform(*data.scale)
    return Draws(flip=bool(flip), scale=float(scale), position=float(rng.random()))


def jitter(example: Example, draws: Draws, size: tuple[int, int]) -> Example:
    """Flip, fit into `scale` times the crop, cut out a crop of `size` (height, width), pad right and below.

    Image, labels and objects move together. Objects outside of the crop are dropped or become empty, see `Instances`
    and `Segments`.
    """
    height, width = example.image.shape[:2]
    factor = min(size[0] * draws.scale / height, size[1] * draws.scale / width)
    scaled = max(round(height * factor), 1), max(round(width * factor), 1)  # Python rounds half to even, as NumPy does
    room = max(scaled[0] - size[0], 0), max(scaled[1] - size[1], 0)
    geometry = Geometry(
        original=(height, width),
        flip=draws.flip,
        scaled=scaled,
        offset=(round(room[0] * draws.position), round(room[1] * draws.position)),
        window=tuple(size),
    )
    objects, kept = example.objects.move(geometry)
    return Example(
        image=_move_image(example.image, geometry),
        labels=example.labels[kept],
        is_thing=example.is_thing[kept],
        objects=objects,
    )


def _move_image(image: UInt8[np.ndarray, "h w 3"], geometry: Geometry) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Resize the whole image before cutting: Pillow rounds otherwise at the crop's border."""
    flipped = np.ascontiguousarray(image[:, ::-1]) if geometry.flip else image
    (y, x), (height, width) = geometry.offset, geometry.window
    seen = resize_bilinear(flipped, *geometry.scaled)[y : y + height, x : x + width]
    moved = np.full((height, width, 3), PADDING, np.uint8)
    moved[: seen.shape[0], : seen.shape[1]] = seen
    return moved
