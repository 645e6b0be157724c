"""The object a notebook uses: images in, segments out."""

import dataclasses
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self, overload

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import UInt8
from PIL import Image, ImageOps

from maskdino_jax.checkpoints import Reader, torch_files, torch_import
from maskdino_jax.config import Config
from maskdino_jax.data import Catalog, PreparedImage, load_image, prepare_image
from maskdino_jax.inference.postprocess import Postprocessor
from maskdino_jax.inference.results import Segments
from maskdino_jax.inference.visualize import draw
from maskdino_jax.meshes import images_sharding, replicated
from maskdino_jax.model import ModelSpec
from maskdino_jax.structures import EvalBatch, Outputs

Picture = str | Path | Image.Image | UInt8[np.ndarray, "h w 3"]  # a file, or RGB pixels

_ALL = "all"


class Detector:
    """The compiled forward pass: one compilation for each shape of canvas, batches split over the mesh.

    Without `masks` they are left out of the outputs, and so the compiler leaves out all that is for them alone.
    """

    def __init__(self, spec: ModelSpec, mesh: Mesh, *, masks: bool = True) -> None:
        self.mesh = mesh
        self._split = images_sharding(mesh)
        self._seen: set[tuple[int, ...]] = set()

        def detect(variables: dict[str, Any], *batch: jax.Array | None) -> Outputs:
            whole = jax.lax.with_sharding_constraint(variables, replicated(mesh))
            outputs = spec.bind(whole).detect(*batch)
            return outputs if masks else dataclasses.replace(outputs, masks=None, mask_features=None, proposals=None)

        self._detect = jax.jit(detect, out_shardings=self._split)

    def __call__(self, variables: dict[str, Any], batch: EvalBatch) -> Outputs:
        """Outputs for a batch whose images divide among the devices; returns before they are computed."""
        if batch.images.shape not in self._seen:
            self._seen.add(batch.images.shape)
            logging.info("compiling the model for images of %s", " x ".join(map(str, batch.images.shape)))
        images, sizes, extents = jax.device_put((batch.images, batch.sizes, batch.extents), self._split)
        return self._detect(variables, images, sizes, extents)


