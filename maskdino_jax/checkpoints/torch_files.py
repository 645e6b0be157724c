"""PyTorch checkpoint files, read and written without PyTorch and without running anything a file asks for."""

import functools
import io
import json
import math
import pickle
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from maskdino_jax.checkpoints.weight_pickle import (
    LEGACY,
    STORAGES,
    NumpyArray,
    Storage,
    Tensor,
    Unpickler,
    read_legacy,
    span,
)

_WRAPPERS = ("model", "state_dict", "model_ema")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_HEADER_LIMIT = 100_000_000  # bytes of names and shapes in a file of named tensors; real ones have a hundredth
_SAFETENSORS = {
    "F64": "DoubleStorage",
    "F32": "FloatStorage",
    "F16": "HalfStorage",
    "BF16": "BFloat16Storage",
    "I64": "LongStorage",
    "I32": "IntStorage",
    "I16": "ShortStorage",
    "I8": "CharStorage",
    "U8": "ByteStorage",
    "BOOL": "BoolStorage",
}
_DAMAGE = (  # what reading a file that is not what it seems can raise
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    OSError,
    EOFError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
)


def read(path: Path) -> dict[str, np.ndarray]:
    """Named tensors of a checkpoint as read-only NumPy arrays of the stored type.

    Reads what `torch.save` writes (`.pth`, both formats), pickles of NumPy arrays or tensors (`.pkl` of detectron2) and
    `.safetensors`; the content decides, not the name. Of a checkpoint with several parts, only the first of "model",
    "state_dict" and "model_ema" is read: the weights, without optimizer and averages. A prefix that all names have in
    common from `torch.nn.parallel` or `torch.compile` is dropped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is foreign, damaged or asks for code; nothing of it was run.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Give a .pth, .pkl or .safetensors file of weights.")
    try:
        with path.open("rb") as file:
            return _weights(_contents(file))
    except _DAMAGE as error:
        raise ValueError(
            f"{path}: {error or type(error).__name__}. Give a .pth or .pkl file of weights alone, as torch.save and "
            "detectron2 write them, or a .safetensors file; if this is one, it is damaged: fetch it again."
        ) from error


def write_pth(path: Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Write arrays so that `torch.load(path, weights_only=True)["model"]` returns them as tensors.

    An array that occurs under several names is stored once, and its tensors share their memory as in the original.

    Raises:
        ValueError: an array has a type without a counterpart in PyTorch.
    """
    storages = {dtype: name for name, dtype in STORAGES.items()}
    keys: dict[int, int] = {}
    entries = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in state_dict.items():
            dtype = array.dtype.newbyteorder("=")
            if dtype not in storages:
                raise ValueError(f"{name} is {array.dtype}: cast it to one of {', '.join(map(str, storages))}.")
            if id(array) not in keys:
                keys[id(array)] = len(keys)
                archive.writestr(f"archive/data/{keys[id(array)]}", array.astype(dtype.newbyteorder("<")).tobytes())
            entries.append(_body(name) + _tensor(array.shape, storages[dtype], keys[id(array)]))
        archive.writestr("archive/data.pkl", _protocol(_body("model") + _ordered_dict(entries)))
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")


def _body(value: Any) -> bytes:
    """Pickle instructions that push a plain value."""
    return pickle.dumps(value, 2)[2:-1]  # without the header and the final stop


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _ordered_dict(entries: list[bytes]) -> bytes:
    items = pickle.MARK + b"".join(entries) + pickle.SETITEMS if entries else b""
    return _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE + items


def _tensor(shape: tuple[int, ...], storage: str, key: int) -> bytes:
    """Instructions that rebuild a contiguous tensor from the whole of a storage."""
    parts = _body("storage"), _global("torch", storage), _body(str(key)), _body("cpu"), _body(math.prod(shape))
    stored = pickle.MARK + b"".join(parts) + pickle.TUPLE + pickle.BINPERSID
    arguments = stored + _body(0) + _body(shape) + _body(_strides(shape)) + _body(False) + _ordered_dict([])
    rebuild = _global("torch._utils", "_rebuild_tensor_v2")
    return rebuild + pickle.MARK + arguments + pickle.TUPLE + pickle.REDUCE


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Elements from one index to the next along each axis of a contiguous tensor."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _protocol(item: bytes) -> bytes:
    """A whole pickle: a dictionary of one item."""
    return pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + item + pickle.SETITEM + pickle.STOP


