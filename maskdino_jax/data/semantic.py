"""Images with a map of class labels for each: ADE20K, Cityscapes."""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

from maskdino_jax.data.catalog import Catalog, label_values
from maskdino_jax.data.files import names_below
from maskdino_jax.data.images import image_size, load_image, load_labels
from maskdino_jax.data.objects import Segments
from maskdino_jax.data.transforms import Example

_IMAGE_TYPES = (".jpg", ".jpeg", ".png")
_CITYSCAPES = "_leftImg8bit", "_gtFine_labelTrainIds"  # ends of the stems of an image and of its labels
_UNKNOWN = -1  # class of pixel values that the class list does not have


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class SemanticDataset:
    """One split. Holds paths but no open file, so that it travels to loader processes."""

    catalog: Catalog
    images: Path  # folder
    annotations: Path  # folder of label PNG
    pairs: tuple[tuple[str, str], ...]  # files of an image and of its labels, relative to the folders
    classes_of_values: tuple[int, ...]  # class of each pixel value of a label PNG; `num_classes` is unlabelled

    @classmethod
    def read(cls, images: Path, labels: Path, classes: str) -> "SemanticDataset":
        """All images in a folder and those below it, with the labels of the same name; `classes` as in `Catalog.named`.

        Raises:
            ValueError: there are no images, or one has no labels.
        """
        names = names_below(images, _IMAGE_TYPES)
        if not names:
            raise ValueError(f"{images} has no image ({', '.join(_IMAGE_TYPES)}). Give the folder of the images.")
        pairs = tuple((name, label_name(name)) for name in names)
        found = set(names_below(labels, (".png",)))
        alone = [pair for pair in pairs if pair[1] not in found]
        if alone:
            raise ValueError(
                f"{images / alone[0][0]} has no labels: there is no {labels / alone[0][1]} ({len(alone)} in all). "
                "Add the file, or drop the image."
            )
        catalog = Catalog.named(classes)
        values = label_values(classes)
        known = {value: position for position, value in enumerate(values.of_classes)}
        known[values.unlabelled] = catalog.num_classes
        return cls(
            catalog=catalog,
            images=images,
            annotations=labels,
            pairs=pairs,
            classes_of_values=tuple(known.get(value, _UNKNOWN) for value in range(256)),
        )

    @property
    def truths(self) -> frozenset[str]:
        """What predictions can be compared with, see `CocoDataset.truths`."""
        return frozenset({"semantic"})

    def __len__(self) -> int:
        return len(self.pairs)

    def __repr__(self) -> str:
        return f"SemanticDataset({str(self.annotations)!r}, {len(self)} images)"

    def instances_truth(self) -> None:
        """There is none."""

    def image_id(self, index: int) -> str:
        """The file's path without its ending."""
        return Path(self.file_name(index)).with_suffix("").as_posix()

    def file_name(self, index: int) -> str:
        return self.pairs[index][0]

    def size(self, index: int) -> tuple[int, int]:
        """Height and width in pixels, from the head of the image file."""
        return image_size(self.images / self.file_name(index))

    def image(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """RGB.

        Raises:
            ValueError: the file is damaged.
        """
        return load_image(self.images / self.file_name(index))

    def semantic_map(self, index: int) -> Int32[np.ndarray, "h w"]:
        """Contiguous class of each pixel; `catalog.num_classes` where it has none.

        Raises:
            ValueError: the PNG is damaged, holds no labels or unknown ones.
        """
        path = self.annotations / self.pairs[index][1]
        labels = load_labels(path)
        classes = np.array(self.classes_of_values, np.int32)[labels]
        if classes.min() == _UNKNOWN:
            unknown = np.unique(labels[classes == _UNKNOWN]).tolist()
            raise ValueError(
                f"{path} has pixels of value {', '.join(map(str, unknown))}, which mean nothing in the class list. "
                "Give label images of the numbering that config.data.classes expects: ADE20K 0 to 150, 0 for "
                "unlabelled; Cityscapes labelTrainIds 0 to 18, 255 for unlabelled."
            )
        return classes

    def __getitem__(self, index: int) -> Example:
        """The image as it is in its file, with one object for each class in it, by ascending class."""
        image, classes = self.image(index), self.semantic_map(index)
        if image.shape[:2] != classes.shape:
            (height, width), (tall, wide) = classes.shape, image.shape[:2]
            raise ValueError(
                f"{self.annotations / self.pairs[index][1]} is {width} x {height} pixels, but its image "
                f"{self.images / self.file_name(index)} is {wide} x {tall}. Restore one of them."
            )
        present = np.bincount(classes.ravel(), minlength=self.catalog.num_classes)[: self.catalog.num_classes]
        labels = np.flatnonzero(present).astype(np.int32)
        return Example(
            image=image,
            labels=labels,
            is_thing=self.catalog.is_thing[labels],
            objects=Segments(classes, tuple(labels.tolist())),
        )


def label_name(image_name: str) -> str:
    """The label PNG of an image: its own name, or in Cityscapes `*_gtFine_labelTrainIds` for `*_leftImg8bit`."""
    path = Path(image_name)
    left, right = _CITYSCAPES
    stem = path.stem.removesuffix(left) + right if path.stem.endswith(left) else path.stem
    return path.with_name(f"{stem}.png").as_posix()
