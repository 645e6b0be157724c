"""Colours of objects: all of a class have its hue, and each has a shade of its own."""

import functools

import numpy as np
from jaxtyping import Float, Int, UInt8

from maskdino_jax.data.catalog import Catalog

Color = tuple[int, int, int]  # RGB, 0 to 255

SHADES = 40  # of a class; the next object has the first one again
_TURN = 30  # degrees of hue to either side
_GREY = 12  # chroma from which on a colour has a hue of its own
_LIGHTNESS, _CHROMA = (40, 82), (16, 32, 100)  # of shades other than the class's own: neither mud nor glare

# Linear sRGB to XYZ under D65, whose white is the sum of each row.
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = _TO_XYZ.sum(axis=1)
_BEND = 6 / 29  # where the cube root of CIE Lab becomes a straight line


@functools.lru_cache(maxsize=1024)
def shades(color: Color) -> UInt8[np.ndarray, "40 3"]:
    """The colour itself, then relatives of about its hue, each as far from those before it as can be.

    Distances are those of CIE Lab, where 2.3 is just noticeable; the nearest two of the first 30 are 8 or more apart.
    A grey has relatives of all hues.
    """
    first = to_lab(np.array([color], np.uint8))[0]
    candidates = _relatives(first)
    distances = np.linalg.norm(candidates - first, axis=1)
    chosen = []
    for _ in range(SHADES - 1):
        best = candidates[distances.argmax()]
        chosen.append(best)
        distances = np.minimum(distances, np.linalg.norm(candidates - best, axis=1))
    result = np.concatenate([[color], _to_bytes(_to_rgb(np.array(chosen)))]).astype(np.uint8)
    result.flags.writeable = False  # it is kept for the next call
    return result


def object_colors(labels: Int[np.ndarray, "n"], catalog: Catalog) -> UInt8[np.ndarray, "n 3"]:
    """A shade for each object: of a class the first one has its colour, the next ones relatives of it."""
    seen: dict[int, int] = {}
    colors = np.zeros((len(labels), 3), np.uint8)
    for position, label in enumerate(labels.tolist()):
        own = shades(catalog.categories[label].color)
        colors[position] = own[seen.get(label, 0) % len(own)]
        seen[label] = seen.get(label, 0) + 1
    return colors


def readable_on(color: Color) -> Color:
    """Black or white, whichever is easier to read on a colour."""
    return (0, 0, 0) if to_lab(np.array([color], np.uint8))[0, 0] > 57 else (255, 255, 255)


def _relatives(lab: Float[np.ndarray, "3"]) -> Float[np.ndarray, "n 3"]:
    """Colours that a screen can show, of hues near that of `lab`."""
    _, a, b = lab
    turn = np.deg2rad(_TURN if np.hypot(a, b) >= _GREY else 180)
    least = np.clip(np.hypot(a, b) / 2, *_CHROMA[:2])  # for a screen has few strong cyans
    axes = np.linspace(*_LIGHTNESS, 24), np.linspace(least, _CHROMA[2], 21), np.linspace(-turn, turn, 25)
    lightness, chroma, hue = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
    hue += np.arctan2(b, a)
    grid = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
    rgb = _to_rgb(grid)
    return grid[((rgb >= 0) & (rgb <= 1)).all(axis=1)]


def to_lab(rgb: UInt8[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """CIE Lab under D65 of sRGB bytes: lightness 0 to 100, and two axes whose length is the chroma."""
    share = rgb / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    ratio = linear @ _TO_XYZ.T / _WHITE
    x, y, z = np.where(ratio > _BEND**3, np.cbrt(ratio), ratio / (3 * _BEND**2) + 4 / 29).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def _to_rgb(lab: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """sRGB from 0 to 1; other values where a screen cannot show the colour."""
    y = (lab[:, 0] + 16) / 116
    roots = np.stack([y + lab[:, 1] / 500, y, y - lab[:, 2] / 200], axis=1)
    ratio = np.where(roots > _BEND, roots**3, 3 * _BEND**2 * (roots - 4 / 29))
    linear = (ratio * _WHITE) @ np.linalg.inv(_TO_XYZ).T
    bent = 1.055 * np.sign(linear) * np.abs(linear) ** (1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, 12.92 * linear, bent)


def _to_bytes(rgb: Float[np.ndarray, "n 3"]) -> UInt8[np.ndarray, "n 3"]:
    return np.rint(255 * rgb).astype(np.uint8)