def _contents(file: IO[bytes]) -> Any:
    """Everything in the file, with stand-ins for tensors. They read from the file when they become arrays."""
    start = file.read(len(LEGACY))
    file.seek(0)
    if start.startswith(b"PK"):
        return _zipped(file)
    if start == LEGACY:
        return read_legacy(file)
    if start[8:9] == b"{":
        return _safetensors(file)
    if start[:1] == pickle.PROTO:
        return Unpickler(file).load()
    raise ValueError("this is no file of PyTorch, no pickle and no .safetensors")


def _zipped(file: IO[bytes]) -> Any:
    """The format since PyTorch 1.6: a zip archive of a pickle and of one member for each storage."""
    archive = zipfile.ZipFile(file)
    root = next((name[: -len("data.pkl")] for name in archive.namelist() if name.endswith("/data.pkl")), None)
    if root is None:
        raise ValueError("the archive holds no data.pkl, so that PyTorch did not write it")
    if f"{root}byteorder" in archive.namelist() and _member(archive, f"{root}byteorder") != b"little":
        raise ValueError("its numbers are big-endian, which is not supported")
    storages: dict[str, Storage] = {}

    def storage(dtype: np.dtype, key: str, count: int) -> Storage:
        fetch = functools.partial(_member, archive, f"{root}data/{key}", count * dtype.itemsize)
        return storages.setdefault(key, Storage(dtype, count, fetch)).same(dtype, count)

    return Unpickler(io.BytesIO(_member(archive, f"{root}data.pkl")), storage).load()


def _member(archive: zipfile.ZipFile, name: str, size: int | None = None) -> bytes:
    """A member as it lies in the archive. Compressed ones are refused: they can be larger than any memory."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise ValueError(f"its part {name} is compressed, which PyTorch never does")
    if size is not None and info.file_size != size:
        raise ValueError(f"its part {name} has {info.file_size} bytes where the pickle says {size}")
    return archive.read(info)


def _safetensors(file: IO[bytes]) -> dict[str, Tensor]:
    """Eight bytes for the length of a JSON header, the header, then the tensors without gaps."""
    length = struct.unpack("<Q", file.read(8))[0]
    if length > _HEADER_LIMIT:
        raise ValueError(f"its header says it has {length} bytes, more than {_HEADER_LIMIT}")
    header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    data = file.tell()
    size = file.seek(0, io.SEEK_END) - data
    tensors = {}
    for name, entry in header.items():
        (start, end), shape, kind = entry["data_offsets"], entry["shape"], entry["dtype"]
        if kind not in _SAFETENSORS:
            raise ValueError(f"{name} has the type {kind}, which is none of weights")
        storage = Storage(STORAGES[_SAFETENSORS[kind]], math.prod(shape))
        if not 0 <= start <= end <= size or end - start != storage.size:
            raise ValueError(f"{name} of {kind} {shape} lies at bytes {start} to {end} of {size}")
        storage.fetch = functools.partial(span, file, data + start, end - start)
        tensors[name] = Tensor(storage, 0, shape, _strides(shape))
    return tensors


def _weights(contents: Any) -> dict[str, np.ndarray]:
    """The arrays of the named tensors in a checkpoint."""
    if isinstance(contents, dict):
        contents = next((contents[key] for key in _WRAPPERS if isinstance(contents.get(key), dict)), contents)
    if not isinstance(contents, dict) or not contents:
        raise ValueError(f"it holds a {type(contents).__name__} and no named tensors")
    arrays = {}
    for name, value in contents.items():
        if not isinstance(name, str) or not isinstance(value, Tensor | NumpyArray):
            raise ValueError(f"its entry {name!r} is a {type(value).__name__} and not a tensor")
        arrays[name] = value.array()
    while prefix := next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in arrays)), None):
        arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    return arrays
