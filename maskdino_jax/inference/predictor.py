"""The object a notebook uses: images in, segments out."""

import dataclasses
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, overload

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import UInt8

from maskdino_jax.checkpoints import Reader, torch_files, torch_import
from maskdino_jax.config import Config, InferenceConfig
from maskdino_jax.data import Catalog
from maskdino_jax.inference.detector import Detector
from maskdino_jax.inference.pipeline import in_order
from maskdino_jax.inference.postprocess import Pending, Postprocessor
from maskdino_jax.inference.results import Segments
from maskdino_jax.inference.slicing import Mosaic, tiles
from maskdino_jax.inference.sources import NamedImage, Picture, Source, open_source, read
from maskdino_jax.inference.visualize import draw
from maskdino_jax.meshes import replicated
from maskdino_jax.model import ModelSpec
from maskdino_jax.structures import EvalBatch

_ALL = "all"


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """One result of a stream, with the image that it belongs to."""

    name: str  # of the file, or made of the number of the frame or picture
    image: UInt8[np.ndarray, "h w 3"]  # RGB
    segments: Segments


class Predictor:
    """Segments of images, on the first device.

    Example:
        predictor = Predictor.from_checkpoint("runs/nuclei_panoptic")
        for segment in predictor("image.png").segments:
            segment.name, segment.score, segment.box, segment.mask
        for found in predictor.stream("photos"):  # a folder or a video, one result at a time
            found.name, found.image, found.segments
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
    def __call__(self, image: Picture, task: str = _ALL, **options: float | None) -> Segments: ...

    @overload
    def __call__(self, image: Sequence[Picture], task: str = _ALL, **options: float | None) -> list[Segments]: ...

    def __call__(
        self,
        image: Picture | Sequence[Picture],
        task: str = _ALL,
        *,
        score_threshold: float | None = None,
        slice_size: int | None = None,
        slice_overlap: float | None = None,
    ) -> Segments | list[Segments]:
        """Segments in the pixels of the original image.

        Args:
            image: a file, an http(s) address, a PIL image, or RGB bytes [h, w, 3]; or a list of them, for a list of
                results. Images whose canvases are alike go through the model `config.inference.batch_size` at a time.
            task: "instance", "panoptic", "semantic", "detection", or "all" of `config.inference.tasks`.
            score_threshold: of instances and detections; None: `config.inference.score_threshold`.
            slice_size, slice_overlap: of tiles that larger images are cut into, see `inference.slicing`; None: those
                of `config.inference`.

        Raises:
            ValueError: the model does not do the task, an option is out of its range, the file is no image, or the
                pixels are not RGB bytes.
            FileNotFoundError: there is no such image.
            ConnectionError: an address does not answer.
        """
        options = self._options(task, score_threshold, slice_size, slice_overlap)
        if isinstance(image, list | tuple):
            pictures = (read(picture) for picture in image)
            return [found.segments for found in self._predictions(pictures, options)]
        (found,) = self._predictions(iter([read(image)]), options)
        return found.segments

    def stream(
        self,
        source: Source,
        task: str = _ALL,
        *,
        score_threshold: float | None = None,
        slice_size: int | None = None,
        slice_overlap: float | None = None,
    ) -> Iterator[Prediction]:
        """Results of a source one by one in its order, while it is read: at most `2 * config.inference.batch_size`
        images (of sliced ones, tiles) are in memory that have not been answered.

        Args:
            source: a picture as above, a folder of images, a video (the extra `video`), or anything that yields
                pictures, such as a list or a generator of camera frames.

        The other arguments and the errors are those of a call; ModuleNotFoundError: the extra is not installed.
        """
        options = self._options(task, score_threshold, slice_size, slice_overlap)
        return self._predictions(open_source(source), options)

    def warm_up(self, *sizes: tuple[int, int], task: str = _ALL, slice_size: int | None = None) -> None:
        """Compile for images of these sizes, alone and `config.inference.batch_size` together, so that the first real
        one does not wait. The log says what is compiled and how long it took.

        Args:
            sizes: height, width in pixels of the files. Sizes with the same canvas share a program of the model, those
                that are the same in units of 128 pixels also the programs of post-processing.
        """
        options = self._options(task, None, slice_size, None)
        for height, width in sizes:
            tile = tiles(height, width, options.slice_size, options.slice_overlap)[0].shown
            blank = np.zeros((tile.bottom, tile.right, 3), np.uint8)
            for count in sorted({1, options.batch_size}):
                start = time.perf_counter()
                self([blank] * count, task, slice_size=0)
                took = time.perf_counter() - start
                logging.info("warm-up: %d of %d x %d pixels at a time, %.1f s", count, *blank.shape[:2], took)

    def draw(
        self,
        image: Picture,
        segments: Segments,
        style: str | None = None,
        *,
        score_threshold: float | None = None,
    ) -> UInt8[np.ndarray, "h2 w2 3"]:
        """Picture of `segments` over their image, at least 512 pixels high and wide.

        Args:
            style: "panoptic", "instance", "semantic", "detection", or None: all in one picture.
            score_threshold: of instances and detections; None: `config.inference.score_threshold`.

        Raises:
            ValueError: there is no such style, or no such result.
        """
        threshold = self._options(_ALL, score_threshold, None, None).score_threshold
        return draw(read(image).pixels, segments, score_threshold=threshold, style=style)

    def _options(
        self, task: str, score_threshold: float | None, slice_size: int | None, slice_overlap: float | None
    ) -> InferenceConfig:
        """The options of a call: those of the config where it gives none."""
        options = self.config.inference
        tasks = options.tasks if task == _ALL else (task,)
        if not set(tasks) <= set(self._postprocessor.tasks):
            raise ValueError(
                f"task = {task!r}: this model does {', '.join(self._postprocessor.tasks)} (config.inference.tasks). "
                "Ask for one of them, or for 'all'."
            )
        if score_threshold is not None and not 0 <= score_threshold <= 1:
            raise ValueError(f"score_threshold = {score_threshold}: give a number from 0 to 1.")
        given = {"score_threshold": score_threshold, "slice_size": slice_size, "slice_overlap": slice_overlap}
        given = {name: value for name, value in given.items() if value is not None}
        options = dataclasses.replace(options, tasks=tuple(tasks), **given)
        tiles(1, 1, options.slice_size, options.slice_overlap)  # refuses what no image can be cut by
        return options

    def _predictions(self, images: Iterator[NamedImage], options: InferenceConfig) -> Iterator[Prediction]:
        """One for each image, once all of its tiles are answered."""
        read_ahead: deque[tuple[NamedImage, Mosaic]] = deque()

        def parts() -> Iterator[UInt8[np.ndarray, "h w 3"]]:
            for image in images:
                size = image.pixels.shape[:2]
                layout = tiles(*size, options.slice_size, options.slice_overlap)
                read_ahead.append((image, Mosaic(self.catalog, size, layout)))
                for tile in layout:
                    yield tile.pixels(image.pixels)

        for found in self._answers(parts(), options):
            image, mosaic = read_ahead[0]
            mosaic.add(found)
            if mosaic.complete:
                read_ahead.popleft()
                yield Prediction(image.name, image.pixels, mosaic.result())

    def _answers(self, parts: Iterable[UInt8[np.ndarray, "h w 3"]], options: InferenceConfig) -> Iterator[Segments]:
        """What the model finds in images, or in tiles of them, in their order."""

        def begin(batch: EvalBatch) -> list[Pending]:
            return self._postprocessor.begin(self._detector(self._variables, batch), batch, options.tasks)

        def finish(pending: Pending) -> Segments:
            found = self._postprocessor.finish(pending)
            if found.instances is None:
                return found
            return dataclasses.replace(found, instances=found.instances.above(options.score_threshold))

        return in_order(parts, begin, finish, data=self.config.data, together=options.batch_size)


def _one_device() -> Mesh:
    return jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
