"""Weights to start a training from: a PyTorch file, or a checkpoint of ours."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from maskdino_jax.checkpoints.manager import Reader
from maskdino_jax.checkpoints.torch_import import CLASS_PARAMETERS, flat, load_into
from maskdino_jax.config import Config

_MASK_PARAMETERS = (  # what nothing but masks depends on
    "params/heads/mask_embed/",
    "params/pixel_decoder/lateral/",
    "params/pixel_decoder/smooth/",
    "params/pixel_decoder/mask_features/",
)
_QUERY_PARAMETERS = ("params/query_selection/", "params/learned_queries/")  # of one source of queries or the other


def start_from(variables: Mapping[str, Any], path: Path, config: Config) -> dict[str, Any]:
    """Fresh `variables` with the weights at `path`: what `config.train.init_from` asks for.

    A file is an official checkpoint or an ImageNet backbone, see `torch_import.load_into`. A folder is a workdir of
    ours or one checkpoint of it. Of its model stay fresh: parameters whose shape depends on the number of classes where
    that differs; those of masks if it was trained without (weight decay has shrunk them); and the queries if the other
    model has another source of them (`config.model.decoder.query_source`). The log names them.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: the weights do not fit `config.model`.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"config.train.init_from = {str(path)!r}: there is no such file or folder. Give ImageNet weights, an "
            "official checkpoint, or a workdir."
        )
    return _from_workdir(variables, path) if path.is_dir() else load_into(variables, path, config)


def _from_workdir(variables: Mapping[str, Any], path: Path) -> dict[str, Any]:
    reader = Reader(path)
    found = flat(reader.load(jax.sharding.SingleDeviceSharding(jax.devices()[0])))
    wanted = flat(dict(variables))
    found = {name: value for name, value in found.items() if name in wanted or not name.startswith(_QUERY_PARAMETERS)}
    odd = [name for name in wanted if name not in found or found[name].shape != wanted[name].shape]
    fresh = [name for name in odd if name.startswith(CLASS_PARAMETERS if name in found else _QUERY_PARAMETERS)]
    odd = sorted({*odd, *(name for name in found if name not in wanted)} - set(fresh))
    if odd:
        raise ValueError(
            f"config.train.init_from = {str(path)!r}: {len(odd)} parameters are not those of config.model, such as "
            f"{', '.join(odd[:5])}. Use the model options of {reader.config.name}."
        )
    if not reader.config.model.masks:
        fresh += [name for name in wanted if name.startswith(_MASK_PARAMETERS)]
    logging.info("weights of %s; fresh: %s", path, ", ".join(fresh) or "none")
    values = [value if name in fresh else np.asarray(found[name]) for name, value in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(dict(variables)), values)
