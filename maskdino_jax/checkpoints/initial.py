"""Weights to start a training from: a PyTorch file, or a checkpoint of ours."""

import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from maskdino_jax.checkpoints import torch_import
from maskdino_jax.checkpoints.manager import Reader
from maskdino_jax.config import Config
from maskdino_jax.model import ModelSpec


def start_from(variables: Mapping[str, Any], path: Path, config: Config) -> dict[str, Any]:
    """Fresh `variables` with the weights at `path`: what `config.train.init_from` asks for.

    A file is an official checkpoint or an ImageNet backbone, see `torch_import.load_into`. A folder is a workdir of
    ours or one checkpoint of it; parameters whose shape depends on the number of classes stay fresh where that differs.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: the weights do not fit `config.model`.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"config.train.init_from = {str(path)!r}: there is no such file or folder. Give ImageNet weights, an "
            "official checkpoint, or a workdir."
        )
    return _from_workdir(variables, path) if path.is_dir() else torch_import.load_into(variables, path, config)


def _from_workdir(variables: Mapping[str, Any], path: Path) -> dict[str, Any]:
    reader = Reader(path)
    there = ModelSpec(reader.config.model, len(reader.catalog["categories"]))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.eval_shape(functools.partial(there.init, 0))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), abstract)
    found, wanted = (_flat(tree) for tree in (reader.variables(abstract), dict(variables)))
    of_classes = ("params/heads/class_embed/", "params/label_enc/")
    odd = [name for name in wanted if name not in found or found[name].shape != wanted[name].shape]
    fresh = [name for name in odd if name.startswith(of_classes) and name in found]
    odd = sorted({*odd, *(name for name in found if name not in wanted)} - set(fresh))
    if odd:
        raise ValueError(
            f"config.train.init_from = {str(path)!r}: {len(odd)} parameters are not those of config.model, such as "
            f"{', '.join(odd[:5])}. Use the model options of {reader.config.name}."
        )
    logging.info("weights of %s; fresh: %s", path, ", ".join(fresh) or "none")
    values = [value if name in fresh else np.asarray(found[name]) for name, value in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(dict(variables)), values)


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(keys, simple=True, separator="/"): leaf for keys, leaf in leaves}
