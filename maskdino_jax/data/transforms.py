"""Large-scale jittering (Ghiasi et al. 2021) of an image together with its objects, equal to the reference.

Draws and pixels are apart: `draw` takes the random numbers from one generator, `jitter` is a pure function of them.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Int, UInt8

from maskdino_jax.config import DataConfig
from maskdino_jax.data.geometry import Geometry
from maskdino_jax.data.objects import Boxes, Objects
from maskdino_jax.data.resample import resize_window

PADDING = 128  # grey level of pixels beyond the image, before normalisation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A decoded image with its objects; crowds are not among them."""

    image: UInt8[np.ndarray, "h w 3"]  # RGB
    labels: Int[np.ndarray, "n"]  # contiguous class ids
    is_thing: Bool[np.ndarray, "n"]
    objects: Objects | Boxes  # n of them

    @property
    def nbytes(self) -> int:
        """Of the image and its objects."""
        return self.image.nbytes + self.objects.nbytes


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
    geometry = placed(example.image.shape[:2], draws, size)
    objects, kept = example.objects.move(geometry)
    return Example(
        image=move_image(example.image, geometry),
        labels=example.labels[kept],
        is_thing=example.is_thing[kept],
        objects=objects,
    )


def placed(original: tuple[int, int], draws: Draws, size: tuple[int, int]) -> Geometry:
    """What becomes of an image of size `original`; sizes are height, width."""
    height, width = original
    factor = min(size[0] * draws.scale / height, size[1] * draws.scale / width)
    scaled = max(round(height * factor), 1), max(round(width * factor), 1)  # Python rounds half to even, as NumPy does
    room = max(scaled[0] - size[0], 0), max(scaled[1] - size[1], 0)
    return Geometry(
        original=(height, width),
        flip=draws.flip,
        scaled=scaled,
        offset=(round(room[0] * draws.position), round(room[1] * draws.position)),
        window=tuple(size),
    )


def move_image(image: UInt8[np.ndarray, "h w 3"], geometry: Geometry) -> UInt8[np.ndarray, "h2 w2 3"]:
    """What the window shows of the flipped and resized image; padding right and below."""
    (y, x), (height, width) = geometry.offset, geometry.window
    moved = np.empty((height, width, 3), np.uint8)
    seen = moved[: geometry.scaled[0] - y, : geometry.scaled[1] - x]
    moved[seen.shape[0] :] = PADDING
    moved[: seen.shape[0], seen.shape[1] :] = PADDING
    resize_window(image, geometry.scaled, geometry.offset, seen, flip=geometry.flip)
    return moved
