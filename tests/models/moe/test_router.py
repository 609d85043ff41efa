"""What the router promises."""

import pytest
import torch
from moe_examples import make_router


def test_every_row_reaches_exactly_top_k_distinct_experts():
    router = make_router(12, 16, 4)
    gates_NK, chosen_NK, counts_E = router(torch.randn(200, 12))
    assert all(len(set(row)) == 4 for row in chosen_NK.tolist())
    assert counts_E.sum() == 800
    torch.testing.assert_close(gates_NK.sum(1), torch.ones(200))


def test_balance_loss_is_one_when_even_and_grows_with_collapse():
    even, collapsed = make_router(4, 4, 1), make_router(4, 4, 1)
    with torch.no_grad():
        even.weight.copy_(torch.eye(4) * 20)
        collapsed.weight.zero_()
        collapsed.weight[0] = 20.0
    even(torch.eye(4).repeat(5, 1))
    collapsed(torch.eye(4).repeat(5, 1))
    assert even.auxiliary_loss()[0].item() == pytest.approx(1.0, abs=1e-3)
    assert collapsed.auxiliary_loss()[0].item() == pytest.approx(4.0, abs=1e-3)


def test_bias_balances_without_a_loss_and_changes_only_the_choice():
    torch.manual_seed(3)
    router = make_router(8, 4, 1, balance="bias", gate="sigmoid")
    with torch.no_grad():
        router.weight[0] += 0.5
    x_ND = torch.rand(400, 8)
    before = router(x_ND)[2]
    scores_NE = torch.nn.functional.linear(x_ND, router.weight).sigmoid()
    for _ in range(600):
        router(x_ND)
        router.update_bias()
    gates_NK, chosen_NK, after = router(x_ND)
    assert router.auxiliary_loss() is None
    assert after.max() < before.max()
    assert after.max() < 2 * x_ND.shape[0] / 4
    torch.testing.assert_close(gates_NK, scores_NE.gather(1, chosen_NK))


def test_noise_and_load_belong_to_training():
    router = make_router(8, 4, 2, noise=5.0).eval()
    x_ND = torch.randn(50, 8)
    assert torch.equal(router(x_ND)[1], router(x_ND)[1])
    assert router.tokens_per_expert_E.sum() == 0
    router.train()
    assert not torch.equal(router(x_ND)[1], router(x_ND)[1])


def test_without_an_expert_its_rows_take_the_next_best_choice_and_others_stay():
    router = make_router(8, 5, 1).eval()
    x_ND = torch.randn(300, 8)
    chosen_N = router(x_ND)[1][:, 0]
    second_N = router._logits(x_ND).topk(2, dim=1).indices[:, 1]
    with router.without(2):
        without_N = router(x_ND)[1][:, 0]
    torch.testing.assert_close(without_N, torch.where(chosen_N == 2, second_N, chosen_N))
    assert torch.equal(router(x_ND)[1][:, 0], chosen_N)


def test_the_last_expert_of_a_task_cannot_be_left_out():
    router = make_router(8, 2, 1)
    router.active_E[0] = False
    assert not router.can_leave_out(1)
    with pytest.raises(ValueError, match="no expert"), router.without(1):
        pass
