"""Official PyTorch weights into our models and back.

    python -m maskdino_jax.checkpoints.torch_import --checkpoint=maskdino_r50.pth \
        --config=configs/coco_instance.py:r50 --output=runs/maskdino_r50

converts a checkpoint of the official Mask DINO into a folder that evaluation and prediction take as `--checkpoint`.
"""

import contextlib
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from maskdino_jax.checkpoints import names, torch_files
from maskdino_jax.checkpoints.manager import Checkpoints
from maskdino_jax.config import Config, ConfigError, ModelConfig
from maskdino_jax.data import Catalog
from maskdino_jax.model import MaskDINO, ModelSpec
from maskdino_jax.validation import explain_unknown_option, validate

_UNLIKE = "different, although one tensor in the official model"
_LISTED = 20  # names of each kind in an error
CLASS_PARAMETERS = ("params/heads/class_embed/", "params/label_enc/")  # as many rows as classes
_FRESH_NORMS = tuple(f"params/backbone/norm{stage}/" for stage in range(4))  # of Swin; ImageNet weights have none


def from_state_dict(state_dict: Mapping[str, np.ndarray], config: Config) -> MaskDINO:
    """The model of `config` with the weights of an official state dict, ready to be called.

    Raises:
        ValueError: as `variables_from_state_dict`.
    """
    variables, num_classes = variables_from_state_dict(state_dict, config.model)
    return ModelSpec(config.model, num_classes).bind(jax.tree.map(jnp.asarray, variables))


def variables_from_state_dict(state_dict: Mapping[str, np.ndarray], config: ModelConfig) -> tuple[dict[str, Any], int]:
    """Variables `{"params": ..., "frozen": ...}` of float32 NumPy arrays, and the number of classes.

    Raises:
        ValueError: tensors are missing, unknown or not finite, have another shape than the model's, or differ although
            they are the same tensor in the official model. The message lists all of them and the options at odds.
    """
    if names.LABELS not in state_dict:
        raise ValueError(
            f"the state dict has no {names.LABELS}, whose rows tell the number of classes: give a checkpoint of the "
            "official Mask DINO. Weights of a backbone alone belong in config.train.init_from."
        )
    num_classes = len(state_dict[names.LABELS])
    entries = names.table(config, num_classes)
    values = _take(state_dict, entries, {name: name for name in state_dict}, config)
    return nested(values), num_classes


def to_state_dict(variables: Mapping[str, Any], config: ModelConfig, num_classes: int) -> dict[str, np.ndarray]:
    """The official state dict of our variables, with all names and constants of the official model.

    Tensors that the official model shares under several names are one array here as well.

    Raises:
        ValueError: the variables are not those of such a model.
    """
    entries = names.table(config, num_classes)
    leaves = jax.tree.leaves(dict(variables))
    if [np.shape(leaf) for leaf in leaves] != [entry.shape for entry in entries]:
        raise ValueError(f"these are not the variables of this config.model with {num_classes} classes.")
    parts: dict[str, list[np.ndarray]] = {}
    thirds = sorted(zip(entries, leaves, strict=True), key=lambda pair: pair[0].third or 0)
    for entry, leaf in thirds:
        parts.setdefault(entry.name, []).append(entry.to_official(np.asarray(leaf)))
    merged = {name: found[0] if len(found) == 1 else np.concatenate(found) for name, found in parts.items()}
    aliases = {alias: merged[entry.name] for entry in entries for alias in entry.aliases}
    return merged | aliases | names.buffers(config, entries)


def backbone_from_state_dict(state_dict: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, Any]:
    """The `backbone` part of the variables from ImageNet weights: torchvision, detectron2 (ResNet) or Microsoft (Swin).

    The norms of Swin's output maps are not part of ImageNet weights; the tree then lacks them.

    Raises:
        ValueError: as `variables_from_state_dict`.
    """
    entries = [entry for entry in names.table(config, 1) if entry.name.startswith("backbone.")]
    renamed = names.backbone_names(state_dict)
    official = {renamed[name]: array for name, array in state_dict.items() if name in renamed}
    if not any(entry.name in official for entry in entries if entry.path.startswith(_FRESH_NORMS)):
        entries = [entry for entry in entries if not entry.path.startswith(_FRESH_NORMS)]
    values = _take(official, entries, {theirs: name for name, theirs in renamed.items()}, config)
    return {kind: tree.get("backbone", {}) for kind, tree in nested(values).items()}


def load_into(variables: Mapping[str, Any], path: Path, config: Config) -> dict[str, Any]:
    """`variables` with the weights of a PyTorch file in their place: what `config.train.init_from` asks for.

    An official checkpoint replaces all of them; if its number of classes is another, the class head and the label
    embeddings stay as they are. ImageNet weights replace the backbone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, or does not fit `config.model`.
    """
    state_dict = torch_files.read(path)
    with _naming(path):
        if any(name.startswith("sem_seg_head.") for name in state_dict):
            loaded, num_classes = variables_from_state_dict(state_dict, config.model)
            values = flat(loaded)
            present = len(variables["params"]["label_enc"]["embedding"])
            if num_classes != present:
                logging.info("%s has %d classes: class head and label embeddings stay fresh", path, num_classes)
                values = {name: value for name, value in values.items() if not name.startswith(CLASS_PARAMETERS)}
        else:
            found = backbone_from_state_dict(state_dict, config.model)
            values = flat({kind: {"backbone": tree} for kind, tree in found.items()})
    logging.info("%s: %d of %d parameters", path, len(values), len(jax.tree.leaves(dict(variables))))
    keep = lambda keys, leaf: values.get(jax.tree_util.keystr(keys, simple=True, separator="/"), leaf)
    return jax.tree_util.tree_map_with_path(keep, dict(variables))


