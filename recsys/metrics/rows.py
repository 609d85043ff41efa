"""What metrics can read besides labels and scores: users, lists and weights.

Letters: N rows.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recsys.metrics.arrays import Floats, Groups

GroupKind = Literal["users", "lists"]
"""What a metric may be computed within."""


@dataclass(frozen=True)
class RowFacts:
    """Users, lists and weights of rows, where there are any.

    Attributes:
        users_N: The code of each row's user, -1 for none (see :func:`~recsys.metrics.arrays.group_codes`).
        lists_N: The code of the list that each row was shown in, -1 for none.
        weights_N: How much each row counts; all alike if ``None``.
    """

    users_N: Groups | None = None
    lists_N: Groups | None = None
    weights_N: Floats | None = None

    @property
    def kinds(self) -> frozenset[GroupKind]:
        """What metrics can be computed within."""
        named: dict[GroupKind, Groups | None] = {"users": self.users_N, "lists": self.lists_N}
        return frozenset(kind for kind, codes in named.items() if codes is not None)

    def groups(self, kind: GroupKind | None) -> Groups | None:
        """The codes of the groups that a metric is computed within."""
        return {"users": self.users_N, "lists": self.lists_N}[kind] if kind is not None else None

    def take(self, rows: NDArray[np.bool_] | NDArray[np.int64] | slice) -> "RowFacts":
        """The facts of some rows."""
        users_N, lists_N = (None if codes is None else codes[rows] for codes in (self.users_N, self.lists_N))
        return RowFacts(users_N, lists_N, None if self.weights_N is None else self.weights_N[rows])


NO_FACTS = RowFacts()
"""Rows of no user and no list, which count alike."""
