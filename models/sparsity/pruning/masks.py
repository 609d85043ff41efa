"""Binary masks over dense weights: shared by weight pruning, dynamic sparse training and fixed connectivity."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from models.sparsity.lever import Lever, LeverConfig, State, dense_weights

if TYPE_CHECKING:
    from models.ranker import Ranker


class MaskConfig(LeverConfig):
    """Base of levers that mask single weights.

    Attributes:
        layers: Prefixes of parameter names; empty for the whole dense part.
    """

    layers: tuple[str, ...] = ()


class Masks:
    """One bool mask per weight matrix (or stack of matrices) of the dense part; ``False`` means always zero."""

    def __init__(self, layers: Sequence[str] = ()) -> None:
        self._layers = tuple(layers)
        self.masks: dict[str, Tensor] = {}

    def weights(self, ranker: "Ranker") -> dict[str, nn.Parameter]:
        """The weights the masks are for, by full name."""
        return {name: parameter for _, _, name, parameter in dense_weights(ranker, select=self._layers)}

    def fill(self, ranker: "Ranker") -> None:
        """Start with nothing masked, unless a checkpoint gave the masks already."""
        for name, weight in self.weights(ranker).items():
            saved = self.masks.get(name)
            self.masks[name] = (
                torch.ones_like(weight, dtype=torch.bool) if saved is None else saved.to(weight.device, torch.bool)
            )

    @torch.no_grad()
    def apply(self, ranker: "Ranker") -> None:
        """Zero what is masked."""
        for name, weight in self.weights(ranker).items():
            weight.mul_(self.masks[name].to(weight.device))

    @torch.no_grad()
    def apply_to_gradients(self, ranker: "Ranker") -> None:
        """Zero the gradients of masked weights, so that optimizers keep no moments for them."""
        for name, weight in self.weights(ranker).items():
            if weight.grad is not None:
                weight.grad.mul_(self.masks[name])

    def state_dict(self) -> State:
        return {name: mask.cpu().clone() for name, mask in self.masks.items()}

    def load_state_dict(self, state: State) -> None:
        self.masks = dict(state)


class MaskLever(Lever):
    """Base of levers that mask single weights: masked weights are zero after every step, and at the end."""

    def __init__(self, config: MaskConfig) -> None:
        self._masks = Masks(config.layers)

    def after_step(self, ranker: "Ranker", step: int) -> None:
        self._masks.apply(ranker)

    def finish(self, ranker: "Ranker") -> None:
        self._masks.apply(ranker)

    def state_dict(self) -> State:
        return self._masks.state_dict()

    def load_state_dict(self, state: State) -> None:
        self._masks.load_state_dict(state)
