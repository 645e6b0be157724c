"""COCO average precision of boxes, masks and mask boundaries."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from maskdino_jax.data.dataset import Dataset
from maskdino_jax.evaluation import reference
from maskdino_jax.evaluation.boundary import boundaries_overlap
from maskdino_jax.evaluation.gathering import gathered
from maskdino_jax.evaluation.matching import Candidates, assign, boxes_overlap, candidates, masks_overlap
from maskdino_jax.evaluation.objects import Annotated, Objects, objects_of
from maskdino_jax.evaluation.precision import curves, summarize
from maskdino_jax.evaluation.result_file import ResultFile
from maskdino_jax.inference.results import Instances, to_coco

KINDS = ("bbox", "segm")
_OVERLAP = {"bbox": boxes_overlap, "segm": masks_overlap, "boundary": boundaries_overlap}

Found = Mapping[str, Candidates]  # of an image, by kind


class AveragePrecision:
    """Scores the instances of a data set as they come, and writes them as a COCO result file if given a folder.

    `add` may be called from several threads. What stays of an image are some bytes for each detection.
    """

    def __init__(
        self, dataset: Dataset, output_dir: Path | None = None, kinds: tuple[str, ...] = KINDS, engine: str = "fast"
    ):
        """`kinds` and `engine` as in `average_precision`; pycocotools keeps all detections until the end.

        Raises:
            ValueError: the truth lacks an image of the data set.
        """
        self._dataset, self._kinds, self._engine = dataset, kinds, engine
        self._file = None if output_dir is None else ResultFile(output_dir / "instances_predictions.json")
        self._objects = objects_of(dataset, kinds != ("bbox",))
        self._found: dict[int | str, Found] = {}  # of each image
        self._results: dict[int | str, list[dict[str, Any]]] = {}

    def add(self, record: int, result: Instances) -> None:
        """Score the results of one image."""
        image_id = self._dataset.image_id(record)
        entries = [{"image_id": image_id} | entry for entry in to_coco(result, self._dataset.catalog)]
        if self._file is not None:
            self._file.add(record, entries)
        if self._engine == "fast":
            self._found[image_id] = _candidates(self._objects[image_id], entries, self._kinds)
        else:
            self._results[image_id] = entries

    def compute(self) -> dict[str, float]:
        """All metrics, see `average_precision`; writes `instances_predictions.json`."""
        if self._file is not None:
            self._file.close()
        image_ids = sorted(map(self._dataset.image_id, range(len(self._dataset))))
        if self._engine == "fast":
            known = {image_id: found for part in gathered(self._found) for image_id, found in part.items()}
            missing = lambda image_id: _candidates(self._objects[image_id], [], self._kinds)
            return _score([known.get(i) or missing(i) for i in image_ids], self._objects, self._kinds)
        known = {image_id: entries for part in gathered(self._results) for image_id, entries in part.items()}
        results = [entry for image_id in image_ids for entry in known.get(image_id, [])]
        return _by_reference(self._objects, results, image_ids, self._kinds)


def average_precision(
    content: Mapping[str, Any],
    results: Iterable[Mapping[str, Any]],
    image_ids: Iterable[int | str],
    kinds: tuple[str, ...] = KINDS,
    engine: str = "fast",
) -> dict[str, float]:
    """AP as fractions of one, at most 100 detections for each class in an image.

    The keys are `bbox/AP`, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl, and AP-<name> of each class, and
    the same of other kinds. What the ground truth has no object for, such as large objects or a class, is left out.

    Args:
        content: a COCO instances file; results: entries of a COCO result file; image_ids: the images that count.
            The size of a detection is its `area` if it has one, else that of the box or of the mask respectively.
        kinds: boxes (`bbox`), masks (`segm`), outlines of masks (`boundary`); with `bbox` alone, neither side needs a
            "segmentation".
        engine: `fast` or `pycocotools`, which has no `boundary`; they give the same numbers.
    """
    objects, image_ids = Annotated(content, kinds != ("bbox",)), sorted(set(image_ids))
    if engine != "fast":
        return _by_reference(objects, list(results), image_ids, kinds)
    detections = defaultdict(list)
    for entry in results:
        detections[entry["image_id"]].append(entry)
    found = [_candidates(objects[image_id], detections[image_id], kinds) for image_id in image_ids]
    return _score(found, objects, kinds)


def _candidates(
    objects: Sequence[Mapping[str, Any]], entries: Sequence[Mapping[str, Any]], kinds: tuple[str, ...]
) -> Found:
    return {kind: candidates(objects, entries, "bbox" if kind == "bbox" else "segm", _OVERLAP[kind]) for kind in kinds}


def _score(images: Sequence[Found], objects: Objects, kinds: tuple[str, ...]) -> dict[str, float]:
    ids, names = ([category[key] for category in objects.categories] for key in ("id", "name"))
    metrics = {}
    for kind in kinds:
        found = Candidates.joined([image[kind] for image in images])
        scores = summarize(curves(found, assign(found), ids), names)
        metrics |= {f"{kind}/{name}": value for name, value in scores.items()}
    return metrics


def _by_reference(
    objects: Objects, results: Sequence[Mapping[str, Any]], image_ids: Sequence[int | str], kinds: tuple[str, ...]
) -> dict[str, float]:
    scores = {kind: reference.score(objects, results, image_ids, kind) for kind in kinds}
    return {f"{kind}/{name}": value for kind, values in scores.items() for name, value in values.items()}
