"""What every data set offers, wherever it comes from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int, UInt8

from maskdino_jax.data.catalog import Catalog
from maskdino_jax.data.transforms import Example


class Dataset(Protocol):
    """One split, a sequence of examples. It holds no open file, so that it travels to loader processes.

    `image` and what follows it raise `FileNotFoundError` or `ValueError`, naming file and remedy, if a file is missing
    or damaged.
    """

    @property
    def catalog(self) -> Catalog: ...

    @property
    def annotations(self) -> Path:
        """Where the annotations come from, for messages."""
        ...

    @property
    def truths(self) -> frozenset[str]:
        """What predictions can be compared with: "instances", "panoptic", "semantic", and "objects", the numbers that
        the pixels of Cityscapes have."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """The image as it is in its file, with all objects that are no crowds."""
        ...

    def image_id(self, index: int) -> int | str: ...

    def file_name(self, index: int) -> str: ...

    def size(self, index: int) -> tuple[int, int]:
        """Height and width in pixels."""
        ...

    def image(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """RGB."""
        ...

    def instances_truth(self) -> dict[str, Any] | None:
        """The content of a COCO instances JSON for this split; None if there are only panoptic annotations."""
        ...

    def panoptic_records(self, index: int) -> list[Mapping[str, Any]]:
        """COCO's segments_info, crowds included; only with panoptic truth."""
        ...

    def panoptic_map(self, index: int) -> Int[np.ndarray, "h w"]:
        """Segment id of each pixel, 0 is unlabelled; only with panoptic truth."""
        ...

    def object_numbers(self, index: int) -> Int[np.ndarray, "h w"]:
        """Number of the object or of the label of each pixel; only with truth of objects."""
        ...

    def semantic_map(self, index: int) -> Int[np.ndarray, "h w"]:
        """Contiguous class of each pixel, `catalog.num_classes` where it has none; only with semantic truth alone."""
        ...
