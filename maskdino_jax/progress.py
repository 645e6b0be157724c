"""A bar that shows how far something is, where standard error is a terminal; nothing elsewhere, such as in files."""

import contextlib
import functools
import logging
import sys
from collections.abc import Callable, Iterator

from tqdm import tqdm


class Bar:
    """One line at the bottom of the terminal, gone when closed. Log lines appear above it.

    Args:
        title: what is going on.
        total: how many there are; None: not known.
        unit: what is counted, in the singular.
        start: how many were done before.
    """

    def __init__(self, title: str, total: int | None, unit: str, start: int = 0) -> None:
        # `disable=None`: shown on a terminal only. `miniters=1`: steps may become slower at any time.
        self._bar = tqdm(
            desc=title,
            total=total,
            unit=f" {unit}s",
            initial=start,
            disable=None,
            leave=False,
            dynamic_ncols=True,
            miniters=1,
            file=sys.stderr,
        )
        self._records = contextlib.ExitStack()
        if self.shown:
            self._records.enter_context(_records_above())

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def shown(self) -> bool:
        """Whether there is a terminal; lines of progress are for where there is none."""
        return not self._bar.disable

    def step(self, note: str = "") -> None:
        """One more is done; a note is shown until the next one."""
        self._bar.update()
        if note:
            self._bar.set_postfix_str(note)  # shown at once, while steps alone are at most ten times a second

    def close(self) -> None:
        """Take the line away. A second time changes nothing."""
        self._bar.close()
        self._records.close()


@contextlib.contextmanager
def _records_above() -> Iterator[None]:
    """Log records take the bars away, are written, and put them back. Those of files are left alone."""
    handlers = [handler for handler in logging.getLogger().handlers if not isinstance(handler, logging.FileHandler)]
    before = [(handler, handler.handle) for handler in handlers]  # of a bar around this one perhaps its own
    for handler, handle in before:
        handler.handle = functools.partial(_handle, handle)
    try:
        yield
    finally:
        for handler, handle in before:
            handler.handle = handle


def _handle(write: Callable[[logging.LogRecord], bool], record: logging.LogRecord) -> bool:
    with tqdm.external_write_mode(file=sys.stderr):
        return write(record)
