"""Metrics of the first k candidates, beside a plain loop."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.metrics.top_k import top_k, top_k_metrics


@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=4), st.integers(1, 8))
@settings(max_examples=50, deadline=None)
def test_top_k_is_a_stable_sort(rows: list[list[int]], k: int) -> None:
    scores = np.array(rows, dtype=np.float64)
    found = top_k(scores, k)
    for row, places in zip(rows, found.tolist(), strict=True):
        best = sorted(range(6), key=lambda place: -row[place])[:k]
        assert [row[place] for place in places] == [row[place] for place in best]
        assert places == sorted(places, key=lambda place: (-row[place], place))


@given(st.lists(st.tuples(st.lists(st.booleans(), min_size=4, max_size=4), st.integers(0, 9)), min_size=1))
@settings(max_examples=50, deadline=None)
def test_metrics_are_those_of_a_plain_loop(users: list[tuple[list[bool], int]]) -> None:
    users = [(hits, max(wanted, sum(hits))) for hits, wanted in users]
    values = top_k_metrics(np.array([hits for hits, _ in users]), np.array([wanted for _, wanted in users]))
    for at, (hits, wanted) in enumerate(users):
        if not wanted:
            assert all(math.isnan(value[at]) for value in values.values())
            continue
        reachable = min(wanted, 4)
        gain = sum(1 / math.log2(place + 2) for place, hit in enumerate(hits) if hit)
        first = next((place for place, hit in enumerate(hits) if hit), None)
        expected = {
            "recall": sum(hits) / reachable,
            "ndcg": gain / sum(1 / math.log2(place + 2) for place in range(reachable)),
            "hit": float(any(hits)),
            "mrr": 0.0 if first is None else 1 / (first + 1),
        }
        for name, value in expected.items():
            assert math.isclose(values[name][at], value, abs_tol=1e-12), name
