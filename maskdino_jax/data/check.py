"""Look a data set over before training: everything that would stop it or make it wrong, with the remedy.

Each record is read once, ahead in threads or processes, and only numbers are kept of it.
"""

import dataclasses
import logging
import time
from collections.abc import Iterator

from maskdino_jax.config import Config, ConfigError
from maskdino_jax.data.annotations import read_instances
from maskdino_jax.data.catalog import Catalog
from maskdino_jax.data.dataset import Dataset
from maskdino_jax.data.datasets import open_dataset, recognize
from maskdino_jax.data.faults import EMPTY_IMAGE, NOTES, WARNINGS, Faults
from maskdino_jax.data.findings import Finding, Split, Summary
from maskdino_jax.data.loader import in_order
from maskdino_jax.data.statistics import Failure, Scans, Statistics, in_both, twice
from maskdino_jax.progress import Bar

_FEW = 10  # objects of a class, with which it is hardly learned
_LEAK = 0.01  # share of the images of a split: large data sets have a few twins that harm nothing
_SECONDS_BETWEEN_LOGS = 15


def check(config: Config) -> Summary:
    """Read both splits of `config.data` as training and evaluation would.

    Raises:
        FileNotFoundError, ValueError: there is no such data set; see `recognize`.
    """
    config = dataclasses.replace(config, data=recognize(config.data, config.inference.tasks))
    train, val = (_split(config, name) for name in ("train", "val"))
    findings = [*train.findings, *val.findings]
    if train.dataset and val.dataset:
        findings += _classes(train.dataset, val.dataset)
        findings += _leaks(train, val)
    return Summary(splits={"train": train, "val": val}, findings=tuple(findings))


def require_same_classes(validation: Dataset, trained: Catalog, where: str) -> None:
    """Predictions are numbered by position, so both lists must agree in ids, names and order.

    Raises:
        ConfigError: they do not; `where` says where `trained` comes from.
    """
    found, wanted = ([(c.id, c.name) for c in catalog.categories] for catalog in (validation.catalog, trained))
    if found != wanted:
        different = next((pair for pair in zip(found, wanted, strict=False) if pair[0] != pair[1]), None)
        detail = f"{different[0]} instead of {different[1]}" if different else f"{len(found)} instead of {len(wanted)}"
        raise ConfigError(
            f"config.data.val.annotations = {validation.annotations}: its categories are not those {where}: {detail}. "
            f"Give both the same list of categories."
        )


def _split(config: Config, name: str) -> Split:
    faults, statistics = Faults(), Statistics()
    masks = config.model.masks if name == "train" else "detection" not in config.inference.tasks
    try:
        dataset = open_dataset(config.data, name, masks=masks, report=faults)
    except (FileNotFoundError, ValueError) as error:
        opened = Finding("error", name, "cannot be opened", 1, (str(error),))
        return Split(None, statistics, (opened, *_findings(faults, name, skips=False)))
    _read(config, name, dataset, statistics, faults)
    if name == "val":
        _check_truth(config, dataset, masks, faults)
    elif not statistics.objects:
        faults("nothing to learn", f"{dataset.annotations}: no image has an object. Annotate some, or give other data.")
    skips = name == "train" and config.data.on_error == "skip" and statistics.objects > 0
    extra = _few_objects(config, dataset, statistics, name)
    return Split(dataset, statistics, (*_findings(faults, name, skips=skips), *extra))


def _read(config: Config, name: str, dataset: Dataset, statistics: Statistics, faults: Faults) -> None:
    """Scan every record; what cannot be read becomes a fault."""
    last = time.monotonic()
    with in_order(Scans(dataset), config.data) as scans, Bar(f"checking {name}", len(dataset), "image") as bar:
        for record, found in enumerate(scans):
            if isinstance(found, Failure):
                statistics.failures += 1
                faults(found.kind, found.message)
            else:
                statistics.add(record, found, dataset.file_name(record))
                if not len(found.labels):
                    faults(EMPTY_IMAGE, f"{dataset.annotations}: {dataset.file_name(record)} has no object.")
            bar.step()
            if time.monotonic() - last > _SECONDS_BETWEEN_LOGS and not bar.shown:
                last = time.monotonic()
                logging.info("%s: %d of %d images", name, record + 1, len(dataset))


