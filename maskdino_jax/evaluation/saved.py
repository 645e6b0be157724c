"""Score predictions of any origin that lie in files of COCO's formats."""

import json
import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from maskdino_jax.data.catalog import Catalog
from maskdino_jax.evaluation import mean_iou, panoptic_quality
from maskdino_jax.evaluation.average_precision import KINDS, average_precision
from maskdino_jax.evaluation.objects import run_lengths
from maskdino_jax.evaluation.panoptic_quality import Counts
from maskdino_jax.evaluation.regions import Regions, read_ids

_THREADS = min(8, os.cpu_count() or 1)  # read PNG; each holds two maps

Json = dict[str, Any]


def score_instances(
    truth: Path, predictions: Path, *, engine: str = "fast", boundary: bool = False
) -> dict[str, float]:
    """Box and mask AP of a COCO result file, see `average_precision`; all images of the ground truth count.

    As in pycocotools, the size of a detection is the area of its box if the file has boxes, for masks too, else that
    of its mask; and where there are masks only, boxes are those around them. With boxes only, boxes are scored alone.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: one of them is something else, or names images or categories that the ground truth lacks.
    """
    content = _tables(truth, ("images", "annotations", "categories"))
    if any("segments_info" in entry for entry in content["annotations"][:1]):
        raise ValueError(f"{truth} is a panoptic JSON: give it as --panoptic, or an instances JSON here.")
    sizes = {image["id"]: [image["height"], image["width"]] for image in content["images"]}
    results = _read(predictions)
    if not isinstance(results, list):
        raise ValueError(f"{predictions} is no COCO result file, a list of detections: give one.")
    _check(predictions, results, sizes, {category["id"] for category in content["categories"]})
    counts = Counter(key for entry in results for key in ("bbox", "segmentation") if entry.get(key))
    for key, count in counts.items():
        if count < len(results):
            raise ValueError(
                f"{predictions}: {len(results) - count} detections have no {key}, others do: give all one."
            )
    known = any("segmentation" in entry for entry in content["annotations"]) or not content["annotations"]
    masks = known and (counts["segmentation"] or not results)
    for entry in results:
        _complete(entry, sizes[entry["image_id"]])
    kinds = (*KINDS, *(("boundary",) if boundary else ())) if masks else ("bbox",)
    return average_precision(content, results, sizes, kinds, engine)


def _check(path: Path, results: Sequence[Json], sizes: Mapping[Any, list[int]], categories: set[Any]) -> None:
    """Raise if an entry is no detection of an image and a category of the ground truth."""
    for place, entry in enumerate(results):
        what = f"{path}: detection {place}"
        missing = [
            key for key in ("image_id", "category_id", "score") if not isinstance(entry, dict) or key not in entry
        ]
        if missing or not (entry.get("bbox") or entry.get("segmentation")):
            raise ValueError(f"{what} has no {missing[0] if missing else 'bbox or segmentation'}: give a result file.")
        if entry["image_id"] not in sizes:
            raise ValueError(
                f"{what} is of image {entry['image_id']!r}, which the ground truth lacks: give files of one split."
            )
        if entry["category_id"] not in categories:
            known = ", ".join(map(str, sorted(categories)))
            raise ValueError(
                f"{what} has category {entry['category_id']!r}, the ground truth has {known}: give the ids of the data "
                "set, not positions of a model's outputs."
            )


def _complete(entry: Json, size: list[int]) -> None:
    """Run lengths, box and area of a detection."""
    if entry.get("segmentation"):
        runs = entry["segmentation"] = run_lengths(entry["segmentation"], size)
        if list(runs["size"]) != size:
            raise ValueError(
                f"a mask of image {entry['image_id']!r} has size {runs['size']}, the image {size}: give height, width."
            )
    if entry.get("bbox"):
        entry["area"] = entry["bbox"][2] * entry["bbox"][3]
    else:
        entry["area"] = float(coco_mask.area(entry["segmentation"]))
        entry["bbox"] = coco_mask.toBbox(entry["segmentation"]).tolist()


def score_panoptic(truth: Path, truth_dir: Path, predictions: Path, predictions_dir: Path) -> dict[str, float]:
    """PQ of saved panoptic maps, and mIoU of the semantic maps that they contain; pixels without a segment are wrong
    there.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: one of them is something else; an image has no prediction; a PNG and its JSON name different
            segments.
    """
    expected = _tables(truth, ("annotations", "categories"))
    catalog = Catalog.from_coco(expected["categories"])
    found = {entry["image_id"]: entry for entry in _segments(predictions, _tables(predictions, ("annotations",)))}
    lock = threading.Lock()
    classes = catalog.num_classes
    table = np.zeros((classes, classes + 1), np.int64)

    def score(entry: Json) -> Counts:
        if entry["image_id"] not in found:
            raise ValueError(f"{predictions} has no entry for image {entry['image_id']!r}: predict every image.")
        wanted = _load(truth, truth_dir, entry, catalog)
        given = _load(predictions, predictions_dir, found[entry["image_id"]], catalog)
        if wanted.ids.shape != given.ids.shape:
            raise ValueError(
                f"{predictions_dir / found[entry['image_id']]['file_name']} has {given.ids.shape} pixels, the ground "
                f"truth {wanted.ids.shape}: give maps in the size of the image."
            )
        more = mean_iou.confusion_of_regions(wanted, given, classes)
        with lock:
            np.add(table, more, out=table)
        return panoptic_quality.count(wanted, given, classes)

    with ThreadPoolExecutor(_THREADS) as pool:
        counts = sum(pool.map(score, _segments(truth, expected)), Counts.zeros(classes))
    return panoptic_quality.summarize(counts, catalog) | mean_iou.summarize(table, catalog)


def _segments(path: Path, content: Json) -> list[Json]:
    for entry in content["annotations"]:
        for key in ("image_id", "file_name", "segments_info"):
            if key not in entry:
                raise ValueError(f"{path} is no panoptic JSON: an annotation has no {key}. Give one.")
    return content["annotations"]


def _load(path: Path, folder: Path, entry: Json, catalog: Catalog) -> Regions:
    try:
        regions = Regions.from_coco(read_ids(folder / entry["file_name"]), entry["segments_info"], catalog)
    except KeyError as error:
        raise ValueError(f"{path}: a segment of image {entry['image_id']!r} has no {error}.") from error
    except ValueError as error:
        raise ValueError(f"{path}: image {entry['image_id']!r}: {error}") from error
    odd = regions.painted() ^ set(regions.segment_ids.tolist())
    if odd:
        raise ValueError(
            f"{folder / entry['file_name']} and {path} disagree on segments {sorted(odd)[:5]}: list exactly the ids "
            "that are painted."
        )
    return regions


def _tables(path: Path, names: tuple[str, ...]) -> Json:
    content = _read(path)
    for name in names:
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise ValueError(f"{path} has no list {name!r}: give a COCO annotation file.")
    return content


def _read(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file.")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}): give a COCO file.") from error
