"""Predictions of a stream as files, each written as it comes: nothing of an image is kept once it is on disk."""

import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from maskdino_jax.inference.predictor import Prediction
from maskdino_jax.progress import Bar

RECORDS = "predictions.json"


def write_predictions(
    predictions: Iterable[Prediction], folder: Path, draw: Callable[[Prediction], UInt8[np.ndarray, "h w 3"]]
) -> list[Path]:
    """A picture of each, NAME.png; its panoptic map, NAME_panoptic.png; its semantic map, NAME_labels.png; and
    `predictions.json` with the instances of all. Returns the paths of the pictures.

    Of images whose names differ by the ending alone the later ones keep it, as in NAME_jpg.png.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[Path, None] = {}
    with _json_list(folder / RECORDS) as add, Bar("predicting", None, "image") as bar:
        for found in predictions:
            segments, stem = found.segments, Path(found.name).stem
            picture = folder / f"{stem}.png"
            if picture in pictures:
                stem = found.name.replace(".", "_")
                picture = folder / f"{stem}.png"
            pictures[picture] = None
            Image.fromarray(draw(found)).save(picture)
            if segments.semantic is not None:
                segments.save_label_map(folder / f"{stem}_labels.png")
            if segments.panoptic is not None:
                segments.panoptic.save(folder / f"{stem}_panoptic.png")
            add(segments.to_dict(found.name, score_threshold=0))  # what the predictor returned is confident enough
            logging.info("%s -> %s", found.name, picture)
            bar.step()
    return list(pictures)


@contextlib.contextmanager
def _json_list(path: Path) -> Iterator[Callable[[Any], None]]:
    """Add entries to a JSON file, one in a line; it has its name when all of them are written."""
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file:
        separator = "[\n"

        def add(entry: Any) -> None:
            nonlocal separator
            file.write(separator + json.dumps(entry))
            separator = ",\n"

        yield add
        file.write("[]" if separator == "[\n" else "\n]\n")
    part.replace(path)
