"""Locations in a config: ``${NAME}`` in them is read from the environment when the location is used."""

import os
import re
from typing import Annotated

from pydantic import PlainSerializer

from data_pipelines.errors import UserError
from data_pipelines.redaction import REFERENCE, redact, remember

Location = Annotated[str, PlainSerializer(redact, when_used="json")]
"""A path or address. It may hold ``${NAME}``, which :func:`expand` replaces when the location is read and not before,
so that saved configs keep the name. A credential in plain text is saved as ``***``."""


def expand(location: str) -> str:
    """``location`` with every ``${NAME}`` replaced from the environment. The result must not be saved.

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
