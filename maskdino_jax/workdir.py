"""The folder of a run: whose it is, and the files that every mode writes into it."""

import contextlib
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from maskdino_jax.config import Config, ConfigError, from_dict
from maskdino_jax.validation import differences

CONFIG = "config.json"


def claim(workdir: Path, config: Config) -> None:
    """Make a new workdir; refuse one that another config has used."""
    path = workdir / CONFIG
    if path.exists():
        try:
            changed = differences(from_dict(json.loads(path.read_bytes())), config)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is damaged or of another version ({error}). Use a new workdir.") from error
        if changed:
            raise ConfigError(
                f"--workdir={workdir} holds a run of another config ({path}):\n  "
                + "\n  ".join(changed)
                + "\nUse a new workdir, or the options of that run."
            )
    workdir.mkdir(parents=True, exist_ok=True)


def store(path: Path, value: Any) -> None:
    """Write JSON so that a reader never sees half of it; of several processes only the first one does."""
    if jax.process_index():
        return
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1), encoding="utf-8")
    part.replace(path)


@contextlib.contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Keep what the console shows; of several processes that of the first one."""
    if jax.process_index():
        yield
        return
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def write_results(results: Mapping[str, float], before: Mapping[str, float] | None, workdir: Path) -> None:
    """The readable table and, last, one JSON line."""
    store(workdir / "results.json", dict(results))
    if before:
        keys = [key for key in ("panoptic_seg/PQ", "segm/AP50", "segm/AP", "bbox/AP") if key in results]
        rows = [f"{key:<16} {100 * before[key]:6.1f} -> {100 * results[key]:5.1f}" for key in keys]
        logging.info("before and after training, in percent\n%s", "\n".join(rows))
    if jax.process_index():
        return
    logging.info("results in %s", workdir / "results.json")
    sys.stdout.write(json.dumps(dict(results)) + "\n")
    sys.stdout.flush()
