"""From what the model says of a batch to results of its images at the size of their files.

The device does the work that grows with pixels and queries (`segment.py`); mask logits never leave it. The host turns
bits into instances and merges the winners of pixels into a panoptic map: few and cheap steps, with as many rows as the
image has objects, which no compiled program can know.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Float32, Int

from maskdino_jax.config import Config
from maskdino_jax.data.catalog import Catalog
from maskdino_jax.inference import segment
from maskdino_jax.inference.frame import Frame, Taps
from maskdino_jax.inference.results import Instances, Panoptic, PanopticSegment, Segments
from maskdino_jax.meshes import images_sharding, images_spec
from maskdino_jax.structures import EvalBatch, Outputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pending:
    """Results of one image of a batch that the device may still be computing, on their way to the host."""

    record: int
    frame: Frame
    row: int
    found: dict[str, Any]  # task -> arrays of the whole batch


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
        # The official panoptic mode drops stuff from instances; no one asks for boxes of stuff either.
        things = {"panoptic", "detection"} & set(self.tasks)
        self._allowed = catalog.is_thing if things else np.ones(catalog.num_classes, bool)

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
        frames = frames_of(outputs, batch)
        started = self.start(outputs, frames, tasks)
        return pending_of(batch, frames, started)

    def start(self, outputs: Outputs, frames: list[Frame], tasks: tuple[str, ...] | None = None) -> dict[str, Any]:
        """Arrays of a batch for each task, rows where they were; each device computes those it holds."""
        options, logits, boxes, masks = self._options, outputs.logits, outputs.boxes, outputs.masks
        target, run = _target(frames), functools.partial(_run, _mesh_of(logits))
        to_original = [frame.to_original(target) for frame in frames]
        found: dict[str, Any] = {}
        for task in self.tasks if tasks is None else tasks:
            if task == "detection":
                function = functools.partial(segment.detections, top=options.detections_per_image)
                found[task] = run(function, logits, boxes, [self._allowed] * len(frames))
            elif task == "instance":
                function = functools.partial(segment.instances, top=options.detections_per_image)
                found[task] = run(function, logits, boxes, masks, to_original, [self._allowed] * len(frames))
            elif task == "panoptic":
                function = functools.partial(
                    segment.contest, threshold=options.object_threshold, temperature=options.temperature
                )
                found[task] = run(function, logits, masks, to_original)
            else:
                found[task] = self.classes(outputs, frames)
        for array in jax.tree.leaves(found):
            array.copy_to_host_async()
        return found

    def classes(
        self, outputs: Outputs, frames: list[Frame], *, mirrored: bool = False, sums: bool = False
    ) -> Int[Array, "b h w"] | Float[Array, "b h w k"]:
        """The class of each pixel, or the sums for all classes that it has the largest of.

        Args:
            mirrored: the batch was, and the result shall not be.
        """
        target, run = _target(frames), functools.partial(_run, _mesh_of(outputs.logits))

        def upright(taps: tuple[Taps, Taps], frame: Frame) -> tuple[Taps, Taps]:
            rows, columns = taps
            return rows, columns.mirrored(frame.original_size[1]) if mirrored else columns

        if self._softmax:
            canvas = tuple(side * frames[0].stride for side in outputs.masks.shape[2:])
            to_canvas = [frame.to_canvas(canvas) for frame in frames]
            onwards = [upright(frame.canvas_to_original(target), frame) for frame in frames]
            function = functools.partial(segment.classes_after, sums=sums)
            return run(function, outputs.logits, outputs.masks, to_canvas, onwards)
        to_original = [upright(frame.to_original(target), frame) for frame in frames]
        function = functools.partial(segment.classes_before, temperature=self._options.temperature, sums=sums)
        return run(function, outputs.logits, outputs.masks, to_original)

    def finish(self, pending: Pending) -> Segments:
        """Wait for the device and make the results."""
        found = jax.tree.map(lambda array: _row(array, pending.row), pending.found)
        frame = pending.frame
        height, width = frame.original_size
        picks = found.get("instance", found.get("detection"))
        return Segments(
            catalog=self.catalog,
            instances=None if picks is None else _instances(picks, frame),
            panoptic=(
                _panoptic(found["panoptic"], frame, self.catalog, self._options.overlap_threshold)
                if "panoptic" in found
                else None
            ),
            semantic=found["semantic"][:height, :width].astype(np.int32) if "semantic" in found else None,
        )


def frames_of(outputs: Outputs, batch: EvalBatch) -> list[Frame]:
    """How the images of a batch lie on their canvas."""
    canvas = batch.images.shape[1:3]
    stride = Frame.stride if outputs.masks is None else canvas[0] // outputs.masks.shape[2]
    extents = np.broadcast_to(canvas, (len(batch.images), 2)) if batch.extents is None else batch.extents
    pairs = lambda values: [tuple(pair) for pair in np.asarray(values).tolist()]
    return [
        Frame(size, original, extent, stride)
        for size, original, extent in zip(*map(pairs, (batch.sizes, batch.original_sizes, extents)), strict=True)
    ]


def pending_of(batch: EvalBatch, frames: list[Frame], found: dict[str, Any]) -> list[Pending]:
    """The valid images of a batch, in its order."""
    records = batch.records.tolist()
    return [
        Pending(record=records[row], frame=frames[row], row=row, found=found)
        for row in np.flatnonzero(batch.valid).tolist()
    ]


def _target(frames: list[Frame]) -> tuple[int, int]:
    """Height and width that all results of a batch fit into."""
    return tuple(max(sides) for sides in zip(*(frame.target for frame in frames), strict=True))


def _mesh_of(array: jax.Array | np.ndarray) -> Mesh | None:
    """The mesh that divides a batch; None: it lies on one device or on the host."""
    sharding = getattr(array, "sharding", None)
    return sharding.mesh if isinstance(sharding, NamedSharding) and len(sharding.device_set) > 1 else None


def _run(mesh: Mesh | None, function: functools.partial, *batches: Any) -> Any:
    """`function` of each image. A list holds one entry for each image, to be stacked."""
    stack = lambda batch: jax.tree.map(lambda *rows: np.stack(rows), *batch) if isinstance(batch, list) else batch
    arguments = [stack(batch) for batch in batches]
    if mesh is not None:
        arguments = jax.device_put(arguments, images_sharding(mesh))
    return _program(mesh, function.func, tuple(function.keywords.items()))(*arguments)


@functools.lru_cache(maxsize=64)
def _program(mesh: Mesh | None, function: Callable[..., Any], options: tuple[tuple[str, Any], ...]) -> Callable:
    """One program for a batch: each device goes through its images one after the other."""

    def each(*batch: Any) -> Any:
        if len(batch[0]) == 1:
            alone = function(*jax.tree.map(lambda x: x[0], batch), **dict(options))
            return jax.tree.map(lambda x: x[None], alone)
        return jax.lax.map(lambda one: function(*one, **dict(options)), batch)

    if mesh is not None:
        each = jax.shard_map(each, mesh=mesh, in_specs=images_spec(mesh), out_specs=images_spec(mesh), check_vma=False)
    return jax.jit(each)


def _row(array: jax.Array, row: int) -> np.ndarray:
    """A row of a batch on the host, from the device that holds it."""
    for shard in array.addressable_shards:
        start, stop, _ = shard.index[0].indices(len(array))
        if start <= row < stop:
            return np.asarray(shard.data)[row - start]
    raise IndexError(f"row {row} of a batch of {len(array)} is on another host.")


def _instances(picks: segment.Picks, frame: Frame) -> Instances:
    """The picks that may be instances, with the predicted boxes in pixels of the original image, not clipped."""
    height, width = frame.original_size
    kept = np.flatnonzero(picks.kept)
    bits = None if picks.masks is None else picks.masks[picks.place[kept], :height, : -(-width // 8)]
    return Instances(
        scores=picks.scores[kept],
        labels=picks.labels[kept].astype(np.int32),
        boxes=_to_pixels(picks.boxes[kept], frame),
        queries=picks.queries[kept].astype(np.int32),
        bits=bits,
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
