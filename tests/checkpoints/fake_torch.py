"""Files as `torch.save` writes them, made by pickling stand-ins that bear the names of PyTorch's classes."""

import collections
import io
import pickle
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
KINDS = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "float64": "DoubleStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


class Storage:
    """The elements of a flat array; `count` is what the pickle says of their number."""

    def __init__(self, array: np.ndarray, count: int | None = None) -> None:
        self.array, self.count = array, array.size if count is None else count

    def __reduce__(self) -> Any:  # in a plain pickle: a file of the old format within the file
        buffer = io.BytesIO()
        write_legacy(buffer, self)
        return sys.modules["torch.storage"]._load_from_bytes, (buffer.getvalue(),)


class Tensor:
    """A view of a storage, in elements."""

    def __init__(self, storage: Storage, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> None:
        self.parts = storage, offset, size, stride

    def __reduce__(self) -> Any:
        return sys.modules["torch._utils"]._rebuild_tensor_v2, (*self.parts, False, collections.OrderedDict())


def tensor(array: np.ndarray) -> Tensor:
    """A contiguous tensor with a storage of its own."""
    steps = tuple(int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim))
    return Tensor(Storage(array.ravel()), array.shape, steps)


class _Pickler(pickle.Pickler):
    def __init__(self, file: Any) -> None:
        super().__init__(file, 2)
        self.storages: dict[str, Storage] = {}

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, Storage):
            return None
        key = next((key for key, known in self.storages.items() if known is value), str(len(self.storages)))
        self.storages[key] = value
        kind = getattr(sys.modules["torch"], KINDS[value.array.dtype.name])
        return "storage", kind, key, "cuda:0", value.count


class _LegacyPickler(_Pickler):
    def persistent_id(self, value: Any) -> Any:
        found = super().persistent_id(value)
        return found and (*found, None)


def write_zip(path: Path, content: Any, *, byteorder: str = "little", compression: int = zipfile.ZIP_STORED) -> None:
    """The format since PyTorch 1.6."""
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    pickler.dump(content)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{path.stem}/data.pkl", buffer.getvalue())
        archive.writestr(f"{path.stem}/byteorder", byteorder)
        for key, storage in pickler.storages.items():
            archive.writestr(f"{path.stem}/data/{key}", storage.array.tobytes())
        archive.writestr(f"{path.stem}/version", "3\n")


def write_legacy(file: Any, content: Any) -> None:
    """The format before PyTorch 1.6."""
    system = {"protocol_version": VERSION, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    for value in (MAGIC, VERSION, system):
        pickle.dump(value, file, 2)
    pickler = _LegacyPickler(file)
    pickler.dump(content)
    pickle.dump(list(pickler.storages), file, 2)
    for storage in pickler.storages.values():
        file.write(storage.array.size.to_bytes(8, "little") + storage.array.tobytes())


def write_legacy_file(path: Path, content: Any) -> None:
    with path.open("wb") as file:
        write_legacy(file, content)


def write_pickle(path: Path, content: Any) -> None:
    """A plain pickle, as conversion scripts for detectron2 write them."""
    path.write_bytes(pickle.dumps(content, 4))


WRITERS: dict[str, Callable[[Path, Any], None]] = {
    "zip": write_zip,
    "legacy": write_legacy_file,
    "pickle": write_pickle,
}


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the stand-ins their names for as long as a test runs."""
    root, tools, storage = (types.ModuleType(name) for name in ("torch", "torch._utils", "torch.storage"))
    for kind in KINDS.values():
        setattr(root, kind, type(kind, (), {"__module__": "torch"}))
    for module, name in ((tools, "_rebuild_tensor_v2"), (tools, "_rebuild_parameter"), (storage, "_load_from_bytes")):
        function = types.FunctionType((lambda *_: None).__code__, {}, name)
        function.__module__, function.__qualname__ = module.__name__, name
        setattr(module, name, function)
    root._utils, root.storage = tools, storage
    for module in (root, tools, storage):
        monkeypatch.setitem(sys.modules, module.__name__, module)
