"""Removing a feature from a config, with everything that refers to it: ``data.features.topics=null``."""

from collections.abc import Mapping
from typing import Any

_PARTS = 2
"""The fewest features of a cross."""


def without_feature(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A copy of a config's content without a feature, and without everything that needs it.

    Histories and crosses lose it as a part, and are removed if no part is left (for a cross, fewer than two).
    Statistics by the column of a bag are removed with the feature that reads it. Groups, ``model.pooling``,
    ``model.tables``, ``train.features`` and ``train.unknown`` no longer name it.
    """
    result = dict(content)
    data = dict(_block(content, "data"))
    features = dict(_block(data, "features"))
    removed = features.pop(name, None)
    data["features"], result["data"] = features, data
    left = {}
    for other, feature in features.items():
        fewer = _without_part(feature, name)
        if fewer is None or _needs_bag(fewer, name, removed, features):
            continue
        left[other] = fewer
    data["features"] = left
    for gone in features.keys() - left.keys():
        result = without_feature(result | {"data": data | {"features": left | {gone: features[gone]}}}, gone)
        data = result["data"]
        left = data["features"]
    return _without_mentions(result, name)


def _without_part(feature: Any, name: str) -> Any:
    """``feature`` without ``name`` among its parts; ``None`` if too few are left."""
    if not isinstance(feature, Mapping) or not isinstance(feature.get("of"), list) or name not in feature["of"]:
        return feature
    parts = [part for part in feature["of"] if part != name]
    return None if len(parts) < (_PARTS if feature.get("kind") == "cross" else 1) else {**feature, "of": parts}


def _needs_bag(feature: Any, name: str, removed: Any, features: Mapping[str, Any]) -> bool:
    """Whether ``feature`` is a statistic by the column of a bag that no feature reads any more."""
    if not isinstance(feature, Mapping) or not isinstance(removed, Mapping) or removed.get("kind") != "bag":
        return False
    column = removed.get("column", name)
    others = (
        other.get("column", key) == column
        for key, other in features.items()
        if isinstance(other, Mapping) and other.get("kind") == "bag"
    )
    return column in (feature.get("by") or []) and not any(others)


def _without_mentions(content: dict[str, Any], name: str) -> dict[str, Any]:
    data = dict(content["data"])
    if isinstance(data.get("groups"), Mapping):
        members = {group: [m for m in names if m.split(".")[0] != name] for group, names in data["groups"].items()}
        data["groups"] = {group: names for group, names in members.items() if names}
    result = content | {"data": data}
    for block, key in (("model", "pooling"), ("model", "tables"), ("train", "unknown"), ("train", "features")):
        inside = _block(content, block)
        named = inside.get(key)
        if key == "tables" and any(_table(feature) == name for feature in data["features"].values()):
            continue
        if isinstance(named, Mapping):
            kept: Any = {entry: value for entry, value in named.items() if str(entry).split(".")[0] != name}
        elif isinstance(named, list):
            kept = [entry for entry in named if entry != name]
        else:
            continue
        result[block] = {**_block(result, block), key: kept}
    return result


def _table(feature: Any) -> Any:
    return feature.get("table") if isinstance(feature, Mapping) else None


def _block(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = content.get(key)
    return value if isinstance(value, Mapping) else {}
