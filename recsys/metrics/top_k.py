"""Metrics of the first k of a list of all candidates, one list per user.

Letters: U users, k positions of a list.
"""

import numpy as np
import numpy.typing as npt

from recsys.metrics.arrays import Floats


def top_k_metrics(hit_Uk: npt.NDArray[np.bool_], wanted_U: npt.NDArray[np.int64]) -> dict[str, Floats]:
    """(U,) ``recall``, ``ndcg``, ``hit`` and ``mrr`` of each user, NaN where nothing was wanted.

    Recall and NDCG are divided by what the best list of k reaches, so that a user who wanted more than k items can
    have 1 (Liang et al., WWW 2018, Variational autoencoders for collaborative filtering).

    Args:
        hit_Uk: Whether the item at each position was wanted.
        wanted_U: How many items each user wanted, whether they are candidates or not.

    Example:
        >>> values = top_k_metrics(np.array([[False, True, True]]), np.array([2]))
        >>> float(values["recall"][0]), float(values["mrr"][0])
        (1.0, 0.5)
    """
    k = hit_Uk.shape[1]
    gain_k = 1 / np.log2(np.arange(k) + 2)
    best = np.concatenate([[0.0], np.cumsum(gain_k)])
    reachable_U = np.minimum(wanted_U, k)
    found_U = hit_Uk.sum(1)
    first_U = np.where(found_U > 0, hit_Uk.argmax(1) + 1.0, np.inf)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = {
            "recall": found_U / reachable_U,
            "ndcg": (hit_Uk * gain_k).sum(1) / best[reachable_U],
            "hit": (found_U > 0).astype(np.float64),
            "mrr": 1 / first_U,
        }
    return {name: np.where(wanted_U > 0, value, np.nan) for name, value in values.items()}


def top_k(scores_UC: Floats, k: int) -> npt.NDArray[np.int64]:
    """(U, k) positions of the k greatest scores in descending order; of equal scores in a list the first positions."""
    k = min(k, scores_UC.shape[1])
    chosen_Uk = np.sort(np.argpartition(-scores_UC, k - 1, axis=1)[:, :k], axis=1)
    order_Uk = np.argsort(-np.take_along_axis(scores_UC, chosen_Uk, 1), axis=1, kind="stable")
    found: npt.NDArray[np.int64] = np.take_along_axis(chosen_Uk, order_Uk, 1)
    return found
