"""Where pictures come from: arrays, files, folders, addresses and videos, read one at a time."""

import dataclasses
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from maskdino_jax.data import load_image
from maskdino_jax.data.files import children, exists, is_folder
from maskdino_jax.inference.download import download, is_address

IMAGE_TYPES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
VIDEO_TYPES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")


@dataclasses.dataclass(frozen=True, eq=False)
class NamedImage:
    """A picture and what it is called in files: as its own file, or by its number."""

    name: str
    pixels: UInt8[np.ndarray, "h w 3"]  # RGB


# A file, an http(s) address, RGB pixels, or one that has been read already.
Picture = str | Path | Image.Image | UInt8[np.ndarray, "h w 3"] | NamedImage
Source = Picture | Iterable[Picture]  # also the path of a folder or of a video


def read(picture: Picture, name: str = "image.png") -> NamedImage:
    """One picture.

    Args:
        name: of pixels that have none.

    Raises:
        FileNotFoundError: there is no such file, or nothing at the address.
        ConnectionError: the address does not answer in time.
        ValueError: it is no image, or more than one; the pixels are not RGB bytes.
    """
    if isinstance(picture, NamedImage):
        return picture
    if isinstance(picture, Image.Image):
        return NamedImage(name, np.asarray(ImageOps.exif_transpose(picture).convert("RGB")))
    if not isinstance(picture, str | Path):
        return NamedImage(name, _rgb(np.asarray(picture)))
    if is_address(picture):
        return NamedImage(_last_part(str(picture)), load_image(download(str(picture))))
    path = Path(picture)
    if not exists(path):
        raise FileNotFoundError(f"{path}: there is no such image.")
    if is_folder(path) or path.suffix.lower() in VIDEO_TYPES:
        kind = "folder" if is_folder(path) else "video"
        raise ValueError(f"{path} is a {kind}, of which the predictor makes many results: use stream({str(path)!r}).")
    return NamedImage(path.name, load_image(path))


def open_source(source: Source) -> Iterator[NamedImage]:
    """The pictures of a source in their order, each read when it is asked for.

    The images of a folder come by name, those in folders below it are left out; frames of a video are called
    NAME_000000.png and so on, pixels without a name 000000.png.

    Raises:
        FileNotFoundError: there is no such file, or no image in the folder.
        ModuleNotFoundError: a video, and the extra `video` is not installed.
        ValueError: as in `read`, or the video is damaged.
    """
    if isinstance(source, str | Path) and not is_address(source):
        path = Path(source)
        if not exists(path):
            raise FileNotFoundError(f"{path}: there is no such image, folder or video.")
        if is_folder(path):
            return _in_folder(path)
        if path.suffix.lower() in VIDEO_TYPES:
            return _frames(path, _video_library())
    one = isinstance(source, str | Path | Image.Image | NamedImage) or hasattr(source, "__array__")
    if one or not isinstance(source, Iterable):
        return iter([read(source)])
    return (read(picture, f"{number:06d}.png") for number, picture in enumerate(source))


def _in_folder(folder: Path) -> Iterator[NamedImage]:
    names = [name for name in children(folder)[1] if name.lower().endswith(IMAGE_TYPES)]
    if not names:
        raise FileNotFoundError(f"{folder}: no image in this folder ({', '.join(IMAGE_TYPES)}).")
    return (read(folder / name) for name in names)


def _frames(path: Path, av: ModuleType) -> Iterator[NamedImage]:
    """The frames of a video, turned upright; only the one in work and those the decoder refers to are in memory."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path} has no pictures, such as a recording of sound.")
            for number, frame in enumerate(container.decode(container.streams.video[0])):
                pixels = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                yield NamedImage(f"{path.stem}_{number:06d}.png", np.ascontiguousarray(pixels))
    except av.error.FFmpegError as error:
        raise ValueError(f"{path} cannot be read as a video ({error.strerror}): restore the file.") from error


def _video_library() -> ModuleType:
    try:
        import av
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("videos are read by the library PyAV: pip install maskdino-jax[video]") from error
    return av


def _rgb(pixels: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(
            f"an image of {pixels.dtype} with shape {pixels.shape}: give RGB bytes, uint8 of shape [height, width, 3]."
        )
    return pixels


def _last_part(address: str) -> str:
    """What a picture from an address is called: never a name that leads to another folder."""
    parts = urlsplit(address)
    return re.sub(r"[^\w.-]", "_", parts.path.rpartition("/")[2]).lstrip(".") or parts.hostname or "image"
