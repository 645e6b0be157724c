"""The reference's augmentation for semantic segmentation: resize by the shorter side, crop, shift colours, flip.

Draws and pixels are apart, as in `transforms`.
"""

import dataclasses

import numpy as np

from maskdino_jax.config import DataConfig
from maskdino_jax.data.colors import ColorDraws, draw_colors, shift_colors
from maskdino_jax.data.geometry import Geometry
from maskdino_jax.data.images import shortest_edge_size
from maskdino_jax.data.resample import resize_window
from maskdino_jax.data.transforms import PADDING, Example


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShortEdgeDraws:
    """The random numbers of one augmentation."""

    short_side: int  # pixels
    position: tuple[float, float]  # y, x in [0, 1), of the crop in what is left over
    colors: ColorDraws | None
    flip: bool


def draw_short_edge(rng: np.random.Generator, data: DataConfig) -> ShortEdgeDraws:
    """Draws in the order of the fields."""
    return ShortEdgeDraws(
        short_side=int(rng.choice(data.short_sides)),
        position=(float(rng.random()), float(rng.random())),
        colors=draw_colors(rng) if data.color_jitter else None,
        flip=bool(rng.random() < data.flip),
    )


def short_edge(example: Example, draws: ShortEdgeDraws, size: tuple[int, int], long_side: int) -> Example:
    """Resize to `draws.short_side` unless the longer side would pass `long_side`, cut out a crop of `size` (height,
    width), or all of it if it is smaller, shift its colours, flip it, pad right and below.

    Image, labels and objects move together.
    """
    original = example.image.shape[:2]
    scaled = shortest_edge_size(*original, draws.short_side, long_side)
    height, width = min(scaled[0], size[0]), min(scaled[1], size[1])
    y = int(draws.position[0] * (scaled[0] - height + 1))
    x = int(draws.position[1] * (scaled[1] - width + 1))
    crop = np.empty((height, width, 3), np.uint8)
    resize_window(example.image, scaled, (y, x), crop)
    if draws.colors is not None:
        crop = shift_colors(crop, draws.colors)
    image = np.full((*size, 3), PADDING, np.uint8)
    image[:height, :width] = crop[:, ::-1] if draws.flip else crop
    geometry = Geometry(
        original=original,
        flip=draws.flip,
        scaled=scaled,
        offset=(y, scaled[1] - width - x if draws.flip else x),  # counted in the flipped image
        window=tuple(size),
        flip_last=True,
    )
    objects, kept = example.objects.move(geometry)
    return Example(image=image, labels=example.labels[kept], is_thing=example.is_thing[kept], objects=objects)