def _check_truth(config: Config, dataset: Dataset, masks: bool, faults: Faults) -> None:
    """Panoptic data may bring instances of their own for AP, in another file."""
    wanted = {"instance", "detection"} & set(config.inference.tasks)
    if "panoptic" not in dataset.truths or not wanted:
        return
    without_notes = lambda kind, message: kind in NOTES or faults(kind, message)  # they were counted already
    path = getattr(dataset, "instances_json", None) or dataset.annotations
    try:
        truth = dataset.instances_truth()
        if truth is None:
            return
        _, records = read_instances(path, masks, load=lambda _: truth, report=without_notes)
    except (FileNotFoundError, ValueError) as error:
        faults("instances for AP", str(error))
        return
    known = {record.image_id for record in records}
    missing = [image_id for image_id in map(dataset.image_id, range(len(dataset))) if image_id not in known]
    if missing:
        faults(
            "instances for AP",
            f"{path}: images lacks {missing[0]!r} ({len(missing)} in all), which {dataset.annotations} has. Add them, "
            "or leave config.data.val.instances empty to make the instances from the panoptic PNG.",
        )


def _findings(faults: Faults, split: str, *, skips: bool) -> Iterator[Finding]:
    for kind, count in sorted(faults.counts.items()):
        severity = "note" if kind in NOTES else "warning" if kind in WARNINGS or skips else "error"
        yield Finding(severity, split, kind, count, tuple(faults.first[kind]))


def _few_objects(config: Config, dataset: Dataset, statistics: Statistics, split: str) -> Iterator[Finding]:
    """Classes that cannot be learned, images of which not all can, and images that are there twice."""
    if split == "train":
        counts = {category.name: statistics.of_class[n] for n, category in enumerate(dataset.catalog.categories)}
        none = [name for name, count in counts.items() if count == 0]
        few = [f"{name} ({count})" for name, count in counts.items() if 0 < count < _FEW]
        if none:
            text = f"{', '.join(none)}. They will never be predicted: add images of them, or drop them from the list."
            yield Finding("warning", split, "class without an object", len(none), (text,))
        if few:
            text = f"fewer than {_FEW} objects: {', '.join(few)}. Add images of them."
            yield Finding("warning", split, "class with few objects", len(few), (text,))
        if statistics.most > config.data.max_instances:
            text = (
                f"an image has {statistics.most} objects, but training keeps config.data.max_instances = "
                f"{config.data.max_instances} of each crop, the largest. Raise it if crops show more."
            )
            yield Finding("warning", split, "more objects than training keeps", 1, (text,))
    same = [", ".join(map(dataset.file_name, records)) for records in twice(statistics)]
    if same:
        yield Finding("warning", split, "same pixels under several names", len(same), tuple(same[:20]))


def _classes(train: Dataset, val: Dataset) -> Iterator[Finding]:
    try:
        require_same_classes(val, train.catalog, f"{train.annotations} has")
    except ConfigError as error:
        yield Finding("error", "both", "class lists differ", 1, (str(error),))


def _leaks(train: Split, val: Split) -> Iterator[Finding]:
    """What the model learns by heart must not measure it."""
    same, alike = in_both(train.statistics, val.statistics)
    name = lambda pair: f"{train.dataset.file_name(pair[0])} in train, {val.dataset.file_name(pair[1])} in val"
    if same:
        share = len(same) / min(train.statistics.images, val.statistics.images)
        fix = "Validation would measure what was learned by heart: remove these images from one of the splits."
        first = (fix, *map(name, same[:20]))
        yield Finding("error" if share > _LEAK else "warning", "both", "same image in train and val", len(same), first)
    if alike:
        fix = "They have one name and size and look alike: if they are the same pictures, remove them from one split."
        first = (fix, *map(name, alike[:20]))
        yield Finding("warning", "both", "probably the same image in train and val", len(alike), first)
