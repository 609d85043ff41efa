"""Let a module compute with a function of its parameter, without renaming the parameter.

``torch.nn.utils.parametrize`` renames the parameter, and with it every checkpoint and optimizer entry. Here an instance
attribute hides the parameter while ``forward`` runs; names, state dicts and optimizers stay the same.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

Transform = Callable[[Tensor], Tensor]


def transform_weight(module: nn.Module, attribute: str, transform: Transform) -> Callable[[], None]:
    """Make ``module.forward`` use ``transform(module.<attribute>)``; transforms compose in the order they are added.

    Returns:
        A function that removes the transform.
    """

    def enter(module: nn.Module, _args: Any) -> None:
        module.__dict__[attribute] = transform(getattr(module, attribute))

    def leave(module: nn.Module, _args: Any, _output: Any) -> None:
        module.__dict__.pop(attribute, None)

    handles = (module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True))

    def remove() -> None:
        for handle in handles:
            handle.remove()

    return remove
