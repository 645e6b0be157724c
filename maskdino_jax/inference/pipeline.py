"""Images of a stream through the model in batches, and the answers in the order of the images.

Images whose canvases are alike go together. The device works on a batch while the host reads the images of the next
one; never more than two batches of images are held, so that memory does not depend on the length of the stream.
"""

import dataclasses
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from jaxtyping import UInt8

from maskdino_jax.config import DataConfig
from maskdino_jax.data import PreparedImage, prepare_image
from maskdino_jax.inference.postprocess import Pending
from maskdino_jax.inference.results import Segments
from maskdino_jax.structures import EvalBatch


def in_order(
    images: Iterable[UInt8[np.ndarray, "h w 3"]],
    begin: Callable[[EvalBatch], list[Pending]],
    finish: Callable[[Pending], Segments],
    *,
    data: DataConfig,
    together: int,
) -> Iterator[Segments]:
    """Results of images, one for each, in their order.

    Of the images of one canvas `together` make a batch; what no batch is made of goes alone, so that at most two
    programs are compiled for a canvas. An image waits for others of its canvas until `2 * together` images are held:
    read, but without a result that has been taken.

    Args:
        begin: asks the device about a batch, without waiting for it.
        finish: waits for the result of one image.
    """
    works, due = _Works(begin, finish), 0
    for place, pixels in enumerate(images):
        canvas = works.add(_Waiting(place, pixels.shape[:2], prepare_image(pixels, data)))
        if len(works.waiting[canvas]) == together:
            works.start(works.waiting.pop(canvas))
        if place - due == 2 * together - 1:
            works.hurry(due)
        while due in works.done:
            yield works.done.pop(due)
            due += 1
    for one in sorted((one for group in works.waiting.values() for one in group), key=lambda one: one.place):
        works.start([one])
        while due in works.done:
            yield works.done.pop(due)
            due += 1
    while works.flying:
        works.land()
    yield from (works.done[place] for place in sorted(works.done))


@dataclasses.dataclass(frozen=True)
class _Waiting:
    """An image that is ready for the model."""

    place: int
    original_size: tuple[int, int]
    prepared: PreparedImage


class _Works:
    """Images that wait for a batch, batches that the device works on, and results that wait for their turn."""

    def __init__(self, begin: Callable[[EvalBatch], list[Pending]], finish: Callable[[Pending], Segments]) -> None:
        self._begin, self._finish = begin, finish
        self.waiting: defaultdict[tuple[int, ...], list[_Waiting]] = defaultdict(list)  # by canvas
        self.flying: deque[list[Pending]] = deque()
        self.done: dict[int, Segments] = {}  # by place

    def add(self, one: _Waiting) -> tuple[int, ...]:
        """Let an image wait; returns its canvas."""
        canvas = one.prepared.image.shape
        self.waiting[canvas].append(one)
        return canvas

    def start(self, group: list[_Waiting]) -> None:
        """Send a batch; then finish the one before, which the device has computed meanwhile."""
        self.flying.append(self._begin(_batch(group)))
        if len(self.flying) > 1:
            self.land()

    def land(self) -> None:
        """Finish the oldest batch."""
        for pending in self.flying.popleft():
            self.done[pending.record] = self._finish(pending)

    def hurry(self, place: int) -> None:
        """Finish the oldest image, alone if it still waits for others."""
        for group in self.waiting.values():
            if group and group[0].place == place:
                self.start([group.pop(0)])
                break
        while place not in self.done:
            self.land()


def _batch(group: list[_Waiting]) -> EvalBatch:
    """Images of one canvas; `records` are their places."""
    extents = [one.prepared.extent for one in group]
    return EvalBatch(
        images=np.stack([one.prepared.image for one in group]),
        sizes=np.stack([one.prepared.size for one in group]),
        extents=None if extents[0] is None else np.stack(extents),
        original_sizes=np.array([one.original_size for one in group], np.int32),
        records=np.array([one.place for one in group], np.int32),
        valid=np.ones(len(group), bool),
    )
