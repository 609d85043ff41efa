"""Probabilities over all rows of tasks that happen only after another one."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.batch import Schema
from models.layers.outcomes.chains import logit_of_product, logits_over_all_rows

LOGITS = st.floats(-300, 300, width=32)


@given(LOGITS, LOGITS)
def test_the_logit_of_a_product_is_that_of_its_logarithms(a: float, b: float) -> None:
    """The reference adds logarithms in float64, and takes the one of the complement without cancellation."""
    log_p = -np.logaddexp(0, -a) - np.logaddexp(0, -b)
    not_a, not_b = -np.logaddexp(0, a), -np.logaddexp(0, b)
    log_rest = np.logaddexp(not_a, not_b - np.logaddexp(0, -a))  # not a, or a and not b
    found = logit_of_product(torch.tensor(a), torch.tensor(b))
    np.testing.assert_allclose(found.item(), log_p - log_rest, rtol=2e-6, atol=2e-6)


@given(LOGITS, LOGITS)
def test_gradients_are_finite_and_never_negative(a: float, b: float) -> None:
    pair = torch.tensor([a, b], requires_grad=True)
    logit_of_product(*pair).backward()
    assert ((pair.grad >= 0) & (pair.grad <= 1 + 1e-4)).all()


def test_a_chain_of_three_multiplies_all_three_whatever_their_order() -> None:
    schema = Schema(
        tables=(), sparse=(), dense=(), tasks=("buy", "view", "cart"), after={"buy": "cart", "cart": "view"}
    )
    conditional_BT = torch.randn(50, 3, dtype=torch.float64)
    buy_B, view_B, cart_B = conditional_BT.sigmoid().unbind(1)
    found_BT = logits_over_all_rows(conditional_BT, schema.chains).sigmoid()
    expected = torch.stack([buy_B * cart_B * view_B, view_B, cart_B * view_B], 1)
    torch.testing.assert_close(found_BT, expected)


def test_tasks_without_a_chain_keep_their_logits() -> None:
    logits_BT = torch.randn(5, 2)
    assert logits_over_all_rows(logits_BT, ()) is logits_BT
