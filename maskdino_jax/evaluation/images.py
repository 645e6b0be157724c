"""What predictions need to know of the images they are made of."""

from typing import Protocol

import numpy as np
from jaxtyping import UInt8


class Images(Protocol):
    """A sequence of images in files. Every `data.Dataset` is one."""

    def __len__(self) -> int: ...

    def image_id(self, index: int) -> int | str: ...

    def file_name(self, index: int) -> str: ...

    def size(self, index: int) -> tuple[int, int]:
        """Height and width in pixels."""
        ...

    def image(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """RGB."""
        ...
