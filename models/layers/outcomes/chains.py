"""Tasks that happen only after another one: their probabilities over all rows (ESMM, Ma et al., SIGIR 2018,
arXiv 1804.07931).

The head of such a task gives the logit of its conditional probability. Multiplied with the probability of the task that
comes first, it is the probability over all rows, which has labels on all rows: a model that learns the conditional
probability from the rows where the first task happened has seen only these, but scores all rows.

Letters: B rows of a batch, T tasks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def logits_over_all_rows(logits_BT: Tensor, chains: Sequence[tuple[int, int]]) -> Tensor:
    """(B, T) logits of the probabilities over all rows.

    Args:
        logits_BT: Conditional logits of the tasks in ``chains``, logits over all rows of the others.
        chains: :attr:`data_pipelines.batch.Schema.chains`: the column of a task and of the one that comes first.
    """
    if not chains:
        return logits_BT
    columns = list(logits_BT.unbind(1))
    for task, first in chains:
        columns[task] = logit_of_product(columns[task], columns[first])
    return torch.stack(columns, 1)


def logit_of_product(a: Tensor, b: Tensor) -> Tensor:
    """The logit of ``sigmoid(a) * sigmoid(b)``, exact for logits of any size.

    The odds of the product are ``1 / ((1 + exp(-a)) (1 + exp(-b)) - 1)``, and the parenthesis without its 1 is a sum of
    three exponentials.

    Example:
        >>> logit_of_product(torch.tensor(0.0), torch.tensor(0.0)).sigmoid()
        tensor(0.2500)
    """
    return -torch.stack([-a, -b, -a - b]).logsumexp(0)
