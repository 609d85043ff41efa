"""A trained mixture without one of its experts.

Letters: E experts.
"""

from collections.abc import Iterable

from data_pipelines.batch import Batch
from models.interpretation import rows_per_expert
from models.moe.router import routers
from models.ranker import Ranker


def leave_out_expert(ranker: Ranker, batches: Iterable[Batch], expert: str) -> str:
    """Keep the router of ``ranker`` from choosing one expert: its rows take their next best choice.

    Args:
        batches: Rows on which the load of the experts is counted.
        expert: The block and the place of the expert in it, the busiest first: ``0/0``.

    Returns:
        Which expert that is, and its share of the rows; or why none was left out.
    """
    block, place = map(int, expert.split("/"))
    name, router = list(routers(ranker).items())[block]
    rows_E = rows_per_expert(ranker, batches)[name]
    active = [e for e in rows_E.argsort(descending=True, stable=True).tolist() if router.active_E[e]]
    if place >= len(active):
        return f"nothing left out: a lever has removed all but {len(active)} experts"
    found = active[place]
    if not router.can_leave_out(found):
        return "nothing left out: no other expert is left"
    router.active_E[found] = False
    return f"expert {found}, {float(rows_E[found] / rows_E.sum().clamp(min=1)):.1%} of the routed test rows"
