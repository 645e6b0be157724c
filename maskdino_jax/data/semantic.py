"""Images with a map of class labels for each: ADE20K, Cityscapes, folders of a user's own."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Int32, UInt8

from maskdino_jax.data.catalog import Catalog
from maskdino_jax.data.class_lists import ClassList
from maskdino_jax.data.faults import DataError, Report, stop
from maskdino_jax.data.files import names_below
from maskdino_jax.data.images import image_size, load_image, load_labels, load_numbers
from maskdino_jax.data.objects import Segments
from maskdino_jax.data.transforms import Example

_IMAGE_TYPES = (".jpg", ".jpeg", ".png")
_CITYSCAPES = "_leftImg8bit"  # end of the stem of an image; its labels have one of the next two instead
_TRAIN_IDS, _LABEL_IDS, _INSTANCE_IDS = "_gtFine_labelTrainIds", "_gtFine_labelIds", "_gtFine_instanceIds"
_ALL_LABEL_IDS = range(34)  # of Cityscapes; those that are no class of training are unlabelled
Pairs: TypeAlias = tuple[tuple[str, str], ...]  # files of an image and of its labels, relative to the folders
_UNKNOWN = -1  # class of pixel values that the class list does not have


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class SemanticDataset:
    """One split. Holds paths but no open file, so that it travels to loader processes."""

    catalog: Catalog
    images: Path  # folder
    annotations: Path  # folder of label PNG
    pairs: Pairs
    classes_of_values: tuple[int, ...]  # class of each pixel value of a label PNG; `num_classes` is unlabelled
    objects: tuple[str, ...] = ()  # Cityscapes: files of the numbers of objects; () unless all images have one

    @classmethod
    def read(cls, images: Path, labels: Path, classes: ClassList, *, report: Report = stop) -> "SemanticDataset":
        """All images in a folder and those below it, with the labels of the same name.

        Those of Cityscapes are the labelTrainIds, which the user may have made, or the labelIds, which say the same.

        Raises:
            ValueError: there are no images. If `report` stops: one has no labels.
        """
        if not classes.values:
            raise ValueError("config.data.classes is a list without values of label images: give ade20k or cityscapes.")
        names = names_below(images, _IMAGE_TYPES)
        if not names:
            raise ValueError(f"{images} has no image ({', '.join(_IMAGE_TYPES)}). Give the folder of the images.")
        found = set(names_below(labels, (".png",)))
        pairs, of_values = _train_ids(names, classes)
        label_ids, of_label_ids = _label_ids(names, classes)
        if not all(label in found for _, label in pairs) and all(label in found for _, label in label_ids):
            pairs, of_values = label_ids, of_label_ids
        alone = [pair for pair in pairs if pair[1] not in found]
        for image, label in alone:
            report(
                "image without labels",
                f"{images / image} has no labels: there is no {labels / label} ({len(alone)} in all). "
                "Add the file, or drop the image.",
            )
        if len(alone) == len(pairs):
            raise ValueError(f"{labels} has no labels for any image of {images}. Give the folder of the label PNG.")
        pairs = tuple(pair for pair in pairs if pair[1] in found)
        objects = tuple(_label_name(image, _INSTANCE_IDS) for image, _ in pairs)
        numbered = all(name in found and Path(name).stem.endswith(_INSTANCE_IDS) for name in objects)
        return cls(
            catalog=classes.catalog,
            images=images,
            annotations=labels,
            pairs=pairs,
            classes_of_values=tuple(of_values.get(value, _UNKNOWN) for value in range(256)),
            objects=objects if numbered else (),
        )

    @property
    def truths(self) -> frozenset[str]:
        """What predictions can be compared with, see `CocoDataset.truths`."""
        return frozenset({"semantic", "objects"} if self.objects else {"semantic"})

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
            raise DataError(
                "unknown label value",
                f"{path} has pixels of value {', '.join(map(str, unknown))}, which mean nothing in the class list. "
                "Give label images of the numbering that config.data.classes expects: ADE20K 0 to 150, 0 for "
                "unlabelled; Cityscapes labelTrainIds 0 to 18, 255 for unlabelled; or add the value to your list.",
            )
        return classes

    def object_numbers(self, index: int) -> Int32[np.ndarray, "h w"]:
        """Cityscapes: what each pixel has in `instanceIds`, from 1000 times its label on if it belongs to an object.

        Raises:
            ValueError: the PNG is damaged.
        """
        return load_numbers(self.annotations / self.objects[index])

    def __getitem__(self, index: int) -> Example:
        """The image as it is in its file, with one object for each class in it, by ascending class."""
        image, classes = self.image(index), self.semantic_map(index)
        if image.shape[:2] != classes.shape:
            (height, width), (tall, wide) = classes.shape, image.shape[:2]
            raise DataError(
                "sizes disagree",
                f"{self.annotations / self.pairs[index][1]} is {width} x {height} pixels, but its image "
                f"{self.images / self.file_name(index)} is {wide} x {tall}. Restore one of them.",
            )
        present = np.bincount(classes.ravel(), minlength=self.catalog.num_classes)[: self.catalog.num_classes]
        labels = np.flatnonzero(present).astype(np.int32)
        return Example(
            image=image,
            labels=labels,
            is_thing=self.catalog.is_thing[labels],
            objects=Segments(classes, tuple(labels.tolist())),
        )


def _train_ids(names: Sequence[str], classes: ClassList) -> tuple[Pairs, dict[int, int]]:
    """Images with the labels that they are trained with, and the class of each value of those."""
    of_values = dict.fromkeys(classes.unlabelled, classes.catalog.num_classes)
    of_values |= {value: position for position, value in enumerate(classes.values)}
    return tuple((name, _label_name(name, _TRAIN_IDS)) for name in names), of_values


def _label_ids(names: Sequence[str], classes: ClassList) -> tuple[Pairs, dict[int, int]]:
    """The same with the original labels of Cityscapes, whose values are the ids of the classes.

    cityscapesScripts draws the same polygons into both kinds of files, so that one is a look-up in the other.
    """
    of_values = dict.fromkeys(_ALL_LABEL_IDS, classes.catalog.num_classes)
    of_values |= {category.id: position for position, category in enumerate(classes.catalog.categories)}
    return tuple((name, _label_name(name, _LABEL_IDS)) for name in names), of_values


def _label_name(image_name: str, ending: str) -> str:
    """The label PNG of an image: its own name, or in Cityscapes another end of it."""
    path = Path(image_name)
    stem = path.stem.removesuffix(_CITYSCAPES) + ending if path.stem.endswith(_CITYSCAPES) else path.stem
    return path.with_name(f"{stem}.png").as_posix()
