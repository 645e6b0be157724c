"""Batches for training and evaluation, prepared ahead in threads or processes by Grain.

The order of records and their augmentation depend on nothing but (seed, epoch, record): not on processes, hosts or the
batch size. Position p of the training stream is record `order(seed, p // n)[p % n]` of n, step t takes positions
t * batch_size and following, and each host its rows of them. So a step number is all there is to resume from, on any
number of hosts; epochs follow one another without a gap, so that a data set may be smaller than a batch. An image that
cannot be read is answered with an error or, if the config says so, with the next one of the epoch's order; what is
pasted into an image is a function of the same numbers.
"""

import dataclasses
import functools
import logging
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Self, TypeVar

import grain
import numpy as np
from absl import flags
from jaxtyping import Int, UInt8

from maskdino_jax.config import Config, DataConfig
from maskdino_jax.data.augmentation import augment
from maskdino_jax.data.batching import Sample, collate, sample
from maskdino_jax.data.cache import cached
from maskdino_jax.data.copy_paste import choose, paste
from maskdino_jax.data.dataset import Dataset
from maskdino_jax.data.images import canvas_size, prepare_image
from maskdino_jax.data.processes import Watched
from maskdino_jax.data.transforms import Example
from maskdino_jax.structures import Batch, EvalBatch

_ORDER, _AUGMENTATION, _COPY_PASTE = 1, 2, 3  # first word of a seed: keeps the kinds of random streams apart
_THREADS = 8  # of the main process; Pillow and NumPy work outside of the interpreter lock
_AHEAD = 16  # images that threads prepare before they are asked for
_AHEAD_PER_WORKER = 8  # the same for each process

T = TypeVar("T")


class Batches(Iterator[T], Generic[T]):
    """An iterator over batches that stops its threads or processes when closed; also a context manager."""

    def __init__(self, iterator: grain.DatasetIterator, data: DataConfig):
        self._iterator = Watched(iterator) if data.workers else iterator

    def __next__(self) -> T:
        try:
            return next(self._iterator)
        except (RuntimeError, ChildProcessError) as error:
            if isinstance(error, RuntimeError) and "Worker process was terminated" not in str(error):
                raise
            raise ChildProcessError(
                "a loader process was ended from outside, most often for lack of memory: give fewer "
                "--config.data.workers or a smaller --config.data.cache_mb. The same command continues."
            ) from error

    def close(self) -> None:
        self._iterator.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def train_batches(
    dataset: Dataset, config: Config, start_step: int, *, process_index: int = 0, process_count: int = 1
) -> Batches[Batch]:
    """This host's rows of every batch from `start_step` on, without end.

    Raises:
        ValueError: the batch cannot be split among the hosts. While iterating, whatever reading a record raised.
    """
    if config.train.batch_size % process_count:
        raise ValueError(
            f"config.train.batch_size = {config.train.batch_size}: give a multiple of the {process_count} hosts."
        )
    rows = config.train.batch_size // process_count
    stream = _TrainStream(cached(dataset, config.data.cache_mb), config, start_step, rows, process_index)
    return _batches(stream, rows, functools.partial(collate, max_instances=config.data.max_instances), config.data)