def convert(checkpoint: Path, config: Config, output: Path) -> None:
    """Write the official checkpoint as a workdir with one checkpoint of ours, of step 0 and without optimizer state.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it cannot be read or does not fit `config`, or `output` holds something already.
    """
    validate(config)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output={output} exists already: give a new or empty folder.")
    variables, catalog = read(checkpoint, config)
    with contextlib.closing(Checkpoints(output, config, catalog.to_dict())) as checkpoints:
        checkpoints.save({"step": 0, **variables})
    logging.info("%s is now the checkpoint %s", checkpoint, output)


def read(checkpoint: Path, config: Config) -> tuple[dict[str, Any], Catalog]:
    """Variables and classes of an official checkpoint.

    Args:
        config: the model that the weights belong to, and in `data.classes` the list of its classes.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it cannot be read or does not fit `config`.
    """
    if not config.data.classes:
        raise ConfigError(
            "config.data.classes = '': a PyTorch checkpoint does not name its classes. Give the list that it was "
            "trained on: coco_instances, coco_panoptic, ade20k or cityscapes."
        )
    catalog = Catalog.named(config.data.classes)
    state_dict = torch_files.read(checkpoint)
    with _naming(checkpoint):
        variables, num_classes = variables_from_state_dict(state_dict, config.model)
    if num_classes != catalog.num_classes:
        raise ValueError(
            f"{checkpoint} has {num_classes} classes, config.data.classes = {config.data.classes!r} has "
            f"{catalog.num_classes}: give the list that it was trained on."
        )
    return variables, catalog


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors inside begin with the file they are about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _take(
    state_dict: Mapping[str, np.ndarray],
    entries: list[names.Entry],
    shown: Mapping[str, str],
    config: ModelConfig,
) -> dict[str, np.ndarray]:
    """Path of ours -> value; `shown`: official name -> the name in the file, for messages."""
    kinds = ("missing", "unknown", "of another shape", "not finite", _UNLIKE)
    problems: dict[str, list[str]] = {kind: [] for kind in kinds}
    known: set[str] = set()
    values = {}
    for entry in entries:
        present = [name for name in (entry.name, *entry.aliases) if name in state_dict]
        known.update(present)
        if not present:
            problems["missing"].append(entry.name)
            continue
        first = state_dict[present[0]]
        if first.shape != entry.official_shape:
            said = f"{shown[present[0]]} {first.shape} instead of {entry.official_shape}"
            problems["of another shape"].append(said)
            continue
        first_value = np.asarray(first, np.float32)
        if not np.isfinite(first_value).all():
            problems["not finite"].append(shown[present[0]])
        unlike = [shown[name] for name in present[1:] if not _same(state_dict[name], first)]
        if unlike:
            problems[_UNLIKE].append(f"{shown[present[0]]} and {unlike[0]}")
        values[entry.path] = entry.from_official(first_value)
    problems["unknown"] = [shown[name] for name in state_dict if name not in known and not names.is_ignored(name)]
    if any(problems.values()):
        raise ValueError(_explain(problems, names.hints(state_dict, config)))
    return values


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one is other or np.array_equal(one, other)


def _explain(problems: Mapping[str, Iterable[str]], hints: Iterable[str]) -> str:
    """One message for all problems, with the options that would make the model fit."""
    remedies = "; ".join(hints) or "none that the file tells of. Is it the right file?"
    lines = [f"the weights do not fit the model of this config. Options at odds: {remedies}"]
    for kind, affected in problems.items():
        affected = list(dict.fromkeys(affected))
        if affected:
            more = f" and {len(affected) - _LISTED} more" if len(affected) > _LISTED else ""
            lines.append(f"{len(affected)} {kind}: {', '.join(affected[:_LISTED])}{more}")
    return "\n".join(lines)


def nested(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Paths with slashes as nested dictionaries; numbers are keys as in `nnx.to_pure_dict`."""
    tree: dict[str, Any] = {"params": {}, "frozen": {}}
    for path, value in values.items():
        *parents, leaf = (int(part) if part.isdigit() else part for part in path.split("/"))
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def flat(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `nested`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(keys, simple=True, separator="/"): leaf for keys, leaf in leaves}


def _main(arguments: list[str]) -> None:
    if len(arguments) > 1:
        raise app.UsageError(f"unknown argument {arguments[1]!r}: options are given as --name=value.")
    values = flags.FLAGS
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    for library in ("absl", "jax"):  # Orbax and JAX tell a lot that is of use to their developers only
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        convert(Path(values.checkpoint), values.config, Path(values.output))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def _parse(arguments: list[str]) -> list[str]:
    """Define the flags here, not on import: `main.py` has flags of the same names."""
    flags.DEFINE_string("checkpoint", None, "Official PyTorch checkpoint: .pth, .pkl or .safetensors.", required=True)
    flags.DEFINE_string("output", None, "New folder for the converted checkpoint.", required=True)
    config_flags.DEFINE_config_file("config", None, "Config file of the model, with a variant after a colon.")
    flags.mark_flag_as_required("config")
    try:
        return app.parse_flags_with_usage(arguments)
    except (KeyError, AttributeError) as error:
        sys.exit(explain_unknown_option(arguments, error))


if __name__ == "__main__":
    app.run(_main, flags_parser=_parse)
