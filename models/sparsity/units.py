"""Hidden units of a ranker: which numbers of which parameters belong to each, and how to take units out.

A unit of a dense layer is a row of its matrix, its bias, and a column of the next matrix; a unit of an expert is a
column of ``w1`` and a row of ``w2``. Once all of them are zero the unit says nothing, and can be removed.

Letters: U units of a layer, E experts, D width of the tower, H hidden width.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from models.ranker import RankerConfig
    from models.weights import Weights

_EXPERTS = re.compile(r"tower\.mixtures\.\d+\.(experts|shared)\.w1_EDH")
_LINEAR = re.compile(r"tower\.layers\.(\d+)\.weight")
_HEAD = "heads.linear.weight"


@dataclass(frozen=True)
class Slice:
    """The part of a parameter that belongs to a layer's units: units lie along ``axis``, from ``offset`` on."""

    parameter: str
    axis: int
    offset: int = 0
    expert: int | None = None

    def view(self, parameters: Mapping[str, Tensor], units: int) -> Tensor:
        """(U, rest) writable view."""
        tensor = parameters[self.parameter]
        tensor = tensor if self.expert is None else tensor[self.expert]
        return tensor.narrow(self.axis, self.offset, units).movedim(self.axis, 0)


@dataclass(frozen=True)
class UnitLayer:
    """One layer of hidden units, by the name it has in masks and reports."""

    name: str
    units: int
    incoming: tuple[Slice, ...]
    outgoing: tuple[Slice, ...]

    def squares(self, parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(U,) squared norms of what goes in and of what goes out of each unit."""
        incoming, outgoing = (
            sum_squares([part.view(parameters, self.units) for part in parts])
            for parts in (self.incoming, self.outgoing)
        )
        return incoming, outgoing

    @torch.no_grad()
    def scale_(self, parameters: Mapping[str, Tensor], factor_U: Tensor) -> None:
        """Multiply all that belongs to each unit by its factor."""
        for part in (*self.incoming, *self.outgoing):
            view = part.view(parameters, self.units)
            view.mul_(factor_U.to(view).view(-1, *[1] * (view.dim() - 1)))


def sum_squares(views: list[Tensor]) -> Tensor:
    """(U,) sums of squares over everything but the first dimension of all ``views``."""
    return torch.stack([view.detach().float().square().reshape(len(view), -1).sum(1) for view in views]).sum(0)


def unit_layers(parameters: Mapping[str, Tensor]) -> list[UnitLayer]:
    """Every layer of hidden units of the ranker whose parameters these are, in a fixed order."""
    return [*_expert_layers(parameters), *_dense_layers(parameters)]


def _expert_layers(parameters: Mapping[str, Tensor]) -> Iterator[UnitLayer]:
    for name in sorted(filter(_EXPERTS.fullmatch, parameters)):
        experts, _, hidden = parameters[name].shape
        second = name.replace("w1_EDH", "w2_EHD")
        for e in range(experts):
            path = f"{name.removesuffix('.w1_EDH')}.{e}"
            yield UnitLayer(path, hidden, (Slice(name, 1, expert=e),), (Slice(second, 0, expert=e),))


def _dense_layers(parameters: Mapping[str, Tensor]) -> Iterator[UnitLayer]:
    found = [(int(match[1]), name) for name in parameters if (match := _LINEAR.fullmatch(name))]
    names = [name for _, name in sorted(found)]
    for index, name in enumerate(names):
        units = len(parameters[name])
        if index + 1 < len(names):
            outgoing = Slice(names[index + 1], 1)
        elif _HEAD in parameters:
            outgoing = Slice(_HEAD, 1, parameters[_HEAD].shape[1] - units)
        else:
            continue
        bias = name.replace(".weight", ".bias")
        yield UnitLayer(name.removesuffix(".weight"), units, (Slice(name, 0), Slice(bias, 0)), (outgoing,))


def remove_dead_units(weights: "Weights") -> None:
    """Take units that say nothing out of the matrices, and narrow the config: logits stay the same.

    The experts of a mixture stay of one width, that of the expert with most living units.
    """
    alive = {layer.name: _alive(layer, weights.dense) for layer in unit_layers(weights.dense)}
    tower = weights.config.tower
    if tower.kind == "moe":
        hidden = max((int(mask.sum()) for mask in alive.values()), default=tower.hidden)
        for name in [name for name in weights.dense if _EXPERTS.fullmatch(name)]:
            path = name.removesuffix(".w1_EDH")
            second = f"{path}.w2_EHD"
            order_EH = torch.stack(
                [
                    alive[f"{path}.{e}"].int().argsort(descending=True, stable=True)[:hidden]
                    for e in range(len(weights.dense[name]))
                ]
            )
            first_EDH, second_EHD = weights.dense[name], weights.dense[second]
            weights.dense[name] = torch.stack([w_DH[:, order] for w_DH, order in zip(first_EDH, order_EH, strict=True)])
            weights.dense[second] = torch.stack([w_HD[order] for w_HD, order in zip(second_EHD, order_EH, strict=True)])
        _set_hidden(weights, hidden)
    else:
        hidden_sizes = list(tower.hidden)
        for index, layer in enumerate(unit_layers(weights.dense)):
            kept = alive[layer.name].nonzero().squeeze(1)
            for part in (*layer.incoming, *layer.outgoing):
                tensor = weights.dense[part.parameter]
                before, after = (
                    torch.arange(part.offset),
                    torch.arange(part.offset + layer.units, tensor.shape[part.axis]),
                )
                index_all = torch.cat([before, kept + part.offset, after])
                weights.dense[part.parameter] = tensor.index_select(part.axis, index_all)
            hidden_sizes[index] = len(kept)
        _set_hidden(weights, tuple(hidden_sizes))


def _alive(layer: UnitLayer, parameters: Mapping[str, Tensor]) -> Tensor:
    """(U,) whether a unit's output is used and can differ from zero; at least one unit is kept."""
    incoming, outgoing = layer.squares(parameters)
    alive = (incoming > 0) & (outgoing > 0)
    if not alive.any():
        alive[0] = True
    return alive


def _set_hidden(weights: "Weights", hidden: int | tuple[int, ...]) -> None:
    tower = weights.config.tower.model_copy(update={"hidden": hidden})
    config: RankerConfig = weights.config.model_copy(update={"tower": tower})
    weights.config = config
