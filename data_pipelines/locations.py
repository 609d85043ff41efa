"""Places that a config names: ``${NAME}`` in them is read from the environment where the place is used."""

import os
import re
from typing import Annotated

from pydantic import PlainSerializer

from data_pipelines.errors import UserError
from data_pipelines.redaction import REFERENCE, redact, remember

Location = Annotated[str, PlainSerializer(redact, when_used="json")]
"""A path or address. It may hold ``${NAME}``, which :func:`expand` replaces where the place is read and nowhere
earlier, so that what is saved keeps the name; a credential written out is saved as ``***``."""


def expand(location: str) -> str:
    """``location`` with every ``${NAME}`` replaced from the environment, to be used and not to be kept.

    Raises:
        UserError: A variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in os.environ:
            raise UserError(f"{location} needs the environment variable {name}, which is not set: set it.")
        remember(name, os.environ[name])
        return os.environ[name]

    return REFERENCE.sub(value, location)
