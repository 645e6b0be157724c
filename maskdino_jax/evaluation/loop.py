"""Predict every image of this process: the device works ahead while threads finish what it found."""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import jax

from maskdino_jax.config import Config
from maskdino_jax.data import eval_batches
from maskdino_jax.evaluation.images import Images
from maskdino_jax.inference.postprocess import Pending
from maskdino_jax.inference.results import Segments
from maskdino_jax.progress import Bar
from maskdino_jax.structures import EvalBatch

_THREADS = min(8, os.cpu_count() or 1)  # finish images; NumPy leaves the interpreter lock while it computes
_SECONDS_BETWEEN_LOGS = 15

logger = logging.getLogger(__name__)


def results(
    begin: Callable[[EvalBatch], list[Pending]],
    finish: Callable[[Pending], Segments],
    images: Images,
    config: Config,
    log: Callable[[str], None] = logger.info,
) -> Iterator[tuple[int, Segments]]:
    """Record and results of each image, in the order of the batches.

    Of several processes each has its share of the batches, and needs no other one to compute them. However many images
    there are, only some batches of them are in memory at a time.

    Args:
        begin: starts a batch and returns before the device is done.
        finish: does the host's part of one image, in a thread.
        log: receives a line of progress from time to time, where a terminal does not show it.
    """
    share = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    start = last = time.monotonic()
    own = -(-len(images) // jax.process_count())
    with (
        Bar("evaluating", own, "image") as bar,
        eval_batches(images, config, config.inference.batch_size, **share) as batches,
        ThreadPoolExecutor(_THREADS) as pool,
    ):
        for done, found in enumerate(_ahead(begin, finish, batches, pool), 1):
            yield found
            bar.step()
            now = time.monotonic()
            if (now - last > _SECONDS_BETWEEN_LOGS and not bar.shown) or done == len(images):
                last = now
                of = f"{len(images)}" if jax.process_count() == 1 else f"about {len(images) // jax.process_count()}"
                log(f"evaluated {done} of {of} images, {done / (now - start):.1f} images/s")


def _ahead(
    begin: Callable[[EvalBatch], list[Pending]],
    finish: Callable[[Pending], Segments],
    batches: Iterator[EvalBatch],
    pool: ThreadPoolExecutor,
) -> Iterator[tuple[int, Segments]]:
    """The device works one batch ahead of the threads that finish its images."""
    waiting: deque[tuple[int, Future[Segments]]] = deque()

    def submit(images: list[Pending]) -> None:
        jax.block_until_ready([pending.found for pending in images])  # no more than two batches on the device
        waiting.extend((pending.record, pool.submit(finish, pending)) for pending in images)

    ahead: list[Pending] = []
    for batch in batches:
        now = begin(batch)
        submit(ahead)
        ahead = now
        while len(waiting) > 2 * _THREADS:  # as many as fit in memory
            record, future = waiting.popleft()
            yield record, future.result()
    submit(ahead)
    while waiting:
        record, future = waiting.popleft()
        yield record, future.result()