def eval_batches(
    dataset: Dataset, config: Config, batch_size: int, *, process_index: int = 0, process_count: int = 1
) -> Batches[EvalBatch]:
    """Every image once, images of one canvas together; rows that fill up a canvas's last batch are not valid.

    Of several hosts each has every `process_count`-th batch, one more or less than the others.
    """
    canvases = defaultdict(list)
    for record in range(len(dataset)):
        canvases[canvas_size(*dataset.size(record), config.data)].append(record)
    rows = []
    for canvas, records in canvases.items():
        rows += [(record, canvas) for record in records]
        rows += [(None, canvas)] * (-len(records) % batch_size)
    own = [row for place, row in enumerate(rows) if place // batch_size % process_count == process_index]
    return _batches(_EvalRows(dataset, config.data, tuple(own)), batch_size, _collate_eval, config.data)


def in_order(source: Sequence[T], data: DataConfig) -> Batches[T]:
    """The elements of `source`, read ahead in the threads or processes of `data.workers`."""
    return Batches(iter(_read_ahead(source, data)), data)


@functools.lru_cache(maxsize=4)  # threads work on two epochs at a time where one ends
def epoch_order(seed: int, epoch: int, count: int) -> Int[np.ndarray, "records"]:
    """The order in which an epoch visits `count` records."""
    return np.random.default_rng((_ORDER, seed, epoch)).permutation(count)


@dataclasses.dataclass(frozen=True)
class _TrainStream:
    """Random access to the samples of one host, from `start_step` on."""

    dataset: Dataset
    config: Config
    start_step: int
    rows: int  # of each batch, on this host
    process_index: int

    def __len__(self) -> int:
        return sys.maxsize  # for all purposes without end

    def __getitem__(self, index: int) -> Sample:
        data, seed = self.config.data, self.config.train.seed
        step, row = divmod(index, self.rows)
        position = (self.start_step + step) * self.config.train.batch_size + self.process_index * self.rows + row
        epoch, place = divmod(position, len(self.dataset))
        rng = lambda record: np.random.default_rng((_AUGMENTATION, seed, epoch, record))
        order = epoch_order(seed, epoch, len(self.dataset))
        example, record, skipped = self._augmented(lambda turn: int(order[(place + turn) % len(order)]), rng)
        if data.copy_paste:
            draws = np.random.default_rng((_COPY_PASTE, seed, epoch, record))
            if draws.random() < data.copy_paste:
                start = int(draws.integers(len(self.dataset)))
                other, _, more = self._augmented(lambda turn: (start + turn) % len(self.dataset), lambda _: draws)
                example, skipped = paste(example, other, choose(other, draws)), skipped + more
        return sample(example, record, data.max_instances, data.keep_empty, skipped=skipped)

    def _augmented(
        self, nth: Callable[[int], int], rng: Callable[[int], np.random.Generator]
    ) -> tuple[Example, int, int]:
        """The first of the records `nth(0)`, `nth(1)`, ... that can be read, its number, and how many came before.

        Raises:
            ValueError: none of them can. FileNotFoundError, ValueError: the first one cannot, and that is to stop.
        """
        for skipped in range(len(self.dataset)):
            record = nth(skipped)
            try:
                return augment(self.dataset[record], rng(record), self.config.data), record, skipped
            except (FileNotFoundError, ValueError) as error:
                if self.config.data.on_error == "stop":
                    raise
                logging.warning(
                    "config.data.on_error = 'skip': another image takes the place of record %d: %s", record, error
                )
        raise ValueError(f"{self.dataset.annotations}: none of its {len(self.dataset)} images can be read.")


@dataclasses.dataclass(frozen=True)
class _EvalRow:
    image: UInt8[np.ndarray, "h w 3"]
    size: Int[np.ndarray, "2"]
    extent: Int[np.ndarray, "2"] | None
    original_size: tuple[int, int]
    record: int
    valid: bool


@dataclasses.dataclass(frozen=True)
class _EvalRows:
    """The rows of all evaluation batches: a record, or None for filler, and its canvas."""

    dataset: Dataset
    data: DataConfig
    rows: tuple[tuple[int | None, tuple[int, int]], ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> _EvalRow:
        record, canvas = self.rows[index]
        if record is None:  # covers its canvas, so that no one divides by a size of zero
            whole = np.array(canvas, np.int32)
            extent = None if self.data.eval_canvas == "exact" else whole
            return _EvalRow(np.zeros((*canvas, 3), np.uint8), whole, extent, canvas, 0, False)
        prepared = prepare_image(self.dataset.image(record), self.data)
        return _EvalRow(*prepared, self.dataset.size(record), record, True)


def _collate_eval(rows: Sequence[_EvalRow]) -> EvalBatch:
    return EvalBatch(
        images=np.stack([row.image for row in rows]),
        sizes=np.stack([row.size for row in rows]),
        extents=None if rows[0].extent is None else np.stack([row.extent for row in rows]),
        original_sizes=np.array([row.original_size for row in rows], np.int32),
        records=np.array([row.record for row in rows], np.int32),
        valid=np.array([row.valid for row in rows], bool),
    )


def _batches(source: Sequence[T], rows: int, stack: Callable[[Sequence[T]], object], data: DataConfig) -> Batches:
    """Read `source` ahead in order and stack every `rows` elements.

    Processes send single samples: a padded batch is ten times larger than what it holds, and batches that the workers
    made would depend on their number at the end.
    """
    return Batches(iter(_read_ahead(source, data).batch(rows, batch_fn=stack)), data)


def _read_ahead(source: Sequence[T], data: DataConfig) -> grain.IterDataset:
    elements = grain.MapDataset.source(source)
    if not data.workers:
        threads = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
        return elements.to_iter_dataset(threads)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's processes read absl flags; a notebook has none
    alone = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    workers = grain.MultiprocessingOptions(num_workers=data.workers, per_worker_buffer_size=_AHEAD_PER_WORKER)
    return elements.to_iter_dataset(alone).mp_prefetch(workers)
