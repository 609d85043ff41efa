"""The base classes of every block of a configuration."""

from collections.abc import Iterator, Mapping
from functools import cache, reduce
from operator import or_
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from data_pipelines.extensions import META, PACKAGES, extension_of, versions


class Config(BaseModel):
    """Base of every block of a configuration: immutable, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def alternatives(cls) -> tuple[type["Config"], ...]:
        """The classes that a value of this type may have."""
        return (cls,)

    @classmethod
    def known_keys(cls) -> list[str]:
        """The keys that the block may have."""
        return list(cls.model_fields)

    def named_classes(self) -> Iterator[type]:
        """Registered classes that this block names by text, rather than holding their configs."""
        return iter(())


F = TypeVar("F", bound="Family")


class Family(Config):
    """Base of configs that have a key ``kind``, and to which new kinds can be added.

    A direct subclass is the root of a family. Each kind is a subclass of the root with the field
    ``kind: Literal["..."]``, decorated with :func:`register`. A field takes any registered kind if its type is
    ``Annotated[SerializeAsAny[Root], PlainValidator(Root.parse)]``. Kinds are looked up when a value is validated, so
    that those that are registered later are accepted as well.
    """

    _registered: ClassVar[dict[str, Any]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **keywords: Any) -> None:
        super().__pydantic_init_subclass__(**keywords)
        if Family in cls.__bases__:
            cls._registered = {}

    @classmethod
    def kinds(cls) -> Mapping[str, type[Self]]:
        """The registered classes of this family by their ``kind``."""
        return MappingProxyType(cls._registered)

    @classmethod
    def kind_name(cls) -> str | None:
        """The ``kind`` of the configs of this class; ``None`` for a class that is not a kind."""
        field = cls.model_fields.get("kind")
        names = () if field is None else get_args(field.annotation)
        return str(names[0]) if len(names) == 1 else None

    @classmethod
    def alternatives(cls) -> tuple[type[Config], ...]:
        """All registered classes for the root of a family; the class itself for a kind."""
        return tuple(cls._registered.values()) if Family in cls.__bases__ else (cls,)

    @classmethod
    def parse(cls, value: Any) -> Self:
        """A config of the class that ``value["kind"]`` names; ``value`` itself if it is one.

        Raises:
            ValidationError: The kind is missing or unknown, or a key does not fit it.
        """
        parsed: Self = _union(tuple(cls._registered.values())).validate_python(value)
        return parsed


def register(config: type[F]) -> type[F]:
    """Class decorator that adds a kind to its family.

    Raises:
        ValueError: The class has no field ``kind: Literal["..."]``, or another class has that kind already.

    Example:
        >>> from typing import Literal
        >>> from models.layers.interactions import InteractionConfig, NoInteraction
        >>> @rs.register
        ... class PlainConfig(InteractionConfig):
        ...     kind: Literal["plain"] = "plain"
        ...     def build(self, fields):
        ...         return NoInteraction(sum(fields.widths) + fields.dense, self)
        >>> InteractionConfig.parse({"kind": "plain"}).kind
        'plain'
    """
    kind = config.kind_name()
    if kind is None:
        raise ValueError(f'{config.__qualname__} needs the field `kind: Literal["..."]` with exactly one name')
    known = config._registered.setdefault(kind, config)
    if not same_definition(known, config):
        raise ValueError(f"the kind {kind!r} is taken: it is that of {known.__module__}.{known.__qualname__}")
    config._registered[kind] = config
    return config


def same_definition(one: Any, other: Any) -> bool:
    """Whether two classes or functions are one, perhaps from a module that was imported again."""
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


@cache
def _union(classes: tuple[type[Config], ...]) -> TypeAdapter[Any]:
    if len(classes) == 1:
        return TypeAdapter(classes[0])
    return TypeAdapter(Annotated[reduce(or_, classes), Field(discriminator="kind")])  # type: ignore[arg-type]


def extensions_meta(*configs: Config) -> dict[str, Any]:
    """What a manifest's ``meta`` records of extensions: ``{"extensions": {name: version}}``, or nothing.

    Args:
        configs: Blocks that are stored. An extension counts if it defines a class that one of them holds or names.
    """
    modules = {cls.__module__ for config in configs for cls in _classes(config)}
    needed = {extension_of(module) for module in modules if module.partition(".")[0] not in PACKAGES}
    return {META: versions(needed)} if needed else {}


def _classes(value: Any) -> Iterator[type]:
    if isinstance(value, Config):
        yield type(value)
        yield from value.named_classes()
        value = [entry for _, entry in value]
    elif isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return
    for entry in value:
        yield from _classes(entry)
