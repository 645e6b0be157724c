"""Random brightness, contrast, saturation and hue, as SSD trains with (Liu et al. 2016), equal to the reference.

The reference works on bytes: every step truncates to 0..255, and each change of saturation or hue converts to eight-bit
HSV (hue in 0..179) and back. Draws and pixels are apart, as in `transforms`.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int, UInt8

_BRIGHTNESS = 32  # most that is added
_FACTORS = (0.5, 1.5)  # of contrast and of saturation
_HUE = 18  # most that is added, in steps of 2 degrees
_HUES = 180
_FIXED = 12  # bits after the point in the conversion to HSV


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColorDraws:
    """The random numbers of one change of colours; a step that is None is left out."""

    brightness: float | None  # added
    contrast: float | None  # factor
    saturation: float | None  # factor
    hue: int | None  # added, in steps of 2 degrees
    contrast_first: bool  # before saturation and hue rather than after them


def draw_colors(rng: np.random.Generator) -> ColorDraws:
    """Each step happens with probability 1/2; nine draws, always in the order of the fields."""
    maybe = lambda value: value if rng.random() < 0.5 else None
    return ColorDraws(
        brightness=maybe(rng.uniform(-_BRIGHTNESS, _BRIGHTNESS)),
        contrast=maybe(rng.uniform(*_FACTORS)),
        saturation=maybe(rng.uniform(*_FACTORS)),
        hue=maybe(int(rng.integers(-_HUE, _HUE, endpoint=True))),
        contrast_first=bool(rng.random() < 0.5),
    )


def shift_colors(image: UInt8[np.ndarray, "h w 3"], draws: ColorDraws) -> UInt8[np.ndarray, "h w 3"]:
    """Brightness, then contrast, saturation and hue, or saturation, hue and contrast."""
    if draws.brightness is not None:
        image = _linear(image, offset=draws.brightness)
    if draws.contrast is not None and draws.contrast_first:
        image = _linear(image, factor=draws.contrast)
    if draws.saturation is not None:
        hsv = rgb_to_hsv(image)
        hsv[..., 1] = _linear(hsv[..., 1], factor=draws.saturation)
        image = hsv_to_rgb(hsv)
    if draws.hue is not None:
        hsv = rgb_to_hsv(image)
        hsv[..., 0] = (hsv[..., 0].astype(np.int32) + draws.hue) % _HUES
        image = hsv_to_rgb(hsv)
    if draws.contrast is not None and not draws.contrast_first:
        image = _linear(image, factor=draws.contrast)
    return image


def _linear(values: UInt8[np.ndarray, "..."], factor: float = 1.0, offset: float = 0.0) -> UInt8[np.ndarray, "..."]:
    """`factor * values + offset` within 0..255, cut off to whole numbers."""
    changed = values.astype(np.float32) * np.float32(factor) + np.float32(offset)
    return np.clip(changed, 0, 255).astype(np.uint8)


def rgb_to_hsv(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Hue in 0..179, saturation and value in 0..255, in OpenCV's fixed-point arithmetic."""
    red, green, blue = np.moveaxis(image.astype(np.int32), -1, 0)
    value = image.max(axis=-1).astype(np.int32)
    chroma = value - image.min(axis=-1)
    sixths = np.where(
        value == red,
        green - blue,
        np.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma),
    )
    hue = _rounded(sixths * _reciprocals(_HUES / 6)[chroma])
    saturation = _rounded(chroma * _reciprocals(255)[value])
    return np.stack([np.where(hue < 0, hue + _HUES, hue), saturation, value], axis=-1).astype(np.uint8)


def hsv_to_rgb(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The inverse of `rgb_to_hsv` up to rounding."""
    hue, saturation, value = np.moveaxis(image.astype(np.float32), -1, 0) / _scale()
    low, falling, rising = (
        value * (1 - saturation),
        value * (1 - saturation * (hue % 1)),
        value * (1 - saturation * (1 - hue % 1)),
    )
    sector = hue.astype(np.int32) % 6  # from red over yellow, green, cyan, blue and magenta back to red
    red = np.choose(sector, [value, falling, low, low, rising, value])
    green = np.choose(sector, [rising, value, value, falling, low, low])
    blue = np.choose(sector, [low, low, rising, value, value, falling])
    return np.rint(np.stack([red, green, blue], axis=-1) * 255).astype(np.uint8)


def _scale() -> Float[np.ndarray, "3 1 1"]:
    return np.array([_HUES / 6, 255, 255], np.float32)[:, None, None]


def _reciprocals(scale: float) -> Int[np.ndarray, "256"]:
    """`scale` divided by 0..255 in fixed point, and 0 for the division by zero."""
    return np.rint([0, *(scale * 2**_FIXED / np.arange(1, 256))]).astype(np.int32)


def _rounded(fixed: Int[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
    return (fixed + (1 << _FIXED - 1)) >> _FIXED
