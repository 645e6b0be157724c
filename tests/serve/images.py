"""Files to upload."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def encoded(height: int = 40, width: int = 60, form: str = "PNG", **options: object) -> bytes:
    """A grey image whose lower right quarter is white."""
    pixels = np.full((height, width, 3), 90, np.uint8)
    pixels[height // 2 :, width // 2 :] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def opened(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
