"""Time a prediction from file to segments, and compare the two kinds of canvas.

    python -m benchmarks.predictor --config=configs/coco_instance.py:r50 --images=tests/data/coco/val2017

The weights are random: time does not depend on them. Times are medians over `--repeats` of the whole `Predictor` call:
reading, resizing, model, post-processing. The second table predicts every image on its own canvas (`exact`) and on one
of a few shared ones (`bucketed`).
"""

import copy
import logging
import statistics
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from maskdino_jax import Predictor
from maskdino_jax.data import Catalog, load_image, prepare_image
from maskdino_jax.inference.results import Segments
from maskdino_jax.model import ModelSpec
from tests.weights import random_variables

_CONFIG = config_flags.DEFINE_config_file("config", "configs/coco_instance.py:r50", "Config file and variant.")
_IMAGES = flags.DEFINE_string("images", "tests/data/coco/val2017", "Folder of JPEG images.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed calls for each image.")


def _predictor(eval_canvas: str) -> Predictor:
    config = copy.deepcopy(_CONFIG.value)
    config.data.eval_canvas = eval_canvas
    catalog = Catalog.named(config.data.classes)
    spec = ModelSpec(config.model, catalog.num_classes)
    return Predictor(spec, random_variables(spec), catalog, config)


def _time(predictor: Predictor, path: Path) -> tuple[float, float]:
    """Seconds of the first call, which compiles, and median of the others."""
    seconds = []
    for _ in range(_REPEATS.value + 1):
        start = time.perf_counter()
        predictor(path)
        seconds.append(time.perf_counter() - start)
    return seconds[0], statistics.median(seconds[1:])


def _difference(one: Segments, other: Segments) -> tuple[int, float, int]:
    """Pairs of query and class that both have, their largest difference of scores, and pixels of masks that differ."""
    places = [
        {pair: place for place, pair in enumerate(zip(found.queries.tolist(), found.labels.tolist(), strict=True))}
        for found in (one.instances, other.instances)
    ]
    common = sorted(set(places[0]) & set(places[1]))
    first, second = ([rows[pair] for pair in common] for rows in places)
    scores = np.abs(one.instances.scores[first] - other.instances.scores[second]).max()
    pixels = np.bitwise_count(one.instances.bits[first] ^ other.instances.bits[second]).sum()
    return len(common), float(scores), int(pixels)


def main(_: list[str]) -> None:
    logging.getLogger("jax").setLevel(logging.WARNING)
    paths = sorted(Path(_IMAGES.value).glob("*.jpg"))
    logging.info("jax %s on %s", jax.__version__, jax.devices()[0].device_kind)
    results = {}
    for canvas in ("exact", "bucketed"):
        predictor = _predictor(canvas)
        for path in paths:
            first, median = _time(predictor, path)
            results[canvas, path] = predictor(path)
            shape = prepare_image(load_image(path), predictor.config.data).image.shape[:2]
            logging.info("%s, %s on %d x %d: first %.2f s, then %.2f s", canvas, path.name, *shape, first, median)
    for path in paths:
        common, score, pixels = _difference(results["exact", path], results["bucketed", path])
        said = f"{common} instances in common, which differ by {score:.1e} in scores and {pixels} pixels of masks"
        logging.info("%s: %s", path.name, said)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    app.run(main)
