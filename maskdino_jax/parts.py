"""Parts of the system that a config names: one of ours by a short name, one of the user's own as `MODULE:NAME`.

A part of the user's own is looked up among the modules that are imported already. Nothing is imported because a config
asks for it: the config of a checkpoint comes from elsewhere, and must not choose what code runs here.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from maskdino_jax.config import ConfigError


def name_of(part: Callable[..., Any]) -> str:
    """`MODULE:NAME` of a class or function at the top level of its module, as options take it."""
    return f"{part.__module__}:{part.__qualname__}"


def find_part(option: str, name: str, ours: Mapping[str, Callable[..., Any]], base: type = object) -> Any:
    """What `config.<option> = name` stands for.

    Args:
        option: path of the option, for messages.
        ours: short names of what comes along.
        base: a part of the user's own must be a subclass of it; `object`: any class or function will do.

    Raises:
        ConfigError: there is no such part, its module is not imported, or it is not of the right kind.
    """
    if name in ours:
        return ours[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(f"config.{option} = {name!r}: choose one of {', '.join(ours)}, or your own as MODULE:NAME.")
    if module not in sys.modules:
        raise ConfigError(
            f"config.{option} = {name!r}: this part comes with the module {module}, which is not imported. Import it "
            "first; on the command line, give --config=FILE with a config file that imports it (docs/swap_a_part.md)."
        )
    part = getattr(sys.modules[module], attribute, None)
    fits = callable(part) if base is object else isinstance(part, type) and issubclass(part, base)
    if not fits:
        kind = "class or function" if base is object else f"{base.__name__} class"
        raise ConfigError(f"config.{option} = {name!r}: {module} has no {kind} of the name {attribute!r}.")
    return part
