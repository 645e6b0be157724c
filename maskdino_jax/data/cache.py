"""Keep decoded images in memory, for data sets that are small or slow to read."""

import threading
from collections import OrderedDict
from typing import Any

from maskdino_jax.data.dataset import Dataset
from maskdino_jax.data.transforms import Example

_MB = 2**20


class CachedDataset:
    """A data set that keeps the examples used last, as far as their pixels and outlines fit into `megabytes`.

    Each process has a cache of its own, which starts empty there. Augmentation never writes into an example.
    """

    def __init__(self, dataset: Dataset, megabytes: int) -> None:
        self._dataset, self._megabytes = dataset, megabytes
        self._kept: OrderedDict[int, Example] = OrderedDict()  # in the order of their last use
        self._bytes = 0
        self._lock = threading.Lock()  # loader threads share it

    def __getitem__(self, index: int) -> Example:
        with self._lock:
            if index in self._kept:
                self._kept.move_to_end(index)
                return self._kept[index]
        example = self._dataset[index]
        example.image.flags.writeable = False
        with self._lock:
            if index not in self._kept:
                self._kept[index] = example
                self._bytes += example.nbytes
            while self._bytes > self._megabytes * _MB:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= oldest.nbytes
        return example

    def __len__(self) -> int:
        return len(self._dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # while it is unpickled, nothing is there yet
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return CachedDataset, (self._dataset, self._megabytes)


def cached(dataset: Dataset, megabytes: int) -> Dataset:
    """The data set with a cache (`config.data.cache_mb`), or itself for zero."""
    return CachedDataset(dataset, megabytes) if megabytes else dataset
