"""Export weights: make the artifact, compare it with the live model, and describe it for who deploys it."""

import dataclasses
import json
import logging
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from maskdino_jax.checkpoints.weights import Weights
from maskdino_jax.config import Config
from maskdino_jax.data import load_image
from maskdino_jax.export import onnx, stablehlo
from maskdino_jax.export.checking import TOLERANCE, examples, require_agreement
from maskdino_jax.export.program import Program
from maskdino_jax.model.maskdino import PIXEL_MEAN, PIXEL_STD

FORMATS = {"stablehlo": stablehlo, "onnx": onnx}

_STRIDE = 32
_SAMPLE = Path(__file__).parent.parent / "data/samples/nuclei/val_tiles"  # real images, to compare on


def canvas_of(text: str | None, config: Config) -> tuple[int, int]:
    """Height and width of `HEIGHTxWIDTH`; None: the largest upright-standing canvas of evaluation, lying on its side.

    Raises:
        ValueError: it is something else, or a side is no multiple of 32.
    """
    if text is None:
        return _ceil(config.data.eval_short_side), _ceil(config.data.eval_long_side)
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise ValueError(f"--canvas={text}: give height and width in pixels, such as --canvas=800x1344.")
    height, width = map(int, sides)
    if height % _STRIDE or width % _STRIDE:
        raise ValueError(
            f"--canvas={text}: sides must be multiples of {_STRIDE}. Give --canvas={_ceil(height)}x{_ceil(width)}."
        )
    return height, width


def write_artifact(
    weights: Weights, config: Config, output: Path, *, form: str, canvas: tuple[int, int], image: Path | None = None
) -> Path:
    """Write `model.stablehlo` or `model.onnx` and, beside it, a JSON that describes it; returns the artifact's path.

    Args:
        config: image sizes of `data`, tasks and thresholds of `inference`.
        form: one of `FORMATS`.
        canvas: height and width of the images it takes, multiples of 32.
        image: a file to compare artifact and model on; None: one that comes along.

    Raises:
        ValueError: the format is unknown, a library is missing, or the artifact differs from the live model.
    """
    if form not in FORMATS:
        raise ValueError(f"--format={form}: give one of {', '.join(FORMATS)}.")
    image = image or min(_SAMPLE.glob("*.png"))
    batch = examples(load_image(image), canvas, config.data)
    cpu = jax.local_devices(backend="cpu")[0]  # where float32 is float32: the check needs its digits
    with jax.default_device(cpu):
        variables = weights.load(jax.sharding.SingleDeviceSharding(cpu))
        program = FORMATS[form].prepared(Program.of(weights.spec, variables, canvas, config))
        started = time.perf_counter()
        artifact, facts = FORMATS[form].make(program)
        seconds, megabytes = time.perf_counter() - started, len(artifact) / 1e6
        logging.info("%s of %.1f MB made in %.0f s, to be compared with the live model", form, megabytes, seconds)
        found = require_agreement(FORMATS[form].load(artifact), program, *batch)
    logging.info("largest differences on %s: %s", image, ", ".join(f"{name} {d:.2g}" for name, d in found.items()))
    path = output / f"model.{form}"
    card = _card(program, weights, config) | {"format": form, **facts}
    card["compared"] = {
        "image": image.name,
        "differences": found,
        "tolerances": {name: TOLERANCE[name] for name in found},
    }
    output.mkdir(parents=True, exist_ok=True)
    _write(path, artifact)
    _write(output / f"{path.name}.json", json.dumps(card, indent=1).encode())
    logging.info("%s, described by %s", path, f"{path.name}.json")
    return path


def _card(program: Program, weights: Weights, config: Config) -> dict[str, Any]:
    """What a user of the artifact needs to know."""
    data, inference = config.data, config.inference
    return {
        "model": {
            "config": weights.config.name,
            "step": weights.step,
            "maskdino_jax": metadata.version("maskdino-jax"),
        },
        "canvas": list(program.canvas),
        "resize": {"short_side": data.eval_short_side, "long_side": data.eval_long_side, "filter": "bilinear"},
        "padding_counts": not program.extents,
        "normalization": {"mean": _rounded(PIXEL_MEAN), "std": _rounded(PIXEL_STD), "inside": True},
        **program.describe(),
        "classes": [dataclasses.asdict(category) for category in weights.catalog.categories],
        "tasks": list(inference.tasks),
        "thresholds": {
            name: getattr(inference, name)
            for name in ("score_threshold", "object_threshold", "overlap_threshold", "temperature")
        },
    }


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 3) for value in values]


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(content)
    part.replace(path)


def _ceil(side: int) -> int:
    return -(-side // _STRIDE) * _STRIDE
