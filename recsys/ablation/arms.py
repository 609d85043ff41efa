"""The arms of a study: which variants of the experiment are trained, and what each is compared with.

A *unit* is what an arm removes or adds: one feature, or one named group of features.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig
from data_pipelines.features.kinds.id import IdConfig
from data_pipelines.features.kinds.relative import RelativeConfig
from models.layers.losses import LossConfig, PointwiseConfig
from recsys.config.study import Part, StudyConfig
from recsys.trials.trials import Change

Kind = Literal[
    "base",
    "core",
    "leave_one_out",
    "without",
    "add_one_in",
    "pair",
    "replace",
    "permute",
    "permute_within",
    "mask",
    "mask_oov",
    "leave_out_expert",
    "vary",
    "grid",
    "selection",
    "warm_start",
]
LOOKS: dict[Change, str] = {
    "permute": "permute",
    "permute_within": "permute within",
    "mask": "mask",
    "mask_oov": "mask to OOV",
}
"""Changes of the test rows of a trained model, and the names of their arms."""

BASE = "all features"
CORE = "core"
WARM = "warm: "
WARM_BASE = WARM + BASE


@dataclass(frozen=True)
class Arm:
    """One variant of the experiment.

    Attributes:
        name: Unique in the study, readable in plots.
        features: Features (by the config's names) that the ranker reads.
        overrides: Config keys and their values.
        change: What is done with the trained base and ``units``; ``None`` for arms that train from scratch.
        units: The units in which the arm differs from its reference; of a left-out expert, its block and its place.
        reference: Name of the arm it is compared with.
    """

    name: str
    kind: Kind
    features: tuple[str, ...]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    change: Change | None = None
    units: tuple[str, ...] = ()
    reference: str = BASE

    @property
    def trains(self) -> bool:
        return self.change is None


def plan_arms(
    study: StudyConfig,
    data: DataConfig,
    features: Sequence[str],
    *,
    loss: LossConfig | None = None,
    experts: Sequence[int] = (),
) -> list[Arm]:
    """All arms that are known at the start, the base first.

    Args:
        features: What the base reads, in the order of the config.
        loss: What the base minimises; pointwise if absent.
        experts: How many experts each block of the base's tower has.

    Raises:
        UserError: A name is neither a feature nor a group, an arm would have no feature, or there are no experts to
            leave out.
    """
    units = Units(data, features)
    everything = units.features
    arms = [Arm(BASE, "base", everything)]
    if study.core:
        core = units.members(study.core, "core")
        arms.append(Arm(CORE, "core", _in_order(everything, core)))
    left_out = units.expand(study.leave_one_out, "leave_one_out")
    arms.extend(_without(everything, units, "leave_one_out", (unit,)) for unit in left_out)
    arms.extend(_without_part(part, data, everything, loss or PointwiseConfig()) for part in study.without)
    for unit in units.expand(study.add_one_in, "add_one_in"):
        kept = _in_order(everything, {*arms[1].features, *units[unit]})
        if kept != arms[1].features:
            arms.append(Arm(f"core + {unit}", "add_one_in", kept, units=(unit,), reference=CORE))
    arms.extend(_pair_arms(study, units, everything, arms))
    arms.extend(_replacements(study, units, data))
    for change, verb in LOOKS.items():
        changed = units.expand(getattr(study, change), change)
        arms.extend(Arm(f"{verb} {unit}", change, everything, change=change, units=(unit,)) for unit in changed)
    if study.leave_out_experts:
        arms.extend(_without_experts(everything, experts))
    if study.warm_start:
        warm = partial(Arm, kind="warm_start", features=everything, change="warm_start", reference=WARM_BASE)
        arms.append(warm(WARM_BASE))
        arms.extend(warm(f"{WARM}without {unit}", units=(unit,)) for unit in left_out)
    arms.extend(_config_arms(study, everything))
    return list({arm.name: arm for arm in arms}.values())


class Units(Mapping[str, tuple[str, ...]]):
    """Features and groups by name, with the features that each stands for."""

    def __init__(self, data: DataConfig, features: Sequence[str]) -> None:
        self.features = tuple(features)
        self.groups = {name: self._read(members) for name, members in data.groups.items() if self._read(members)}
        self._members = self.groups | {name: (name,) for name in self.features}

    def _read(self, members: Sequence[str]) -> tuple[str, ...]:
        """The members of a group that the base reads."""
        named = dict.fromkeys(member.split(".")[0] for member in members)
        return tuple(name for name in named if name in self.features)

    def __getitem__(self, unit: str) -> tuple[str, ...]:
        return self._members[unit]

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def expand(self, names: Sequence[str], key: str) -> list[str]:
        """Units that ``names`` (the value of ``ablation.<key>``) stand for, each once."""
        words = {"features": self.features, "groups": tuple(self.groups)}
        units = [unit for name in names for unit in words.get(name, (name,))]
        for unit in units:
            if unit not in self._members:
                groups = ", ".join(self.groups) or "none"
                raise UserError(
                    f"ablation.{key} names `{unit}`, which is neither a feature nor a group: the features are "
                    f"{', '.join(self.features)}; the groups are {groups}."
                )
        return list(dict.fromkeys(units))

    def members(self, names: Sequence[str], key: str) -> set[str]:
        """All features of the units that ``names`` stand for."""
        return {feature for unit in self.expand(names, key) for feature in self[unit]}


def narrow(content: Mapping[str, Any], kept: Sequence[str], tables: Sequence[str]) -> dict[str, Any]:
    """The config without keys about features that have been removed.

    Args:
        content: An experiment's resolved config, as plain values.
        kept: Features that remain, by the config's names.
        tables: Tables that remain.
    """
    gone = set(content["data"]["features"]) - set(kept)

    def remains(name: str) -> bool:
        return name.split(".")[0] not in gone

    result: dict[str, Any] = json.loads(json.dumps(content))
    model, unknown = result["model"], result["train"]["unknown"]
    result["train"]["unknown"] = {name: share for name, share in unknown.items() if remains(name)}
    model["pooling"] = {name: way for name, way in model["pooling"].items() if remains(name)}
    model["context"] = [name for name in model["context"] if remains(name)]
    model["tables"] = {name: table for name, table in model["tables"].items() if name in tables}
    levers = result["sparsity"].items()
    result["sparsity"] = {name: _narrow_lever(lever, tables) if lever else lever for name, lever in levers}
    return result


def _narrow_lever(lever: Mapping[str, Any], tables: Sequence[str]) -> dict[str, Any] | None:
    """A lever without the removed tables; ``None`` if it was only for these."""
    result = dict(lever)
    for key in {"tables", "table_bits"} & lever.keys():
        if isinstance(lever[key], dict):
            result[key] = {name: value for name, value in lever[key].items() if _vocabulary(name) in tables}
        elif isinstance(lever[key], list) and lever[key]:
            result[key] = [name for name in lever[key] if _vocabulary(name) in tables]
            if not result[key]:
                return None
    return result


def _vocabulary(table: str) -> str:
    """The vocabulary of a table: the wide part has a table of its own for each."""
    return table.removeprefix("wide ")


def label(value: Any) -> str:
    """A config value as plots show it."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":")).replace('"', "")


def _without(everything: tuple[str, ...], units: Units, kind: Kind, gone: tuple[str, ...]) -> Arm:
    kept = _not_in(everything, {feature for unit in gone for feature in units[unit]})
    if not kept:
        raise UserError(
            f"ablation.{'pairs' if kind == 'pair' else kind}: without {' and '.join(gone)} no feature is left: "
            "take it out of the list."
        )
    return Arm(f"without {', '.join(gone)}", kind, kept, units=gone)


def _without_part(part: Part, data: DataConfig, everything: tuple[str, ...], loss: LossConfig) -> Arm:
    """The arm that trains without the loss, the lists, the positions or the weights of the base."""
    pointwise, is_pointwise = {"train.loss": {"kind": "pointwise"}}, isinstance(loss, PointwiseConfig)
    missing = ""
    match part:
        case "loss":
            arm = Arm("without train.loss", "without", everything, pointwise)
            if is_pointwise:
                missing = "train.loss is pointwise already"
        case "group":
            relative = {name for name, feature in data.inputs.items() if isinstance(feature, RelativeConfig)}
            kept = _not_in(everything, relative)
            arm = Arm("without data.group", "without", kept, {} if is_pointwise else pointwise)
            if data.group is None:
                missing = "data.group is not set"
            elif is_pointwise and kept == everything:
                missing = "training uses no lists: train.loss is pointwise and no feature is relative"
        case "position":
            inputs = data.inputs.items()
            fixed = {name for name, feature in inputs if isinstance(feature, IdConfig) and feature.serve is not None}
            arm = Arm("without positions", "without", _not_in(everything, fixed))
            if arm.features == everything:
                missing = "no feature has `serve`"
        case "weight":
            arm = Arm("without data.weight", "without", everything, {"train.weights": False})
            if data.weight is None and all(task.row_weight is None for task in data.tasks.values()):
                missing = "neither data.weight nor the row_weight of a task is set"
    if missing:
        raise UserError(f"ablation.without names `{part}`, and {missing}: take it out of the list.")
    if not arm.features:
        raise UserError(f"ablation.without: without `{part}` no feature is left: take it out of the list.")
    return arm


def _not_in(everything: tuple[str, ...], gone: set[str]) -> tuple[str, ...]:
    return tuple(feature for feature in everything if feature not in gone)


def _pair_arms(study: StudyConfig, units: Units, everything: tuple[str, ...], arms: Sequence[Arm]) -> list[Arm]:
    """Every pair of the named units, and each unit alone, which interactions are computed from."""
    members = units.expand(study.pairs, "pairs")
    if len(members) == 1:
        raise UserError(f"ablation.pairs names only `{members[0]}`: name two or more.")
    known = {arm.name for arm in arms}
    alone = [_without(everything, units, "leave_one_out", (unit,)) for unit in members]
    pairs = itertools.combinations(members, 2)
    return [arm for arm in alone if arm.name not in known] + [
        _without(everything, units, "pair", pair) for pair in pairs if not set(units[pair[0]]) & set(units[pair[1]])
    ]


def _replacements(study: StudyConfig, units: Units, data: DataConfig) -> Iterator[Arm]:
    """Each variant instead of its feature or group."""
    for unit, variants in study.replace.items():
        units.expand([unit], "replace")
        kept = [feature for feature in units.features if feature not in units[unit]]
        for variant in variants:
            if variant not in data.inputs or variant in kept:
                raise UserError(
                    f"ablation.replace.{unit}: `{variant}` is not a feature of `data` that the base leaves out: define "
                    "it there, and leave it out of train.features."
                )
            features = tuple(name for name in data.inputs if name in kept or name == variant)
            yield Arm(f"{variant} for {unit}", "replace", features, units=(unit,))


def _without_experts(everything: tuple[str, ...], experts: Sequence[int]) -> Iterator[Arm]:
    """An arm for each expert, named by its load: seeds number their experts at random."""
    if not experts or min(experts) < 2:
        raise UserError(
            "ablation.leave_out_experts needs a mixture of at least two experts: set model.tower.kind to 'moe', or "
            "leave it out."
        )
    for block, count in enumerate(experts):
        where = f" of block {block}" if len(experts) > 1 else ""
        for place in range(count):
            name = f"without expert {place + 1} by load{where}"
            units = (f"{block}/{place}",)
            yield Arm(name, "leave_out_expert", everything, change="leave_out_expert", units=units)


def _config_arms(study: StudyConfig, everything: tuple[str, ...]) -> Iterator[Arm]:
    for key, values in study.vary.items():
        for value in values:
            yield Arm(f"{_short(key)} = {label(value)}", "vary", everything, {key: value})
    keys = list(study.grid)
    for values_of_arm in itertools.product(*study.grid.values()) if keys else ():
        chosen = dict(zip(keys, values_of_arm, strict=True))
        name = ", ".join(f"{_short(key)} = {label(value)}" for key, value in chosen.items())
        yield Arm(name, "grid", everything, chosen)


def _short(key: str) -> str:
    """``model.tower.experts`` reads ``tower.experts``: the block says nothing that the rest does not."""
    return key.partition(".")[2] or key


def _in_order(everything: tuple[str, ...], kept: set[str]) -> tuple[str, ...]:
    return tuple(feature for feature in everything if feature in kept)
