"""The protocol of a part of the ranker: its work per row, its hidden units, how it is narrowed, its int8 form.

Levers, int8 and the size report use this protocol; none of them reads the name of a parameter. An operation that a part
does not implement raises an error that names the part and the operation.

Letters: B rows of a batch, D columns of a row, U hidden units of a group, O output columns of a matrix.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

import torch
from torch import Tensor, nn

from data_pipelines.errors import UserError

ComponentKind = Literal["layer", "expert", "router", "other"]


@dataclass(frozen=True)
class Component:
    """Some tensors of the dense part that are counted together.

    Attributes:
        name: Path in the ranker.
        tensors: By name in the ranker's state dict; of one expert, its part of the stack.
        flops: Multiplications and additions per row; of an expert, times the share of the rows that it computes.
        linears: Paths of the matrices whose inputs int8 may round to a grid.
    """

    name: str
    kind: ComponentKind
    tensors: Mapping[str, Tensor]
    flops: float = 0
    linears: tuple[str, ...] = ()


@dataclass(frozen=True)
class UnitSlice:
    """The part of a parameter that belongs to a group of units: units are along ``axis``, from ``offset`` on."""

    module: nn.Module
    parameter: str
    axis: int
    offset: int = 0
    expert: int | None = None

    def view(self, units: int) -> Tensor:
        """(U, ...) writable view."""
        tensor: Tensor = getattr(self.module, self.parameter)
        tensor = tensor if self.expert is None else tensor[self.expert]
        return tensor.narrow(self.axis, self.offset, units).movedim(self.axis, 0)


@dataclass(frozen=True)
class UnitGroup:
    """The hidden units of one layer, by the name they have in masks and reports.

    A unit of a dense layer is a row of its matrix, its bias, and a column of the next matrix; a unit of an expert is a
    column of its first matrix and a row of its second. Once all of them are zero, the unit can be removed.
    """

    name: str
    units: int
    incoming: tuple[UnitSlice, ...]
    outgoing: tuple[UnitSlice, ...]

    def squares(self) -> tuple[Tensor, Tensor]:
        """(U,) squared norms of the incoming and of the outgoing weights of each unit."""
        incoming, outgoing = (
            _sum_squares([part.view(self.units) for part in parts]) for parts in (self.incoming, self.outgoing)
        )
        return incoming, outgoing

    @property
    def numbers(self) -> int:
        """How many numbers belong to one unit."""
        return sum(part.view(self.units)[0].numel() for part in (*self.incoming, *self.outgoing))

    def alive(self) -> Tensor:
        """(U,) whether a unit's output is used and can differ from zero; True for at least one unit."""
        incoming_U, outgoing_U = self.squares()
        alive_U = (incoming_U > 0) & (outgoing_U > 0)
        if not alive_U.any():
            alive_U[0] = True
        return alive_U

    @torch.no_grad()
    def scale_(self, factor_U: Tensor) -> None:
        """Multiply all weights of each unit by its factor."""
        for part in (*self.incoming, *self.outgoing):
            view = part.view(self.units)
            view.mul_(factor_U.to(view).view(-1, *[1] * (view.dim() - 1)))


@dataclass(frozen=True)
class Int8Input:
    """The input of an int8 matrix: the positional ``argument`` of ``module``; its grid is called ``name``."""

    name: str
    module: nn.Module
    argument: int = 0


