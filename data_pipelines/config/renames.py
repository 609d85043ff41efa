"""Former names of configuration keys: accepted with a warning, so that older files still load."""

import logging
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

_log = logging.getLogger(__name__)


def accept_former_names(names: Mapping[str, str]) -> Callable[[Any], Any]:
    """A function for ``model_validator(mode="before")`` that moves values from former keys to their new names.

    Args:
        names: New name by former name. A value that is not a mapping is returned as it is.

    Raises:
        ValueError: A key is given under both names.
    """

    def rename(content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        content = dict(content)
        for old in names.keys() & content.keys():
            if names[old] in content:
                raise ValueError(f"{old} is the former name of {names[old]}: give {names[old]} alone")
            _warn(old, names[old])
            content[names[old]] = content.pop(old)
        return content

    return rename


@cache
def _warn(old: str, new: str) -> None:
    """Once per process: configs are parsed many times."""
    _log.warning("the key %s is now called %s; the former name will be removed: rename it.", old, new)