class Predictor:
    """Segments of images, on the first device.

    Example:
        predictor = Predictor.from_checkpoint("runs/nuclei_panoptic")
        for segment in predictor("image.png").segments:
            segment.name, segment.score, segment.box, segment.mask
    """

    def __init__(self, spec: ModelSpec, variables: dict[str, Any], catalog: Catalog, config: Config) -> None:
        """
        Args:
            spec: the model, with as many classes as `catalog`.
            variables: its weights, `{"params": ..., "frozen": ...}`.
            config: image sizes of `data`, and tasks and thresholds of `inference`.

        Raises:
            ValueError: the classes are not as many as the catalog's, or the model cannot do `config.inference.tasks`.
        """
        tasks = tuple(config.inference.tasks)
        if not spec.config.masks and tasks != ("detection",):
            raise ValueError(
                f"config.inference.tasks = {tasks}: the weights come from a training without masks "
                "(config.model.masks = False). Give ('detection',)."
            )
        if spec.num_classes != catalog.num_classes:
            raise ValueError(
                f"the weights are for {spec.num_classes} classes but the catalog has {catalog.num_classes}: give the "
                "catalog they were trained with."
            )
        self.config = config
        self.catalog = catalog
        self._postprocessor = Postprocessor(catalog, config)
        mesh = _one_device()
        self._variables = jax.device_put(variables, replicated(mesh))
        self._detector = Detector(spec, mesh, masks=tasks != ("detection",))

    @classmethod
    def from_checkpoint(cls, path: str | Path, *, config: Config | None = None) -> Self:
        """Of the workdir of a run (its best checkpoint) or of a checkpoint.

        Args:
            config: image sizes, tasks and thresholds other than those of training; the model is the checkpoint's.

        Raises:
            FileNotFoundError: there is no checkpoint.
        """
        reader = Reader(Path(path))
        variables = reader.load(NamedSharding(_one_device(), P()))
        return cls(reader.spec, variables, Catalog.from_dict(reader.catalog), config or reader.config)

    @classmethod
    def from_torch(cls, path: str | Path, config: Config) -> Self:
        """Of a checkpoint of the official implementation (`.pth`).

        Args:
            config: the model that the weights belong to, and in `data.classes` the list of its classes.

        Raises:
            FileNotFoundError: there is no file.
            ValueError: the weights do not fit the model, or `data.classes` is empty or another list.
        """
        if not config.data.classes:
            raise ValueError(
                "config.data.classes = '': the file does not name its classes. Give the list it was trained with, "
                "such as 'coco_instances' or 'coco_panoptic'."
            )
        variables, num_classes = torch_import.variables_from_state_dict(torch_files.read(Path(path)), config.model)
        return cls(ModelSpec(config.model, num_classes), variables, Catalog.named(config.data.classes), config)

    @overload
    def __call__(self, image: Picture, task: str = _ALL) -> Segments: ...

    @overload
    def __call__(self, image: Sequence[Picture], task: str = _ALL) -> list[Segments]: ...

    def __call__(self, image: Picture | Sequence[Picture], task: str = _ALL) -> Segments | list[Segments]:
        """Segments in the pixels of the original image; instances from `config.inference.score_threshold` on.

        Args:
            image: a file, a PIL image, or RGB bytes [h, w, 3]; or a list of them, for a list of results. Images whose
                canvases are alike go through the model `config.inference.batch_size` at a time.
            task: "instance", "panoptic", "semantic", "detection", or "all" of `config.inference.tasks`.

        Raises:
            ValueError: the model does not do the task, or the pixels are not RGB bytes.
            FileNotFoundError: there is no such image.
        """
        tasks = self.config.inference.tasks if task == _ALL else (task,)
        if not set(tasks) <= set(self._postprocessor.tasks):
            raise ValueError(
                f"task = {task!r}: this model does {', '.join(self._postprocessor.tasks)} (config.inference.tasks). "
                "Ask for one of them, or for 'all'."
            )
        several = isinstance(image, list | tuple)
        results: dict[int, Segments] = {}
        for batch in self._batches([_pixels(picture) for picture in (image if several else [image])]):
            outputs = self._detector(self._variables, batch)
            for pending in self._postprocessor.begin(outputs, batch, tasks):
                results[pending.record] = self._confident(self._postprocessor.finish(pending))
        ordered = [results[record] for record in range(len(results))]
        return ordered if several else ordered[0]

    def draw(self, image: Picture, segments: Segments, style: str | None = None) -> UInt8[np.ndarray, "h2 w2 3"]:
        """Picture of `segments` over their image, at least 512 pixels high and wide.

        Args:
            style: "panoptic", "instance", "semantic" or "detection"; None: all in one picture.

        Raises:
            ValueError: the segments hold no such result.
        """
        return draw(_pixels(image), segments, style=style, score_threshold=self.config.inference.score_threshold)

    def _confident(self, segments: Segments) -> Segments:
        if segments.instances is None:
            return segments
        instances = segments.instances.above(self.config.inference.score_threshold)
        return dataclasses.replace(segments, instances=instances)

    def _batches(self, images: list[UInt8[np.ndarray, "h w 3"]]) -> Iterator[EvalBatch]:
        """Images of one canvas together: full batches, and the rest one by one, so that at most two programs are
        compiled for a canvas; `records` are places in `images`."""
        canvases: dict[tuple[int, ...], list[tuple[int, PreparedImage]]] = defaultdict(list)
        for place, pixels in enumerate(images):
            prepared = prepare_image(pixels, self.config.data)
            canvases[prepared.image.shape].append((place, prepared))
        together = self.config.inference.batch_size
        for rows in canvases.values():
            full = len(rows) - len(rows) % together
            parts = [rows[start : start + together] for start in range(0, full, together)]
            for part in [*parts, *([row] for row in rows[full:])]:
                places, prepared = zip(*part, strict=True)
                extents = [one.extent for one in prepared]
                yield EvalBatch(
                    images=np.stack([one.image for one in prepared]),
                    sizes=np.stack([one.size for one in prepared]),
                    extents=None if extents[0] is None else np.stack(extents),
                    original_sizes=np.array([images[place].shape[:2] for place in places], np.int32),
                    records=np.array(places, np.int32),
                    valid=np.ones(len(part), bool),
                )


def _one_device() -> Mesh:
    return jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])


def _pixels(image: Picture) -> UInt8[np.ndarray, "h w 3"]:
    """RGB bytes of a file, a PIL image or an array."""
    if isinstance(image, str | Path):
        return load_image(image)
    if isinstance(image, Image.Image):
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(
            f"an image of {pixels.dtype} with shape {pixels.shape}: give RGB bytes, uint8 of shape [height, width, 3]."
        )
    return pixels
