"""What experts are said to have learned, where it is planted."""

import torch
from ranker_examples import SCHEMA, random_batch

from models.interpretation import expert_affinities
from models.ranker import Ranker, RankerConfig
from models.tables.lookup import SparseTables
from models.tables.rows import local_rows


def test_an_expert_is_known_by_the_value_that_is_routed_to_it():
    config = RankerConfig.model_validate(
        {"dim": 4, "context": ["items"], "tower": {"kind": "moe", "experts": 3, "top_k": 1, "hidden": 8}}
    )
    ranker = Ranker(config, SCHEMA, SparseTables(SCHEMA, config))
    for table in local_rows(ranker):
        if table.table == "items":
            table.weight.zero_()
            table.weight[5, 0] = 1.0
    with torch.no_grad():
        ranker.tower.mixtures[0].router.weight.zero_()
        ranker.tower.mixtures[0].router.weight[1, 0] = 10.0
    batches = [random_batch(200, seed) for seed in range(3)]
    found = expert_affinities(ranker, batches, top=2)
    best = max((a for a in found if a.expert == 1), key=lambda affinity: affinity.score)
    assert (best.router, best.feature, best.id) == ("tower.mixtures.0.router", "items", 5)
    assert best.share == 1.0
    assert best.lift > 2
    assert best.rows == sum(int((batch.sparse["items"].values() == 5).sum()) for batch in batches)