class Part(nn.Module):
    """Base of the parts of a ranker between the embedding lookup and the logits.

    Attributes:
        out_width: Columns of the output.
    """

    out_width: int

    @torch.no_grad()
    def start_at_zero(self) -> None:
        """Set every weight to zero: the part then adds nothing to the logits."""
        for parameter in self.parameters():
            parameter.zero_()

    def components(self, path: str) -> Iterator[Component]:
        """The part's tensors, each in exactly one component, and the work per row; see :func:`module_components`.

        Args:
            path: Of the part in the ranker.
        """
        return module_components(self, path)

    def flops(self, rows: int) -> float:
        """Multiplications and additions of products for so many rows."""
        return rows * sum(part.flops for part in self.components(""))

    @property
    def narrows_inputs(self) -> bool:
        """Whether removing an input column of zeros leaves all other outputs unchanged."""
        self.refuse("narrows_inputs", "say whether columns of zeros can be removed from its input")

    def narrow_inputs(self, kept_D: Tensor) -> Tensor | None:
        """Keep only the input columns ``kept_D`` (positions).

        Returns:
            Positions of the output columns that stay; ``None`` if all do.
        """
        self.refuse("narrow_inputs", "remove columns from its input")

    def unit_groups(self, path: str, readers: Sequence[UnitSlice]) -> list[UnitGroup]:
        """The part's groups of hidden units, in a fixed order.

        Args:
            path: Of the part in the ranker.
            readers: Slices of the matrices that read the part's output: the outgoing weights of its last units.
        """
        self.refuse("unit_groups", "list its hidden units, which unit pruning and group lasso need")

    def narrow_units(self, alive: Sequence[Tensor]) -> Tensor | None:
        """Remove units, in all that :meth:`unit_groups` lists.

        Args:
            alive: (U,) bool of each group, in the order of :meth:`unit_groups`.

        Returns:
            Positions of the output columns that stay; ``None`` if all do.
        """
        self.refuse("narrow_units", "remove hidden units")

    def int8_inputs(self, path: str) -> list[Int8Input]:
        """Inputs that need a grid before :meth:`to_int8`; empty if the part stays as it is.

        Args:
            path: Of the part in the ranker.
        """
        self.refuse("int8_inputs", "be computed in int8 (sparsity.quantization.activations)")

    def to_int8(self, path: str, grids: Mapping[str, Tensor], out_2O: Tensor | None = None) -> "Part":
        """The part with int8 layers; for inference only.

        Args:
            path: Of the part in the ranker.
            grids: (2, D) ``low`` and ``step`` of each :class:`Int8Input` by name.
            out_2O: Grid of the layer that reads the output; if given, the last layer writes codes of this grid.
        """
        self.refuse("to_int8", "be computed in int8 (sparsity.quantization.activations)")

    def refuse(self, method: str, operation: str) -> NoReturn:
        """Raise the ``UserError`` of an operation that this part does not implement."""
        name = type(self).__name__
        raise UserError(f"{name} cannot {operation}: switch that off for this model, or implement {name}.{method}.")


def module_components(module: nn.Module, path: str) -> Iterator[Component]:
    """One component per submodule with its own tensors: one product per row for ``nn.Linear``, otherwise no work.

    Raises:
        UserError: A submodule that is neither linear nor an embedding has a matrix, so that its work is unknown.
    """
    for name, child in module.named_modules(prefix=path):
        own = own_tensors(child, name)
        if isinstance(child, nn.Linear):
            yield Component(name, "layer", own, 2 * child.weight.numel(), (name,))
        elif isinstance(child, nn.Embedding):
            yield Component(name, "layer", own)
        elif any(tensor.dim() >= 2 for tensor in own.values()):
            matrix = next(key for key, tensor in own.items() if tensor.dim() >= 2)
            raise UserError(
                f"the work of {matrix!r} per row is unknown to the size report: implement components() of the ranker's "
                f"part that holds this {type(child).__name__}."
            )
        elif own:
            yield Component(name, "other", own)


def linear_inputs(module: nn.Module, path: str) -> list[Int8Input]:
    """The input of every linear layer in ``module``."""
    return [Int8Input(name, child) for name, child in module.named_modules(prefix=path) if isinstance(child, nn.Linear)]


def own_tensors(module: nn.Module, path: str) -> dict[str, Tensor]:
    """Parameters and persistent buffers of ``module`` itself, without submodules, by name in the ranker's state."""
    prefix = f"{path}." if path else ""
    found: dict[str, Tensor] = {}
    module._save_to_state_dict(found, prefix, keep_vars=False)
    return found


@torch.no_grad()
def narrow_linear(linear: nn.Linear, *, outputs: Tensor | None = None, inputs: Tensor | None = None) -> None:
    """Keep only these positions of a linear layer's outputs and inputs."""
    weight_OD, bias_O = linear.weight.detach(), linear.bias
    if outputs is not None:
        weight_OD = weight_OD.index_select(0, outputs)
        if bias_O is not None:
            linear.bias = nn.Parameter(bias_O.detach().index_select(0, outputs))
    if inputs is not None:
        weight_OD = weight_OD.index_select(1, inputs)
    linear.weight = nn.Parameter(weight_OD)
    linear.out_features, linear.in_features = weight_OD.shape


def _sum_squares(views: list[Tensor]) -> Tensor:
    """(U,) sums of squares over everything but the first dimension of all ``views``."""
    return torch.stack([view.detach().float().square().reshape(len(view), -1).sum(1) for view in views]).sum(0)
