"""Configs as YAML files: reading them, ``KEY=VALUE`` overrides, and writing resolved ones."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from data_pipelines.errors import UserError

_ENVIRONMENT = re.compile(r"\$\{(\w+)\}")


class _Loader(yaml.SafeLoader):
    """YAML in which only ``true`` and ``false`` are booleans, as in YAML 1.2: ``on`` is a key of a join.

    A key that stands twice is refused: PyYAML would silently keep the last.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if key.value in lines:
                raise _DuplicateKey(f"the key {key.value!r} stands in lines {lines[key.value]} and {line}")
            lines[key.value] = line
        return node


class _DuplicateKey(yaml.YAMLError):
    """Two entries of one mapping have the same key."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, with ``${NAME}`` expanded from the environment."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give the path of a config.") from None
    except _DuplicateKey as error:
        raise UserError(f"{path}: {error}: keep one of them.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not valid YAML: {reason}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold keys such as data, model and train.")
    return {key: _expand(value, path) for key, value in content.items()}


def override(content: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of ``content`` with each ``a.b.c=VALUE`` set; values are read as YAML."""
    result = dict(content)
    for assignment in overrides:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise UserError(f"{assignment!r} is not KEY=VALUE: write for example train.batch_size=4096.")
        try:
            value = yaml.load(text, _Loader)
        except yaml.YAMLError:
            raise UserError(f"the value of {assignment!r} is not valid YAML: put it in quotes.") from None
        _set(result, key.split("."), value)
    return result


def to_yaml(config: BaseModel) -> str:
    """The resolved config: every key with its value, readable by :func:`load_config`."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _expand(value: Any, path: Path) -> Any:
    if isinstance(value, dict):
        return {key: _expand(entry, path) for key, entry in value.items()}
    if isinstance(value, list):
        return [_expand(entry, path) for entry in value]
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise UserError(f"{path}: {value!r} needs the environment variable {match[1]}, which is not set: set it.")
        return os.environ[match[1]]

    return _ENVIRONMENT.sub(variable, value)


def _set(content: dict[str, Any], keys: list[str], value: Any) -> None:
    for position, key in enumerate(keys[:-1]):
        inner = content.get(key)
        if inner is not None and not isinstance(inner, dict):
            raise UserError(
                f"{'.'.join(keys)} cannot be set: {'.'.join(keys[: position + 1])} holds {inner!r}, not keys."
            )
        content[key] = dict(inner or {})
        content = content[key]
    content[keys[-1]] = value
