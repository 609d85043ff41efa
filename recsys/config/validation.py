"""Validating a config: every mistake becomes one sentence that names the key, the value and the nearest known key."""

import difflib
from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from data_pipelines.config.base import Config
from data_pipelines.errors import UserError

_Model = TypeVar("_Model", bound=BaseModel)
_CONTAINERS = (dict, list, tuple)


def parse_config(model: type[_Model], content: Mapping[str, Any], *, source: str) -> _Model:
    """Validate ``content``; every fault becomes one sentence that names the key.

    Raises:
        UserError: An unknown key, a missing one, or a value that does not fit.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{source}: {_explain(model, error)}") from None


def _explain(model: type[BaseModel], error: ValidationError) -> str:
    """One sentence on the first fault of ``error``."""
    fault = error.errors()[0]
    keys, known = _locate(model, fault["loc"])
    where = ".".join(keys) or "the config"
    if fault["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(keys[-1], known, n=1, cutoff=0.0)
        others = f" (known here: {', '.join(known)})" if known else ""
        return (
            f"unknown key {where}: did you mean {nearest[0]}?{others}"
            if nearest
            else f"unknown key {where}: remove it."
        )
    if fault["type"] == "missing":
        return f"key {where} is missing: add it."
    if fault["type"] == "union_tag_not_found":
        return f"{where} needs the key kind: set {where}.kind too."
    reason = fault["msg"].removeprefix("Value error, ")
    if fault["type"] in {"value_error", "assertion_error"}:
        return f"{where}: {reason}"
    return f"{where} is {fault['input']!r}: {reason[0].lower()}{reason[1:]}."


def _locate(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[list[str], list[str]]:
    """The keys of pydantic's ``location`` without its union tags, and the known keys at the place of the last one."""
    candidates: list[Any] = [model]
    keys: list[str] = []
    known: list[str] = []
    for part in location:
        models = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        values = [get_args(c)[1 if get_origin(c) is dict else 0] for c in candidates if get_origin(c) in _CONTAINERS]
        tagged = [m for m in models if part in (m.__name__, *_tags(m))]
        fields = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        known = sorted({name for m in models for name in (m.known_keys() if issubclass(m, Config) else m.model_fields)})
        if tagged and not fields:
            candidates = tagged
            continue
        keys.append(str(part))
        candidates = [kind for annotation in fields for kind in _kinds(annotation)]
        candidates += [kind for annotation in values for kind in _kinds(annotation)]
    return keys, known


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    kind = model.model_fields.get("kind")
    return get_args(kind.annotation) if kind is not None else ()


def _kinds(annotation: Any) -> list[Any]:
    """The alternatives of an annotation: members of unions, the type in ``Annotated``, and the kinds of a family."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return list(annotation.alternatives())
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in {Union, UnionType}:
        return [kind for argument in get_args(annotation) for kind in _kinds(argument)]
    return [annotation]
