"""Predictions as the zip files that COCO's evaluation server takes; images need no ground truth."""

import dataclasses
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from maskdino_jax.config import Config, ConfigError, DataConfig
from maskdino_jax.data import Catalog, load_image
from maskdino_jax.data.annotations import read_json
from maskdino_jax.data.files import find, leads_outside
from maskdino_jax.evaluation.gathering import Predict, gathered
from maskdino_jax.evaluation.loop import results
from maskdino_jax.evaluation.panoptic_file import PanopticFile
from maskdino_jax.evaluation.result_file import ResultFile
from maskdino_jax.inference.postprocess import Pending, Postprocessor
from maskdino_jax.inference.results import Segments, to_coco

_METHOD = "maskdino"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, repr=False)
class ImageList:
    """The images of a COCO JSON, whatever else is in it, such as `image_info_test-dev2017.json`."""

    folder: Path
    entries: tuple[dict[str, Any], ...]
    catalog: Catalog  # of the model

    @classmethod
    def read(cls, data: DataConfig, catalog: Catalog) -> "ImageList":
        """The split `data.val`: `images` and `annotations`.

        Raises:
            FileNotFoundError: one of them is not there.
            ValueError: the JSON lists no images.
        """
        root, places = Path(data.root).expanduser(), {}
        for field in ("images", "annotations"):
            relative = getattr(data.val, field)
            places[field] = find(root, relative) if data.root and relative else None
            if places[field] is None:
                raise FileNotFoundError(
                    f"config.data.val.{field} = {relative!r}: there is no {root / relative}. Give a path relative to "
                    f"config.data.root = {data.root!r}."
                )
        content = read_json(places["annotations"])
        entries = content.get("images") if isinstance(content, dict) else None
        wanted = {"id", "file_name", "height", "width"}
        if not entries or not all(wanted <= entry.keys() for entry in entries):
            raise ValueError(
                f"{places['annotations']} has no list of images with {', '.join(sorted(wanted))}: give a COCO JSON."
            )
        outside = [entry["file_name"] for entry in entries if leads_outside(str(entry["file_name"]))]
        if outside:
            raise ValueError(
                f"{places['annotations']}: file_name {outside[0]!r} leads out of the folder of its images, and results "
                "are written under that name: give a path relative to it, without '..'."
            )
        return cls(places["images"], tuple({key: entry[key] for key in wanted} for entry in entries), catalog)

    def __len__(self) -> int:
        return len(self.entries)

    def image_id(self, index: int) -> int | str:
        return self.entries[index]["id"]

    def file_name(self, index: int) -> str:
        return self.entries[index]["file_name"]

    def size(self, index: int) -> tuple[int, int]:
        """Height and width in pixels, as the JSON says."""
        return self.entries[index]["height"], self.entries[index]["width"]

    def image(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """RGB.

        Raises:
            FileNotFoundError, ValueError: the file is missing, damaged, or of another size than the JSON says.
        """
        path = self.folder / self.file_name(index)
        image = load_image(path)
        if image.shape[:2] != self.size(index):
            raise ValueError(f"{path} is {image.shape[:2]} pixels, its JSON says {self.size(index)}: correct it there.")
        return image


def submit(
    predict: Predict,
    images: ImageList,
    config: Config,
    output_dir: Path,
    *,
    log: Callable[[str], None] = logger.info,
) -> list[Path]:
    """Predict all images and write a zip for each kind of result that the server takes; returns their paths.

    They are `detections_SPLIT_maskdino_results.zip`, with a JSON of that name, and
    `panoptic_SPLIT_maskdino_results.zip`, with a JSON and a folder of PNG; SPLIT is `config.evaluation.submission`.
    The JSON and the PNG stay beside them.

    Raises:
        ConfigError: PNG of panoptic maps lie in the folder from before.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    name = lambda kind: output_dir / f"{kind}_{config.evaluation.submission}_{_METHOD}_results.json"
    instances, panoptic = name("detections"), name("panoptic")
    if "panoptic" in config.inference.tasks and panoptic.with_suffix("").exists():
        raise ConfigError(f"{panoptic.with_suffix('')} is there already: give a new --workdir, or remove it.")
    gathered(None)  # all processes have looked before one of them writes
    tasks = config.inference.tasks
    detections = ResultFile(instances) if {"instance", "detection"} & set(tasks) else None
    maps = PanopticFile(panoptic, images, images.catalog) if "panoptic" in tasks else None
    postprocessor = Postprocessor(images.catalog, config)

    def finish(pending: Pending) -> Segments:
        segments, record = postprocessor.finish(pending), pending.record
        if detections is not None:
            image_id = {"image_id": images.image_id(record)}
            detections.add(record, [image_id | entry for entry in to_coco(segments.instances, images.catalog)])
        if maps is not None:
            maps.add(record, segments.panoptic)
        return segments

    for _ in results(lambda batch: postprocessor.begin(predict(batch), batch), finish, images, config, log):
        pass
    files = [(file, path) for file, path in ((detections, instances), (maps, panoptic)) if file is not None]
    for file, path in files:
        file.close()
        if jax.process_index() == 0:
            _pack(path)
            log(f"{path.with_suffix('.zip')}: for COCO's evaluation server")
    return [path.with_suffix(".zip") for _, path in files]


def _pack(path: Path) -> None:
    """A zip of a JSON and the folder of its name, if there is one, beside them."""
    folder = path.with_suffix("")
    part = path.with_suffix(".part")
    with zipfile.ZipFile(part, "w") as archive:
        archive.write(path, path.name, zipfile.ZIP_DEFLATED)
        for image in sorted(folder.rglob("*.png")):
            archive.write(image, image.relative_to(path.parent).as_posix(), zipfile.ZIP_STORED)
    part.replace(path.with_suffix(".zip"))
