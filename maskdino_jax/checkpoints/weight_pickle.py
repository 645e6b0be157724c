"""Unpickle weights without running anything a pickle asks for.

A pickle is a program that may call any function of any installed package. Weights need a dozen harmless ones; each has
a stand-in here (`_GLOBALS`), and a file that names anything else is refused. Bytes become arrays only within bounds
that are checked here and once more by NumPy.
"""

import functools
import io
import math
import pickle
import re
import struct
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from jax.dtypes import bfloat16

LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, 2)  # the object that starts a file of PyTorch before 1.6
STORAGES = {
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(bfloat16),
    "DoubleStorage": np.dtype(np.float64),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}


class _Sealed:
    """A stand-in whose attributes a pickle cannot set: the unpickler hands them to `__setstate__`."""

    def __setstate__(self, state: Any) -> None:
        raise ValueError(f"its pickle changes a {type(self).__name__.strip('_')}")


class _Global(_Sealed):
    """What the pickle sees of an allowed class or function. Only calling it does something."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, *args: Any) -> Any:
        return self.value(*args)


class _Dict(dict):
    """Any of Python's dictionaries; attributes that PyTorch hangs on them are dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


class Storage(_Sealed):
    """Elements of one type somewhere in the file, read when they are needed."""

    def __init__(self, dtype: np.dtype, count: int, fetch: Callable[[], bytes] | None = None) -> None:
        self.dtype, self.count, self.fetch = dtype, count, fetch

    @functools.cached_property
    def data(self) -> bytes:
        data = b"" if self.fetch is None else self.fetch()
        if len(data) != self.size:
            raise ValueError(f"a storage of {self.size} bytes has {len(data)}")
        return data

    @property
    def size(self) -> int:
        """In bytes."""
        return self.count * self.dtype.itemsize

    def same(self, dtype: np.dtype, count: int) -> "Storage":
        """This storage, if a second mention of it says the same of it as the first."""
        if (self.dtype, self.count) != (dtype, count):
            raise ValueError(f"a storage is {self.count} x {self.dtype} and {count} x {dtype}")
        return self


class Tensor(_Sealed):
    """A view of a storage; sizes, strides and offset count elements."""

    def __init__(self, storage: Storage, offset: int, shape: Any, strides: Any, *_: Any) -> None:
        self.storage, self.offset, self.shape, self.strides = storage, offset, tuple(shape), tuple(strides)

    def __setstate__(self, state: Any) -> None:
        """The flags of a parameter in old files."""

    def array(self) -> np.ndarray:
        """Its elements, in one piece; they share the memory of the storage where that is possible."""
        dtype, count = self.storage.dtype, self.storage.count
        what = f"a tensor of size {self.shape}, strides {self.strides} and offset {self.offset}"
        numbers = (*self.shape, *self.strides, self.offset)
        if len(self.shape) != len(self.strides) or any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError(f"{what} is none")
        elements = math.prod(self.shape)
        if not elements:
            return np.zeros(self.shape, dtype)
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        if last >= count or elements > count:
            raise ValueError(f"{what} reaches outside of its storage of {count}")
        strides = [step * dtype.itemsize for step in self.strides]
        view = np.ndarray(self.shape, dtype, self.storage.data, self.offset * dtype.itemsize, strides)
        return view if view.flags.c_contiguous else view.copy()


class _Parameter(_Sealed):
    """Files of 2017 make parameters of tensors. A class of its own, because they use an instruction only for classes;
    changing the class itself fails, because `__setstate__` then lacks an argument."""

    def __new__(cls, tensor: Tensor, *_: Any) -> Tensor:
        return tensor


