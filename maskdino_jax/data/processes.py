"""What the loader's processes send, without waiting for ever for one that was ended from outside."""

import multiprocessing
import threading
import time
from collections.abc import Iterator
from typing import ClassVar, Generic, TypeVar

import grain

_LOOK = 1.0  # seconds of waiting after which the processes are looked after, again and again
_GRACE = 5.0  # seconds that are left to Grain, which notices most deaths itself

T = TypeVar("T")


class Watched(Iterator[T], Generic[T]):
    """An iterator of Grain that processes feed.

    Grain asks whether a process lives while nothing comes from it. But one that dies while it is sending leaves half of
    a message behind, and who has begun to read it waits for the other half. So it is read in a thread, which is given
    up once a process is found dead.
    """

    _given_up: ClassVar[list[grain.DatasetIterator]] = []  # never collected: Grain would wait for their threads

    def __init__(self, iterator: grain.DatasetIterator) -> None:
        self._iterator = iterator
        self._others = set(multiprocessing.active_children())
        self._own: set[multiprocessing.process.BaseProcess] = set()  # started while the first element is waited for
        self._started = False

    def __next__(self) -> T:
        """
        Raises:
            ChildProcessError: a process was ended from outside.
        """
        outcome: list[T | BaseException] = []
        reader = threading.Thread(target=self._read, args=(outcome,), daemon=True)
        reader.start()
        died = None
        while reader.is_alive():
            reader.join(_LOOK)
            if not self._started:
                self._own |= set(multiprocessing.active_children()) - self._others
            if self._is_cut_off():
                died = died or time.monotonic()
                if reader.is_alive() and time.monotonic() - died > _GRACE:
                    raise ChildProcessError("it died while it was sending")
        self._started = True
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]

    def close(self) -> None:
        """End the processes."""
        if not self._is_cut_off():
            self._iterator.close()
            return
        self._given_up.append(self._iterator)
        for process in self._own:
            process.kill()
            process.join()

    def _is_cut_off(self) -> bool:
        """Whether a process was ended from outside."""
        return any(process.exitcode not in (None, 0) for process in self._own)

    def _read(self, outcome: list[T | BaseException]) -> None:
        try:
            outcome.append(next(self._iterator))
        except BaseException as error:  # raised again where it was asked for; also StopIteration
            outcome.append(error)
