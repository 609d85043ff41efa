"""Poolings of histories by name: which ones there are, so that configs can be checked before a ranker is built.

Letters: B rows of a batch, L events of all rows, C width of one event (its columns side by side), Q width of the
candidate, N candidates of one history.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from data_pipelines.config.base import same_definition
from data_pipelines.errors import UserError


class HistoryPooling(nn.Module, ABC):
    """Base of poolings that turn all columns of a history's events into one vector per row.

    The size report counts its work by :meth:`work`, and refuses a matrix that is not part of an ``nn.Linear``.

    Args:
        query: Q, the width of the candidate: what the row itself has in the tables that the history reads. The first Q
            columns of an event correspond to it. 0 if the row has nothing there.
        side: Width of the other columns of an event, such as its age.
    """

    needs_candidate: ClassVar[bool] = False
    """Whether it compares events with the candidate, so that a feature of the row must share a table with the history.
    """

    def __init__(self, query: int, side: int) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, candidate_BQ: Tensor, events_LC: Tensor, offsets: Tensor) -> Tensor:
        """(B, C) the pooled events of each row; zeros where a row has none.

        Args:
            candidate_BQ: Width 0 unless :attr:`needs_candidate`.
            events_LC: From the oldest event of the first row to the newest of the last.
            offsets: (B + 1,) where the events of each row start.
        """

    def pool_candidates(self, candidate_BNQ: Tensor, events_LC: Tensor, offsets: Tensor) -> Tensor:
        """(B, N, C) for several candidates of each history; only called if :attr:`needs_candidate`."""
        each = [self(candidate_BQ, events_LC, offsets) for candidate_BQ in candidate_BNQ.unbind(1)]
        return torch.stack(each, 1)

    def work(self, events: int) -> dict[str, int]:
        """Multiplications and additions for one row, by name of the submodule that does them.

        Each linear layer counts once per event; a pooling that computes less, or more, overrides this.

        Args:
            events: How many the row has.
        """
        linears = ((name, module) for name, module in self.named_modules() if isinstance(module, nn.Linear))
        return {name: 2 * module.weight.numel() * events for name, module in linears}


_Pooling = TypeVar("_Pooling", bound=type[HistoryPooling])
SIMPLE = ("sum", "mean", "last")
"""Poolings of single columns."""
BUILT_IN = (*SIMPLE, "attention", "convolution", "hstu", "bst")
"""Poolings that are always there. ``models.layers.histories`` registers those that read whole histories."""
_POOLINGS: dict[str, type[HistoryPooling]] = {}


def register_pooling(name: str) -> Callable[[_Pooling], _Pooling]:
    """Class decorator that makes a pooling of histories known: ``model.pooling.<history>: name`` asks for it.

    Raises:
        ValueError: Another pooling has this name.

    Example:
        >>> @register_pooling("newest_two")
        ... class NewestTwo(HistoryPooling):
        ...     def forward(self, candidate_BQ, events_LC, offsets):
        ...         starts = torch.maximum(offsets[1:] - 2, offsets[:-1]).tolist()
        ...         return torch.stack([events_LC[a:b].sum(0) for a, b in zip(starts, offsets[1:].tolist())])
        >>> NewestTwo(0, 1)(torch.empty(2, 0), torch.tensor([[1.0], [2.0], [3.0], [5.0]]), torch.tensor([0, 3, 4]))
        tensor([[5.],
                [5.]])
    """

    def add(pooling: _Pooling) -> _Pooling:
        known = _POOLINGS.get(name, pooling)
        if name in SIMPLE or not same_definition(known, pooling):
            raise ValueError(f"the pooling {name!r} is taken: give the new one another name")
        _POOLINGS[name] = pooling
        return pooling

    return add


def pooling_class(name: str) -> type[HistoryPooling]:
    """The pooling of whole histories that has this name.

    Raises:
        UserError: There is none.
    """
    if name not in _POOLINGS:
        raise UserError(f"there is no pooling {name!r}; there are {', '.join(pooling_names())}.")
    return _POOLINGS[name]


def pooling_names() -> list[str]:
    """All poolings, in the order of registration."""
    return list(dict.fromkeys((*BUILT_IN, *_POOLINGS)))
