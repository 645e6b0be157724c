"""From what the model says of a batch to results of its images at the size of their files.

The device does the work that grows with pixels and queries (`segment.py`); mask logits never leave it. The host turns
bits into instances and merges the winners of pixels into a panoptic map: few and cheap steps, with as many rows as the
image has objects, which no compiled program can know.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Float32

from maskdino_jax.config import Config
from maskdino_jax.data.catalog import Catalog
from maskdino_jax.inference import segment
from maskdino_jax.inference.frame import Frame
from maskdino_jax.inference.results import Instances, Panoptic, PanopticSegment, Segments
from maskdino_jax.structures import EvalBatch, Outputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pending:
    """Results of one image that the device may still be computing, on its way to the host."""

    record: int
    frame: Frame
    found: dict[str, Any]  # task -> arrays


class Postprocessor:
    """Turns the outputs of a batch into segments: `begin` asks the device, `finish` does the host's part.

    `finish` may be called from several threads.
    """

    def __init__(self, catalog: Catalog, config: Config) -> None:
        """`config`: tasks and thresholds of `inference`, and the kind of class scores of `model`.

        Raises:
            ValueError: a model with a "no object" class is asked for more than semantic results.
        """
        self.catalog = catalog
        self.tasks = tuple(config.inference.tasks)
        self._options = config.inference
        self._softmax = config.model.class_scores == "softmax"
        if self._softmax and self.tasks != ("semantic",):
            raise ValueError(
                f"config.inference.tasks = {self.tasks}: a model with config.model.class_scores = 'softmax' makes "
                "semantic maps only. Give ('semantic',)."
            )
        # The official panoptic mode drops stuff from instances.
        self._allowed = catalog.is_thing if "panoptic" in self.tasks else np.ones(catalog.num_classes, bool)

    def begin(self, outputs: Outputs, batch: EvalBatch, tasks: tuple[str, ...] | None = None) -> list[Pending]:
        """Start on the valid images of a batch, in its order, without waiting for the device.

        Args:
            outputs: of the model for `batch`; each image is computed on the device that holds it.
            tasks: some of `config.inference.tasks`; None: all.

        Raises:
            ValueError: the model's classes are not those of the catalog.
        """
        expected = self.catalog.num_classes + self._softmax
        if outputs.logits.shape[-1] != expected:
            raise ValueError(
                f"the model has {outputs.logits.shape[-1]} columns of class scores but the catalog's "
                f"{self.catalog.num_classes} classes make {expected}: use the catalog of the "
                "weights."
            )
        canvas = batch.images.shape[1:3]
        stride = canvas[0] // outputs.masks.shape[2]
        pending = []
        for row, (local, place) in _rows(outputs).items():
            if batch.valid[row]:
                extent = canvas if batch.extents is None else batch.extents[row]
                sides = (batch.sizes[row], batch.original_sizes[row], extent)
                frame = Frame(*(tuple(int(side) for side in pair) for pair in sides), stride)
                pending.append(self.start(local, place, frame, int(batch.records[row]), tasks))
        return pending

    def start(
        self, outputs: Outputs, row: int, frame: Frame, record: int = 0, tasks: tuple[str, ...] | None = None
    ) -> Pending:
        """Start on one image: row `row` of `outputs`, which lie on one device."""
        options, logits, masks, row = self._options, outputs.logits, outputs.masks, np.int32(row)
        found: dict[str, Any] = {}
        for task in self.tasks if tasks is None else tasks:
            if task == "instance":
                found[task] = segment.instances(
                    logits, outputs.boxes, masks, row, frame.to_original(), self._allowed,
                    top=options.detections_per_image,
                )  # fmt: skip
            elif task == "panoptic":
                found[task] = segment.contest(
                    logits, masks, row, frame.to_original(),
                    threshold=options.object_threshold, temperature=options.temperature,
                )  # fmt: skip
            elif self._softmax:
                canvas = tuple(side * frame.stride for side in masks.shape[2:])
                found[task] = segment.classes_after(
                    logits, masks, row, frame.to_canvas(canvas), frame.canvas_to_original()
                )
            else:
                found[task] = segment.classes_before(
                    logits, masks, row, frame.to_original(), temperature=options.temperature
                )
        for array in jax.tree.leaves(found):
            array.copy_to_host_async()
        return Pending(record=record, frame=frame, found=found)

    def finish(self, pending: Pending) -> Segments:
        """Wait for the device and make the results."""
        found = jax.device_get(pending.found)
        frame = pending.frame
        height, width = frame.original_size
        return Segments(
            catalog=self.catalog,
            instances=_instances(found["instance"], frame) if "instance" in found else None,
            panoptic=(
                _panoptic(found["panoptic"], frame, self.catalog, self._options.overlap_threshold)
                if "panoptic" in found
                else None
            ),
            semantic=found["semantic"][:height, :width].astype(np.int32) if "semantic" in found else None,
        )


def _rows(outputs: Outputs) -> dict[int, tuple[Outputs, int]]:
    """For each image of the batch the outputs on the device that holds it, and its row there."""
    parts = {"logits": outputs.logits, "boxes": outputs.boxes, "masks": outputs.masks}
    if not isinstance(outputs.masks, jax.Array) or len(outputs.masks.sharding.device_set) == 1:
        return {row: (outputs, row) for row in range(len(outputs.masks))}
    shards = {name: {shard.device: shard for shard in array.addressable_shards} for name, array in parts.items()}
    rows = {}
    for device, shard in shards["masks"].items():
        local = dataclasses.replace(outputs, **{name: places[device].data for name, places in shards.items()})
        first = shard.index[0].start or 0
        rows |= {first + place: (local, place) for place in range(len(shard.data))}
    return dict(sorted(rows.items()))


def _instances(picks: segment.Picks, frame: Frame) -> Instances:
    """The picks that may be instances, with the predicted boxes in pixels of the original image, not clipped."""
    height, width = frame.original_size
    kept = np.flatnonzero(picks.kept)
    bits = picks.masks[:, :height, : -(-width // 8)]
    return Instances(
        scores=picks.scores[kept],
        labels=picks.labels[kept].astype(np.int32),
        boxes=_to_pixels(picks.boxes[kept], frame),
        queries=picks.queries[kept].astype(np.int32),
        bits=bits[picks.place[kept]],
        width=width,
    )


def _to_pixels(boxes: Float[np.ndarray, "n 4"], frame: Frame) -> Float32[np.ndarray, "n 4"]:
    """cxcywh as shares of the extent -> xyxy in pixels of the original image."""
    height, width = (
        extent / used * original
        for extent, used, original in zip(frame.extent, frame.size, frame.original_size, strict=True)
    )
    centre, half = boxes[:, :2].astype(np.float32), boxes[:, 2:].astype(np.float32) / 2
    corners = np.concatenate([centre - half, centre + half], axis=1)
    return corners * np.array([width, height, width, height], np.float32)


def _panoptic(contest: segment.Contest, frame: Frame, catalog: Catalog, overlap_threshold: float) -> Panoptic:
    """Keep the contestants that win most of what they claim.

    A segment is what a query owns inside its own mask (probability at least one half), unless the pixels it owns are
    fewer than `overlap_threshold` of its mask. Segments of one stuff class share an id (Kirillov et al. 2019,
    section 3).
    """
    height, width = frame.original_size
    owner, inside = contest.owner[:height, :width] + 1, contest.inside[:height, :width]  # 0: no one
    count = int(contest.count)
    owned = np.bincount(owner.ravel(), minlength=count + 1)[1:].tolist()
    areas = np.bincount(owner[inside], minlength=count + 1)[1:].tolist()
    ids = np.zeros(count + 1, np.int32)  # of each contestant's segment
    segments: dict[int, PanopticSegment] = {}
    stuff: dict[int, int] = {}  # class -> id
    for place, area in enumerate(areas):
        if not area or owned[place] / int(contest.claimed[place]) < overlap_threshold:
            continue
        label, score = int(contest.labels[place]), float(contest.confidence[place])
        thing = catalog.categories[label].is_thing
        number = len(segments) + 1 if thing else stuff.setdefault(label, len(segments) + 1)
        if number in segments:
            score, area = max(score, segments[number].score), area + segments[number].area
        segments[number] = PanopticSegment(id=number, label=label, is_thing=thing, score=score, area=area)
        ids[place + 1] = number
    return Panoptic(ids[owner] * inside, tuple(segments.values()))
