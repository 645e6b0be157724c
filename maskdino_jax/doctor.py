"""Is this machine ready? What JAX finds here, what the config asks for, and what to do where they do not meet."""

import dataclasses
import importlib.metadata
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax

from maskdino_jax.config import Config, ConfigError
from maskdino_jax.data import open_dataset
from maskdino_jax.data.datasets import recognize
from maskdino_jax.model import ModelSpec
from maskdino_jax.ops.deform_attn import runs_kernel
from maskdino_jax.train.memory import abstract_state
from maskdino_jax.validation import validate

OK, WARNING, ERROR = "ok", "warning", "error"

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_GIB = 2**30
_LITTLE_MEMORY = 8  # GiB of the host; four loader processes and a training need about as much
_INSTALL = "Install JAX for it, the extra cuda13 (pip install '.[cuda13]'), or cuda12 if the driver is older than 580"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report."""

    level: str  # ok | warning | error
    what: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{self.level:<8} {self.what}: {self.found}"
        return f"{line}\n{' ' * 9}-> {self.remedy}" if self.remedy else line


def diagnose(config: Config, workdir: Path) -> bool:
    """Log the report; whether a training of `config` in `workdir` could begin here."""
    findings = list(examine(config, workdir))
    errors = sum(finding.level == ERROR for finding in findings)
    logging.info("\n%s", "\n".join(map(str, findings)))
    logging.info("ready" if not errors else "not ready: %d of the above stand in the way", *[errors] * bool(errors))
    return not errors


def examine(config: Config, workdir: Path) -> Iterator[Finding]:
    """Everything that is looked at, in the order of the report. Nothing is left behind in `workdir`."""
    yield from _versions()
    devices = _devices()
    yield devices
    if devices.level == ERROR:  # everything else would fail likewise
        return
    yield _accelerator()
    yield _host_memory()
    try:
        validate(config)
    except ConfigError as error:
        yield Finding(ERROR, "config", str(error))
        return
    yield _kernel(config)
    classes = 0
    for split in ("train", "val"):
        finding, classes = _data(config, split, classes)
        yield finding
    if config.train.init_from:
        yield _initial_weights(Path(config.train.init_from))
    yield from _workdir(config, workdir, classes)
    yield _compile_cache()


def require_accelerator() -> None:
    """Refuse to train on the CPU of a machine that has a GPU, unless that was asked for.

    Raises:
        ConfigError: JAX sees only the CPU, a GPU is there, and `JAX_PLATFORMS` does not say cpu.
    """
    finding = _accelerator()
    if finding.level == ERROR:
        raise ConfigError(f"{finding.found}. {finding.remedy}")


def gpus_there() -> list[str]:
    """Names of the NVIDIA GPUs of this machine, whether JAX sees them or not."""
    program = shutil.which("nvidia-smi")
    if program:
        try:
            ended = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired):
            pass  # a broken driver: its files may still tell
        else:
            names = [line for line in ended.stdout.splitlines() if line.startswith("GPU ")]
            if names:
                return names
    found = Path("/proc/driver/nvidia/gpus")
    return sorted(map(str, found.iterdir() if found.is_dir() else Path("/dev").glob("nvidia[0-9]*")))


def _versions() -> Iterator[Finding]:
    yield Finding(OK, "python", sys.version.split()[0])
    for name in _LIBRARIES:
        try:
            yield Finding(OK, name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(ERROR, name, "not installed", "pip install --editable . in the folder of this project")


def _devices() -> Finding:
    try:
        devices = jax.local_devices()
    except RuntimeError as error:  # of a backend that was asked for and is not there
        asked = f"JAX_PLATFORMS={jax.config.jax_platforms}"
        return Finding(ERROR, "devices", f"{asked}: {error}", f"{_INSTALL}; or unset JAX_PLATFORMS.")
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    memory = f", {min(limits) / _GIB:.1f} GiB for JAX on each" if all(limits) else ""
    several = f" of {jax.device_count()}" if jax.process_count() > 1 else ""
    return Finding(OK, "devices", f"{len(devices)}{several} x {devices[0].device_kind}{memory}")


def _accelerator() -> Finding:
    what = "accelerator"
    if jax.default_backend() != "cpu":
        return Finding(OK, what, f"JAX runs on {jax.default_backend()}")
    there = gpus_there()
    if not there:
        return Finding(
            WARNING, what, "none, training takes days on a CPU", "To try things out, configs have a variant tiny."
        )
    if "cpu" in (jax.config.jax_platforms or ""):
        return Finding(WARNING, what, f"the CPU beside {there[0]}, as JAX_PLATFORMS={jax.config.jax_platforms} says")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden in ("", "-1", "NoDevFiles"):
        remedy = f"CUDA_VISIBLE_DEVICES={hidden!r} hides it: unset that, or ask the cluster for a GPU (--gres=gpu:1)"
    else:
        remedy = _INSTALL
    return Finding(
        ERROR,
        what,
        f"JAX runs on the CPU, but {there[0]} is there",
        f"{remedy}; to use the CPU, set JAX_PLATFORMS=cpu.",
    )


def _host_memory() -> Finding:
    if not hasattr(os, "sysconf"):  # Windows
        return Finding(OK, "memory", "unknown")
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = (page * os.sysconf(name) / _GIB for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    found = f"{total:.1f} GiB in this machine, {free:.1f} GiB of it unused, {os.cpu_count()} cores"
    if total < _LITTLE_MEMORY:
        return Finding(WARNING, "memory", found, "Give a small --config.data.workers.")
    return Finding(OK, "memory", found)


def _kernel(config: Config) -> Finding:
    what, impl = "deformable attention", config.model.deform_attn
    try:
        kernel = runs_kernel(impl, config.model.dtype)
    except ValueError as error:
        return Finding(ERROR, what, str(error))
    if kernel:
        return Finding(OK, what, f"a Pallas kernel (config.model.deform_attn={impl})")
    found = f"plain XLA (config.model.deform_attn={impl})"
    if jax.default_backend() == "gpu" and impl != "xla":
        return Finding(
            WARNING, what, found, "The kernel is several times faster; the warning in the log has the reason."
        )
    return Finding(OK, what, found)


def _data(config: Config, split: str, classes: int) -> tuple[Finding, int]:
    """What the split holds, and its number of classes; `classes` where it cannot be read."""
    what = f"data, {split}"
    try:
        data = recognize(config.data, config.inference.tasks)
        dataset = open_dataset(data, split, masks=config.model.masks)
    except (ValueError, FileNotFoundError) as error:
        return Finding(ERROR, what, str(error), "--mode=check-data tells all that is wrong with a data set."), classes
    place = config.data.root or "the images that come along"
    number = dataset.catalog.num_classes
    found = f"{len(dataset)} images of {number} classes in {place}"
    try:
        dataset.image(0)
    except (ValueError, FileNotFoundError) as error:
        return Finding(ERROR, what, f"{found}, but the first: {error}"), number
    return Finding(OK, what, found), number


def _initial_weights(path: Path) -> Finding:
    what, found = "config.train.init_from", str(path)
    if path.exists():
        return Finding(OK, what, found)
    return Finding(
        ERROR, what, f"{found}: there is no such file or folder", "Download the weights, or correct the path."
    )


def _workdir(config: Config, workdir: Path, classes: int) -> Iterator[Finding]:
    folder = _existing(workdir)
    problem = _cannot_write(folder)
    if problem:
        yield Finding(ERROR, "workdir", f"{folder}: {problem}", "Give --workdir a folder that you may write into.")
        return
    yield Finding(OK, "workdir", f"{workdir} can be written")
    free = shutil.disk_usage(folder).free
    state = abstract_state(ModelSpec(config.model, classes or 1), config)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    needed = size * (config.train.keep_checkpoints + 2)  # the best one, and the one that is being written
    found = (
        f"{free / _GIB:.1f} GiB free; a checkpoint takes {size / _GIB:.2f} GiB, all that are kept {needed / _GIB:.2f}"
    )
    remedy = "Make room, give a --workdir on another disk, or fewer --config.train.keep_checkpoints."
    level = OK if free >= needed else ERROR if free < size else WARNING
    yield Finding(level, "disk", found, "" if level == OK else remedy)


def _compile_cache() -> Finding:
    what, place = "compile cache", jax.config.jax_compilation_cache_dir
    if not place:
        return Finding(WARNING, what, "none: every start compiles anew", "Set JAX_COMPILATION_CACHE_DIR to a folder.")
    problem = _cannot_write(_existing(Path(place)))
    if problem:
        return Finding(WARNING, what, f"{place}: {problem}", "Set JAX_COMPILATION_CACHE_DIR to a folder of yours.")
    return Finding(OK, what, place)


def _existing(path: Path) -> Path:
    """The path or the nearest folder above that is there."""
    path = path.expanduser().absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _cannot_write(folder: Path) -> str:
    """Why no file can be made in a folder; empty if one can."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
    except OSError as error:
        return error.strerror or str(error)
    return ""
