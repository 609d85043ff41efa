"""Configs as YAML files: reading them, ``KEY=VALUE`` overrides, and writing resolved ones."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from data_pipelines.errors import UserError
from recsys.config.removal import without_feature

_FILE_BYTES = 4 << 20
_VALUES = 100_000
"""The most values of one config, where each alias counts as everything that it expands to."""


class _Loader(yaml.SafeLoader):
    """YAML in which only ``true`` and ``false`` are booleans, as in YAML 1.2: ``on`` is a key of a join.

    A key that occurs twice is refused: PyYAML would silently keep the last. So are aliases that expand to too much: a
    few lines of them hold billions of values.
    """

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _size(node, {}) > _VALUES:
            raise _Refused(f"it holds more than {_VALUES:,} values once aliases (*name) are written out: use fewer")
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if key.value in lines:
                raise _Refused(f"the key {key.value!r} is in lines {lines[key.value]} and {line}: keep one of them")
            lines[key.value] = line
        return node


class _Refused(yaml.YAMLError):
    """Valid YAML that is not a valid config; the message is one sentence."""


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """The number of values below a node, aliases expanded; more than the limit if a node contains itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = _VALUES + 1  # what a node counts inside itself
        parts = [p for entry in node.value for p in (entry if isinstance(node, yaml.MappingNode) else (entry,))]
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        with path.open("rb") as file:
            text = file.read(_FILE_BYTES + 1)
        if len(text) > _FILE_BYTES:
            raise UserError(f"{path} is larger than {_FILE_BYTES} bytes: give the path of a config.")
        content = _load(text.decode())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give the path of a config.") from None
    except _Refused as error:
        raise UserError(f"{path}: {error}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not valid YAML: {reason}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold keys such as data, model and train.")
    return content


def _load(text: str) -> Any:
    """Parse YAML.

    Raises:
        YAMLError: It is not valid YAML, or more than a config may be.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise _Refused("it nests too deeply") from None
    except (ValueError, OverflowError) as error:  # of a number or date that Python cannot hold
        raise _Refused(f"a value cannot be read ({error})") from None


def override(content: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of ``content`` with each ``a.b.c=VALUE`` set; values are read as YAML.

    ``data.features.NAME=null`` removes a feature, and what refers to it.
    """
    result = dict(content)
    for assignment in overrides:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise UserError(f"{assignment!r} is not KEY=VALUE: write for example train.batch_size=4096.")
        try:
            value = _load(text)
        except yaml.YAMLError:
            raise UserError(f"the value of {assignment!r} is not valid YAML: put it in quotes.") from None
        keys = key.split(".")
        if value is None and len(keys) == 3 and keys[:2] == ["data", "features"]:
            if keys[2] not in ((result.get("data") or {}).get("features") or {}):
                raise UserError(f"{assignment!r} removes a feature that is not there.")
            result = without_feature(result, keys[2])
        else:
            _set(result, keys, value)
    return result


def to_yaml(config: BaseModel) -> str:
    """The resolved config: every key with its value, readable by :func:`load_config`."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


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
