"""Read images, and resize them for evaluation and prediction exactly as the reference implementation does."""

import contextlib
import dataclasses
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32, UInt8
from PIL import ExifTags, Image, ImageOps

from maskdino_jax.config import DataConfig
from maskdino_jax.data.faults import DataError
from maskdino_jax.data.files import open_file

_STRIDE = 32  # of the coarsest backbone map: canvases are multiples of it
_FORMATS = (1, 4 / 3, 3 / 2, 16 / 9)  # longer by shorter side of most photographs
_TURNED = (5, 6, 7, 8)  # EXIF orientations of files whose rows are columns of the upright image
_DAMAGE = (  # what Pillow raises for files that are no images, or not whole; for a broken PNG a SyntaxError
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    ArithmeticError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # more than 8 bits a channel


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The content of an image file that lies inside of another file, to be read in place of a path."""

    name: str  # for messages
    content: bytes = dataclasses.field(repr=False)

    def __str__(self) -> str:
        return self.name

    def open(self) -> io.BytesIO:
        return io.BytesIO(self.content)


def load_image(path: str | Path | Encoded) -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels of an image file, turned upright by its EXIF orientation.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image, is cut short, has more than 8 bits a channel, or more than 179 million pixels.
    """
    with _opened(path) as file:
        return np.array(_upright(path, file))


def load_ids(path: str | Path | Encoded) -> Int32[np.ndarray, "h w"]:
    """Segment ids of a panoptic PNG, R + 256 G + 65536 B.

    Raises:
        FileNotFoundError, ValueError: as in `load_image`.
    """
    with _opened(path) as file:
        pixels = _upright(path, file).tobytes("raw", "RGBX")  # as Pillow has them in memory, four bytes each
        ids = np.frombuffer(pixels, "<i4").reshape(file.height, file.width) & 0xFFFFFF
        return ids.astype(np.int32, copy=False)


def load_labels(path: str | Path | Encoded) -> UInt8[np.ndarray, "h w"]:
    """The numbers that the pixels of a label PNG hold, grey or with a palette.

    Raises:
        FileNotFoundError, ValueError: as in `load_image`, or it has several channels.
    """
    with _opened(path) as file:
        if file.mode not in ("L", "P"):
            raise DataError(
                "no label image",
                f"{path} has pixels of mode {file.mode}, not one label of 8 bits for each: give label images, not "
                "coloured ones.",
            )
        return np.array(file)


def load_numbers(path: str | Path | Encoded) -> Int32[np.ndarray, "h w"]:
    """The numbers that the pixels of a PNG with one channel hold, of 16 bits or less.

    Raises:
        FileNotFoundError, ValueError: as in `load_image`, or it has several channels.
    """
    with _opened(path) as file:
        if len(file.getbands()) != 1:
            raise DataError("no label image", f"{path} has pixels of mode {file.mode}, not one number for each.")
        return np.array(file).astype(np.int32)


def image_size(path: str | Path | Encoded) -> tuple[int, int]:
    """Height and width of an image file in pixels once it is upright; only the head of the file is read.

    Raises:
        FileNotFoundError, ValueError: as in `load_image`.
    """
    with _opened(path) as file:
        turned = file.getexif().get(ExifTags.Base.Orientation, 1) in _TURNED
        return (file.width, file.height) if turned else (file.height, file.width)


def _upright(path: str | Path | Encoded, file: Image.Image) -> Image.Image:
    """An opened image as RGB; nothing is copied that is so already."""
    if file.mode in _DEEP_MODES:
        raise DataError(
            "unreadable image",
            f"{path} has pixels of mode {file.mode}, more than 8 bits: scale them to 0..255 and save as 8 bits.",
        )
    if file.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        ImageOps.exif_transpose(file, in_place=True)
    return file if file.mode == "RGB" else file.convert("RGB")


@contextlib.contextmanager
def _opened(path: str | Path | Encoded) -> Iterator[Image.Image]:
    """An image file whose errors, also those while its pixels are decoded, name it."""
    try:
        with path.open() if isinstance(path, Encoded) else open_file(Path(path)) as stream, Image.open(stream) as file:
            yield file
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such image. Restore it, or drop its entry from the JSON.") from error
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        message = f"{path} is refused ({error}): cut it into smaller images."
        raise DataError("too large an image", message) from error
    except _DAMAGE as error:
        message = f"{path} cannot be read as an image ({error or type(error).__name__}): restore the file."
        raise DataError("unreadable image", message) from error


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

    The model compiles once for each canvas. With `data.eval_canvas` "exact" it is what the reference pads to, the
    resized image rounded up. With "bucketed" its longer side is the first of the formats of cameras that suffices, or
    the limit: with 800 and 1333 pixels, 800 x 800, 1088, 1216 or 1344, and upright.
    """
    exact = _extent(shortest_edge_size(height, width, data.eval_short_side, data.eval_long_side))
    if data.eval_canvas == "exact":
        return exact
    limit = _ceil(data.eval_long_side)
    formats = [*(min(_ceil(data.eval_short_side * ratio), limit) for ratio in _FORMATS), limit]
    short, long = _ceil(data.eval_short_side), next(side for side in formats if side >= max(exact))
    return (short, long) if height <= width else (long, short)


class PreparedImage(NamedTuple):
    """An image resized for evaluation, on its canvas."""

    image: UInt8[np.ndarray, "h w 3"]  # RGB, zeros right of and below the resized image
    size: Int[np.ndarray, "2"]  # height, width of the resized image
    extent: Int[np.ndarray, "2"] | None  # `size` rounded up to 32: what counts; None if that is the canvas ("exact")


def prepare_image(image: UInt8[np.ndarray, "h w 3"], data: DataConfig) -> PreparedImage:
    """Resize for evaluation and pad with zeros to the canvas, see `canvas_size`, right and below."""
    height, width = image.shape[:2]
    size = shortest_edge_size(height, width, data.eval_short_side, data.eval_long_side)
    canvas = np.zeros((*canvas_size(height, width, data), 3), np.uint8)
    canvas[: size[0], : size[1]] = resize_bilinear(image, *size)
    extent = None if data.eval_canvas == "exact" else np.array(_extent(size), np.int32)
    return PreparedImage(canvas, np.array(size, np.int32), extent)


def _extent(size: tuple[int, int]) -> tuple[int, int]:
    return _ceil(size[0]), _ceil(size[1])


def _ceil(side: float) -> int:
    return math.ceil(side / _STRIDE) * _STRIDE
