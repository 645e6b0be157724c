"""What happens to a fault in a data set: it stops, or it is told to someone who counts it."""

from collections.abc import Callable
from typing import NoReturn, TypeAlias

# Called with the kind of the fault, such as "broken polygon", and a message that names the place and the remedy. If it
# returns, the reader leaves out what is faulty and goes on.
Report: TypeAlias = Callable[[str, str], None]


def stop(kind: str, message: str) -> NoReturn:
    """The report that makes every fault an error."""
    raise ValueError(message)