class _NumpyType(_Sealed):
    """A number type of NumPy: kind and bytes, then the byte order as its state."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code, self.order = code, "|"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    @property
    def dtype(self) -> np.dtype:
        if not re.fullmatch("[<>|=](b1|[iu][1248]|f[248])", f"{self.order}{self.code}"):
            raise ValueError(f"an array has the type {self.order}{self.code}, which is none of weights")
        return np.dtype(f"{self.order}{self.code}")


class NumpyArray(_Sealed):
    """An array of NumPy: an empty one, then its content as the state."""

    def __init__(self, *state: Any) -> None:
        self.state = state

    def __setstate__(self, state: Any) -> None:
        self.state = state[1:]

    def array(self) -> np.ndarray:
        """The real array, in the byte order of this machine."""
        shape, kind, columns_first, raw = self.state
        raw = raw.encode("latin1") if isinstance(raw, str) else raw  # written by Python 2
        array = np.frombuffer(raw, kind.dtype).reshape(shape, order="F" if columns_first else "C")
        array = array.astype(array.dtype.newbyteorder("="), order="C", copy=False)
        array.setflags(write=False)
        return array


def _numpy_scalar(kind: _NumpyType, raw: Any) -> Any:
    return NumpyArray((), kind, False, raw).array().item()


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"it encodes text as {encoding}")
    return text.encode("latin1")


def _storage_from_bytes(raw: bytes) -> Any:
    """A storage that a plain pickle holds as a file within the file."""
    if not raw.startswith(LEGACY):
        raise ValueError("a storage within the pickle is none")
    return read_legacy(io.BytesIO(raw))


_NUMPY = {
    "_reconstruct": lambda *_: NumpyArray(),
    "scalar": _numpy_scalar,
    "_frombuffer": lambda raw, kind, shape, order: NumpyArray(shape, kind, order == "F", raw),
}
_TORCH = {
    "_utils._rebuild_tensor": Tensor,
    "_utils._rebuild_tensor_v2": Tensor,
    "_utils._rebuild_parameter": lambda tensor, *_: tensor,
    "storage._load_from_bytes": _storage_from_bytes,
    "Size": lambda *sizes: tuple(*sizes),
    "device": lambda *_: None,
    "storage.UntypedStorage": np.dtype(np.uint8),
}
# What a pickle may ask for. Builtins are those that need no more memory than their arguments.
_GLOBALS: dict[str, Any] = {
    name: _Global(value)
    for name, value in {
        "collections.OrderedDict": _Dict,
        "collections.defaultdict": lambda *_: _Dict(),
        "collections.Counter": _Dict,
        "_codecs.encode": _latin1,
        **{
            f"builtins.{kind.__name__}": kind for kind in (set, frozenset, list, tuple, dict, bool, int, float, complex)
        },
        "builtins.bytes": lambda: b"",
        "numpy.ndarray": None,
        "numpy.dtype": _NumpyType,
        **{
            f"numpy.{core}.{part}.{name}": value
            for core in ("core", "_core")
            for part in ("multiarray", "numeric")
            for name, value in _NUMPY.items()
        },
        **{f"torch.{name}": dtype for name, dtype in STORAGES.items()},
        **{f"torch.{name}": value for name, value in _TORCH.items()},
    }.items()
} | {"torch.nn.parameter.Parameter": _Parameter}


class Unpickler(pickle.Unpickler):
    """Makes stand-ins of what a pickle asks for. `storage(dtype, key, count)` finds what lies outside of the pickle.

    `load` raises ValueError where something else is asked for, and many other exceptions where the pickle is damaged.
    """

    def __init__(self, file: IO[bytes], storage: Callable[[np.dtype, str, int], Storage] | None = None) -> None:
        super().__init__(file, encoding="latin1")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        wanted = f"{module}.{name}".replace("__builtin__.", "builtins.")
        if wanted not in _GLOBALS:
            raise ValueError(f"it asks for {wanted}, which weights do not need and which is not run")
        return _GLOBALS[wanted]

    def persistent_load(self, pid: Any) -> Storage:
        kind, of, key, _, count, *view = pid
        dtype = of.value
        plain = kind == "storage" and isinstance(dtype, np.dtype) and type(count) is int and count >= 0
        if self._storage is None or not plain:
            raise ValueError(f"its pickle refers to a {kind} outside of itself")
        whole = self._storage(dtype, str(key), count)
        if not view or view[0] is None:
            return whole
        _, start, count = view[0]  # PyTorch before 0.4 shared storages in parts
        if not 0 <= start <= start + count <= whole.count:
            raise ValueError(f"elements {start} to {start + count} of a storage of {whole.count}")
        part = slice(start * dtype.itemsize, (start + count) * dtype.itemsize)
        return Storage(dtype, count, lambda: whole.data[part])


def read_legacy(file: IO[bytes]) -> Any:
    """The format before PyTorch 1.6: five pickles, the fourth with the content, then one storage after the other."""
    Unpickler(file).load()  # the magic number, known already
    Unpickler(file).load()  # version of the format: there has been one
    if not Unpickler(file).load().get("little_endian", True):
        raise ValueError("its numbers are big-endian, which is not supported")
    storages: dict[str, Storage] = {}

    def storage(dtype: np.dtype, key: str, count: int) -> Storage:
        return storages.setdefault(key, Storage(dtype, count)).same(dtype, count)

    content = Unpickler(file, storage).load()
    keys = Unpickler(file).load()
    position = file.tell()
    end = file.seek(0, io.SEEK_END)
    for key in map(str, keys):
        found = storages[key]
        file.seek(position)
        if file.read(8) != struct.pack("<q", found.count) or position + 8 + found.size > end:
            raise ValueError(f"its storage {key} is cut off or has another size than the pickle says")
        found.fetch = functools.partial(span, file, position + 8, found.size)
        position += 8 + found.size
    return content


def span(file: IO[bytes], start: int, size: int) -> bytes:
    """`size` bytes of a file from `start` on."""
    file.seek(start)
    return file.read(size)
