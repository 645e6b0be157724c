"""Predicted panoptic maps in COCO's format: a JSON and, beside it, a folder of PNG with its name."""

import json
from pathlib import Path

from maskdino_jax.data.catalog import Catalog
from maskdino_jax.evaluation.images import Images
from maskdino_jax.evaluation.result_file import ResultFile
from maskdino_jax.inference.results import Panoptic


class PanopticFile:
    """Written while the images come; `add` may be called from several threads, see `ResultFile`."""

    def __init__(self, path: Path, images: Images, catalog: Catalog) -> None:
        self._folder, self._images, self._catalog = path.with_suffix(""), images, catalog
        categories = [
            {"id": entry.id, "name": entry.name, "isthing": int(entry.is_thing), "color": entry.color}
            for entry in catalog.categories
        ]
        self._file = ResultFile(path, '{"annotations": [', f'], "categories": {json.dumps(categories)}}}')

    def add(self, record: int, result: Panoptic) -> None:
        """Write the map of one image."""
        name = Path(self._images.file_name(record)).with_suffix(".png")
        result.save(self._folder / name)
        image_id, info = self._images.image_id(record), result.info(self._catalog)
        self._file.add(record, [{"image_id": image_id, "file_name": name.as_posix(), "segments_info": info}])

    def close(self) -> None:
        """Write the JSON."""
        self._file.close()
