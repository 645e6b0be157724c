"""Read images, and resize them for evaluation and prediction exactly as the reference implementation does."""

import math
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageOps

from maskdino_jax.config import DataConfig

_STRIDE = 32  # of the coarsest backbone map: canvases are multiples of it
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # more than 8 bits a channel


def load_image(path: str | Path) -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels of an image file, turned upright by its EXIF orientation.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image, is cut short, or has more than 8 bits a channel.
    """
    try:
        with Image.open(path) as file:
            if file.mode in _DEEP_MODES:
                raise ValueError(
                    f"{path} has pixels of mode {file.mode}, more than 8 bits: scale them to 0..255 and save as 8 bits."
                )
            return np.array(ImageOps.exif_transpose(file).convert("RGB"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such image. Restore it, or drop its entry from the JSON.") from error
    except (OSError, SyntaxError) as error:  # Pillow reports a broken PNG as a SyntaxError
        raise ValueError(f"{path} cannot be read as an image ({error}): restore the file.") from error


def resize_bilinear(image: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Pillow's bilinear filter on bytes, which averages when it shrinks; the checkpoints were trained with it."""
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def shortest_edge_size(height: int, width: int, short_side: int, long_side: int) -> tuple[int, int]:
    """Height and width once the shorter side is `short_side`, or the longer one `long_side` if that makes less.

    Sizes are floats until the end, where they round half up; the order of operations is that of the reference.
    """
    factor = short_side / min(height, width)
    tall, wide = (short_side, factor * width) if height < width else (factor * height, short_side)
    if max(tall, wide) > long_side:
        factor = long_side / max(tall, wide)
        tall, wide = tall * factor, wide * factor
    return max(int(tall + 0.5), 1), max(int(wide + 0.5), 1)


def canvas_size(height: int, width: int, data: DataConfig) -> tuple[int, int]:
    """Height and width of the evaluation canvas for a file of this size, multiples of 32.

    `data.eval_canvas` "fixed" has one canvas for landscape and square images and its transpose for portrait images, so
    that evaluation compiles two programs at most; "exact" fits each resized image, as the reference does.
    """
    if data.eval_canvas == "exact":
        size = shortest_edge_size(height, width, data.eval_short_side, data.eval_long_side)
        return _ceil(size[0]), _ceil(size[1])
    short, long = _ceil(data.eval_short_side), _ceil(data.eval_long_side)
    return (short, long) if height <= width else (long, short)


def prepare_image(
    image: UInt8[np.ndarray, "h w 3"], data: DataConfig
) -> tuple[UInt8[np.ndarray, "h2 w2 3"], Int[np.ndarray, "2"]]:
    """Resize for evaluation and pad with zeros to the canvas, right and below.

    Returns:
        The canvas, and height and width of the image on it.
    """
    height, width = image.shape[:2]
    size = shortest_edge_size(height, width, data.eval_short_side, data.eval_long_side)
    canvas = np.zeros((*canvas_size(height, width, data), 3), np.uint8)
    canvas[: size[0], : size[1]] = resize_bilinear(image, *size)
    return canvas, np.array(size, np.int32)


def _ceil(side: int) -> int:
    return math.ceil(side / _STRIDE) * _STRIDE
