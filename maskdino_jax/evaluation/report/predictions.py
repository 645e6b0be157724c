"""Predictions that an evaluation has written, read image by image."""

import datetime
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image

from maskdino_jax.data.catalog import Catalog
from maskdino_jax.evaluation.regions import Regions, read_ids

INSTANCES = "instances_predictions.json"
PANOPTIC = "panoptic_predictions.json"
LABEL_MAPS = "semantic_predictions"  # folder of PNG, see `inference.results.Segments.save_label_map`


class Predictions:
    """What a folder holds: a COCO result file, panoptic predictions with their PNG, label maps, or some of these."""

    def __init__(self, folder: Path, catalog: Catalog) -> None:
        """
        Raises:
            FileNotFoundError: the folder has none of them.
        """
        self.folder, self._catalog = folder, catalog
        self._files = [folder / name for name in (INSTANCES, PANOPTIC, LABEL_MAPS) if (folder / name).exists()]
        if not self._files:
            raise FileNotFoundError(
                f"{folder} has no predictions ({INSTANCES}, {PANOPTIC}, {LABEL_MAPS}): evaluate a checkpoint first, "
                "--mode=eval with the same --workdir."
            )
        self.has_instances, self.has_panoptic, self.has_label_maps = (
            folder / name in self._files for name in (INSTANCES, PANOPTIC, LABEL_MAPS)
        )
        self._instances: dict[int | str, list[dict[str, Any]]] = defaultdict(list)
        self.has_masks = False
        for entry in _read(folder / INSTANCES) if self.has_instances else ():
            self._instances[entry["image_id"]].append(entry)
            self.has_masks |= "segmentation" in entry
        content = _read(folder / PANOPTIC)["annotations"] if self.has_panoptic else ()
        self._panoptic: dict[int | str, Mapping[str, Any]] = {entry["image_id"]: entry for entry in content}
        self._labels = np.full(max(category.id for category in catalog.categories) + 1, catalog.num_classes)
        self._labels[[category.id for category in catalog.categories]] = np.arange(catalog.num_classes)

    @staticmethod
    def exist(folder: Path) -> bool:
        """Whether a folder has predictions of any kind."""
        return any((folder / name).exists() for name in (INSTANCES, PANOPTIC, LABEL_MAPS))

    @property
    def written(self) -> datetime.datetime:
        """When the newest of the files was written, in the time zone of this machine."""
        return datetime.datetime.fromtimestamp(max(path.stat().st_mtime for path in self._files)).astimezone()

    def instances(self, image_id: int | str) -> list[dict[str, Any]]:
        """Entries of the result file, in its order."""
        return self._instances.get(image_id, [])

    def panoptic(self, image_id: int | str) -> Regions:
        """The panoptic map.

        Raises:
            ValueError: the file has no entry for the image.
        """
        if image_id not in self._panoptic:
            raise ValueError(
                f"{self.folder / PANOPTIC} has no entry for image {image_id!r}: it is of other images. Evaluate again "
                "into an empty --workdir."
            )
        entry = self._panoptic[image_id]
        path = (self.folder / PANOPTIC).with_suffix("") / entry["file_name"]
        return Regions.from_coco(read_ids(path), entry["segments_info"], self._catalog)

    def label_map(self, file_name: str) -> Int[np.ndarray, "h w"]:
        """Contiguous class of each pixel; the number of classes where there is none.

        Raises:
            FileNotFoundError: the folder has no map of the image.
        """
        with Image.open(label_map_path(self.folder, file_name)) as picture:
            ids = np.asarray(picture).astype(np.int64)
        return self._labels[np.minimum(ids, len(self._labels) - 1)]


def label_map_path(folder: Path, file_name: str) -> Path:
    """Where the label map of an image lies."""
    return folder / LABEL_MAPS / Path(file_name).with_suffix(".png")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}): evaluate again, or take it out of the folder.") from error
