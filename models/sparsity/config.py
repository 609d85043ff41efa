"""The ``sparsity`` block: which levers are on, and the levers it builds."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from data_pipelines.config.base import same_definition
from models.sparsity.activations import DropConnect, DropConnectConfig, KWinnersConfig
from models.sparsity.compression.low_rank import LowRank, LowRankConfig
from models.sparsity.compression.precision import Quantization, QuantizationConfig
from models.sparsity.lever import Lever, LeverConfig
from models.sparsity.penalties.feature_gates import FeatureGatesConfig, FeatureSelection
from models.sparsity.penalties.ftrl import Ftrl, FtrlConfig
from models.sparsity.penalties.groups import GroupConfig, GroupLasso
from models.sparsity.penalties.l1 import L1, L1Config
from models.sparsity.penalties.pep import Pep, PepConfig
from models.sparsity.pruning.dynamic_sparse import DynamicSparse, DynamicSparseConfig, FixedMask, FixedMaskConfig
from models.sparsity.pruning.post_pruning import PostPruning, PostPruningConfig
from models.sparsity.pruning.row_pruning import RowPruning, RowPruningConfig
from models.sparsity.pruning.unit_pruning import UnitPruning, UnitPruningConfig
from models.sparsity.pruning.weight_pruning import WeightPruning, WeightPruningConfig


class SparsityConfig(LeverConfig):
    """Levers by name; a lever that is absent is off. They work alone or together, in the order of these keys.

    Levers that are registered (:func:`register_lever`) work after `fixed_mask` and before those that only change how
    weights are stored.
    """

    model_config = ConfigDict(extra="allow")

    feature_gates: FeatureGatesConfig | None = None
    k_winners: KWinnersConfig | None = None
    dropconnect: DropConnectConfig | None = None
    pep: PepConfig | None = None
    l1: L1Config | None = None
    ftrl: FtrlConfig | None = None
    group: GroupConfig | None = None
    row_pruning: RowPruningConfig | None = None
    unit_pruning: UnitPruningConfig | None = None
    weight_pruning: WeightPruningConfig | None = None
    dynamic_sparse: DynamicSparseConfig | None = None
    fixed_mask: FixedMaskConfig | None = None
    low_rank: LowRankConfig | None = None
    quantization: QuantizationConfig | None = None
    post_pruning: PostPruningConfig | None = None

    @classmethod
    def known_keys(cls) -> list[str]:
        return [*cls.model_fields, *_REGISTERED]

    @model_validator(mode="before")
    @classmethod
    def _registered_levers(cls, content: Any) -> Any:
        """Parse the keys of registered levers, and refuse unknown keys."""
        if not isinstance(content, Mapping):
            return content
        parsed = dict(content)
        for name in parsed.keys() - cls.model_fields.keys():
            if name not in _REGISTERED:
                raise ValidationError.from_exception_data(
                    cls.__name__, [{"type": "extra_forbidden", "loc": (name,), "input": parsed[name]}]
                )
            try:
                settings = parsed[name] if parsed[name] is None else _REGISTERED[name][0].model_validate(parsed[name])
            except ValidationError as error:
                faults: list[InitErrorDetails] = [
                    InitErrorDetails(
                        type=PydanticCustomError(fault["type"], fault["msg"].replace("{", "{{").replace("}", "}}")),
                        loc=(name, *fault["loc"]),
                        input=fault["input"],
                    )
                    for fault in error.errors()
                ]
                raise ValidationError.from_exception_data(cls.__name__, faults) from None
            parsed[name] = settings
        return parsed


_REGISTERED: dict[str, tuple[type[LeverConfig], type[Lever]]] = {}
_AnyLever = TypeVar("_AnyLever", bound=type[Lever])


def register_lever(config: type[LeverConfig]) -> Callable[[_AnyLever], _AnyLever]:
    """Class decorator that makes a lever known by its ``name``: the block ``sparsity.<name>`` switches it on.

    Args:
        config: The keys of that block. The lever is built with an object of this class.

    Raises:
        ValueError: Another lever has this name.

    Example:
        >>> from models.sparsity.lever import Density
        >>> class HalveConfig(LeverConfig):
        ...     density: Density = 0.5
        >>> @register_lever(HalveConfig)
        ... class Halve(Lever):
        ...     name = "halve"
        ...     def __init__(self, config):
        ...         self.config = config
        >>> [lever.config.density for lever in build_levers(SparsityConfig(halve={"density": 0.25}))]
        [0.25]
    """

    def add(lever: _AnyLever) -> _AnyLever:
        known = _REGISTERED.get(lever.name, (config, lever))[1]
        if lever.name in SparsityConfig.model_fields or not same_definition(known, lever):
            raise ValueError(f"the lever {lever.name!r} is taken: give the new one another name")
        _REGISTERED[lever.name] = (config, lever)
        return lever

    return add


_FIRST_LEVERS: dict[str, Callable[[Any], Lever]] = {
    "feature_gates": FeatureSelection,
    "dropconnect": DropConnect,
    "pep": Pep,
    "l1": L1,
    "ftrl": Ftrl,
    "group": GroupLasso,
    "row_pruning": RowPruning,
    "unit_pruning": UnitPruning,
    "weight_pruning": WeightPruning,
    "dynamic_sparse": DynamicSparse,
    "fixed_mask": FixedMask,
}
_LAST_LEVERS: dict[str, Callable[[Any], Lever]] = {
    "low_rank": LowRank,
    "quantization": Quantization,
    "post_pruning": PostPruning,
}


def build_levers(config: SparsityConfig) -> list[Lever]:
    """The levers that ``config`` switches on, in its order."""
    registered: dict[str, Callable[[Any], Lever]] = {name: lever for name, (_, lever) in _REGISTERED.items()}
    ordered = _FIRST_LEVERS | registered | _LAST_LEVERS
    settings = ((lever, getattr(config, name, None)) for name, lever in ordered.items())
    return [lever(chosen) for lever, chosen in settings if chosen is not None]


def shape_model(experiment: Mapping[str, Any]) -> dict[str, Any]:
    """An experiment with the keys of ``model`` that levers set: feature gates, and k-winners in the tower."""
    blocks = {name: _mapping(experiment, name) for name in ("sparsity", "model")}
    gates, winners = (_mapping(blocks["sparsity"], name) for name in ("feature_gates", "k_winners"))
    if gates:
        blocks["model"]["gates"] = True
    if winners:
        blocks["model"]["tower"] = (
            {"kind": "moe"} | _mapping(blocks["model"], "tower") | {"k_winners": winners.get("density")}
        )
    return dict(experiment) | {"model": blocks["model"]} if gates or winners else dict(experiment)


def _mapping(block: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = block.get(name)
    if isinstance(value, BaseModel):
        value = value.model_dump()
    return dict(value) if isinstance(value, Mapping) else {}
