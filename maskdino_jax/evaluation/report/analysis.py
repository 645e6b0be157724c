"""One pass over a data set and its predictions: everything the page says, as numbers."""

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float, Int

from maskdino_jax.data.catalog import Catalog
from maskdino_jax.data.dataset import Dataset
from maskdino_jax.evaluation import mean_iou, panoptic_quality
from maskdino_jax.evaluation.objects import Objects, objects_of
from maskdino_jax.evaluation.panoptic_quality import Counts
from maskdino_jax.evaluation.regions import truth
from maskdino_jax.evaluation.report.detections import Detections, Scene, scene
from maskdino_jax.evaluation.report.predictions import Predictions

_THREADS = 4  # images are decoded side by side; NumPy and Pillow leave the interpreter lock


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranked:
    """How good the predictions of one image are."""

    record: int
    value: float  # of the ranking's measure, 0 to 1
    right: int  # segments or objects; in pixels for a semantic map
    wrong: int
    missed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranking:
    """Images, the worst first. `measure`: "PQ", "F1" or "mIoU"."""

    measure: str
    images: tuple[Ranked, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Analysis:
    """What is not measured, for want of predictions or of truth, is None or absent."""

    catalog: Catalog
    images: int
    threshold: float  # score from which a detection is shown and counted
    metrics: dict[str, float]  # as `evaluation.evaluate` names them
    detections: dict[str, Detections]  # by kind, "bbox" and "segm"
    pixels: Int[np.ndarray, "k k_or_none"] | None  # see `mean_iou.confusion`
    pixels_are_panoptic: bool  # there are no label maps: the classes of the panoptic map stand for them
    ranking: Ranking

    @property
    def main(self) -> Detections | None:
        """Masks, or boxes if there are no masks."""
        return self.detections.get("segm", self.detections.get("bbox"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Image:
    scenes: Mapping[str, Scene]
    counts: Counts | None
    pixels: Int[np.ndarray, "k k_or_none"] | None


def analyse(dataset: Dataset, predictions: Predictions, threshold: float) -> Analysis:
    """Compare all predictions with the truth.

    Raises:
        ValueError: the predictions are of other images, or the data set has no truth for any of them.
    """
    objects, kinds = _objects(dataset, predictions)
    classes = dataset.catalog.num_classes

    def look(record: int) -> _Image:
        image_id = dataset.image_id(record)
        scenes: dict[str, Scene] = {}
        if objects is not None:
            things, entries = objects[image_id], predictions.instances(image_id)
            scenes = {kind: scene(things, entries, kind) for kind in kinds}
        counts = None
        if predictions.has_panoptic and "panoptic" in dataset.truths:
            counts = panoptic_quality.count(truth(dataset, record), predictions.panoptic(image_id), classes)
        return _Image(scenes=scenes, counts=counts, pixels=_pixels(dataset, predictions, record))

    with ThreadPoolExecutor(_THREADS) as pool:
        images = list(pool.map(look, range(len(dataset))))
    detections = {kind: Detections.of([image.scenes[kind] for image in images], objects.categories) for kind in kinds}
    metrics = {f"{kind}/{name}": value for kind in kinds for name, value in detections[kind].metrics.items()}
    counts = [image.counts for image in images if image.counts is not None]
    if counts:
        metrics |= panoptic_quality.summarize(sum(counts, Counts.zeros(classes)), dataset.catalog)
    pixels = [image.pixels for image in images if image.pixels is not None]
    if pixels:
        metrics |= mean_iou.summarize(np.sum(pixels, axis=0), dataset.catalog)
    if not metrics:
        raise ValueError(
            f"nothing in {predictions.folder} can be compared with {dataset!r}: give the config of the data that the "
            "predictions are of."
        )
    return Analysis(
        catalog=dataset.catalog,
        images=len(images),
        threshold=threshold,
        metrics=metrics,
        detections=detections,
        pixels=np.sum(pixels, axis=0) if pixels else None,
        pixels_are_panoptic=not predictions.has_label_maps,
        ranking=_ranking(counts, detections, pixels, threshold),
    )


def _objects(dataset: Dataset, predictions: Predictions) -> tuple[Objects | None, tuple[str, ...]]:
    """The true objects and what can be compared of them."""
    if not (predictions.has_instances and {"instances", "panoptic"} & dataset.truths):
        return None, ()
    content = dataset.instances_truth()
    with_masks = content is None or all("segmentation" in entry for entry in content["annotations"])
    masks = predictions.has_masks and with_masks
    return objects_of(dataset, masks), ("bbox", "segm") if masks else ("bbox",)


def _pixels(dataset: Dataset, predictions: Predictions, record: int) -> Int[np.ndarray, "k k_or_none"] | None:
    """Of one image; None if there is nothing to compare."""
    if "semantic" not in dataset.truths or not (predictions.has_label_maps or predictions.has_panoptic):
        return None
    classes = dataset.catalog.num_classes
    if predictions.has_label_maps:
        found = predictions.label_map(dataset.file_name(record))
    else:
        found = predictions.panoptic(dataset.image_id(record)).classes(classes)
    return mean_iou.confusion(expected_classes(dataset, record), found, classes)


def expected_classes(dataset: Dataset, record: int) -> Int[np.ndarray, "h w"]:
    """The true class of each pixel, the number of classes where there is none."""
    if "panoptic" in dataset.truths:
        return truth(dataset, record).classes(dataset.catalog.num_classes)
    return dataset.semantic_map(record)


def _ranking(
    counts: Sequence[Counts],
    detections: Mapping[str, Detections],
    pixels: Sequence[Int[np.ndarray, "k k_or_none"]],
    threshold: float,
) -> Ranking:
    """By the first measure there is; images without truth and predictions are left out."""
    if counts:
        measure = "PQ"
        rows = [(one.matched.sum(), one.wrong.sum(), one.missed.sum()) for one in counts]
        overlap = [one.iou.sum() for one in counts]
    elif detections:
        measure = "F1"
        rows = detections.get("segm", detections["bbox"]).per_image(threshold).tolist()
        overlap = [right for right, _, _ in rows]
    else:
        return Ranking(measure="mIoU", images=tuple(sorted(map(_of_pixels, range(len(pixels)), pixels), key=_place)))
    images = [
        Ranked(
            record=record,
            value=float(shared / (right + (wrong + missed) / 2)),
            right=int(right),
            wrong=int(wrong),
            missed=int(missed),
        )
        for record, ((right, wrong, missed), shared) in enumerate(zip(rows, overlap, strict=True))
        if right + wrong + missed
    ]
    return Ranking(measure=measure, images=tuple(sorted(images, key=_place)))


def _of_pixels(record: int, table: Int[np.ndarray, "k k_or_none"]) -> Ranked:
    """Mean IoU of the classes that one image has."""
    right = np.diag(table)
    union: Float[np.ndarray, "k"] = table.sum(axis=1) + table.sum(axis=0)[:-1] - right
    here = table.sum(axis=1) > 0
    value = float((right[here] / union[here]).mean()) if here.any() else 1.0
    wrong = int(table.sum() - right.sum())
    return Ranked(record=record, value=value, right=int(right.sum()), wrong=wrong, missed=0)


def _place(image: Ranked) -> tuple[float, int, int]:
    """Where an image stands: of equal values the one with more errors comes first."""
    return image.value, -(image.wrong + image.missed), image.record
