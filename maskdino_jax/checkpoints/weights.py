"""Weights for evaluation and prediction, wherever they come from."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from maskdino_jax.checkpoints import torch_import
from maskdino_jax.checkpoints.manager import Reader
from maskdino_jax.config import Config, ConfigError
from maskdino_jax.data import Catalog
from maskdino_jax.model import ModelSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """What belongs to the weights; they themselves are read by `load`."""

    spec: ModelSpec
    config: Config  # that they were trained with
    catalog: Catalog
    step: int
    load: Callable[[jax.sharding.Sharding], dict[str, Any]]  # {"params": ..., "frozen": ...}, so placed


def open_weights(path: Path, config: Config | None) -> Weights:
    """Weights of a folder, which is a workdir or a checkpoint of ours, or of a file of the official implementation.

    Args:
        config: a file does not say what model it is of, nor its classes: `config.model` and `config.data.classes` do.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: the file cannot be read or does not fit `config`, or there is none.
    """
    if not path.is_file():
        reader = Reader(path)
        catalog = Catalog.from_dict(reader.catalog)
        return Weights(spec=reader.spec, config=reader.config, catalog=catalog, step=reader.step, load=reader.load)
    if config is None:
        raise ConfigError(
            f"--checkpoint={path} is a file of the official implementation, which does not say what model it is of: "
            "give --config, such as configs/coco_instance.py:r50."
        )
    variables, catalog = torch_import.read(path, config)
    return Weights(
        spec=ModelSpec(config.model, catalog.num_classes),
        config=config,
        catalog=catalog,
        step=0,
        load=lambda sharding: jax.device_put(variables, sharding),
    )
