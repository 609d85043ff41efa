"""What ends a training early, said in words."""

import pytest
import torch

from data_pipelines.errors import UserError
from recsys.training.faults import diverged, memory_guard


def test_memory_that_runs_out_says_how_much_and_what_to_lower() -> None:
    with pytest.raises(UserError, match=r"out of memory: [\d.]+ GiB asked for.*lower train\.batch_size \(now 64\)"):  # noqa: SIM117
        with memory_guard(64):
            torch.empty(1 << 50, dtype=torch.uint8)


def test_memory_of_a_gpu_that_runs_out_is_not_called_main_memory() -> None:
    said = (
        "CUDA out of memory. Tried to allocate 25.60 GiB. GPU 0 has a total capacity of 79.10 GiB of which 3.06 GiB is "
        "free. Including non-PyTorch memory, this process has 76.03 GiB memory in use."
    )
    expected = r"25\.60 GiB asked for, 3\.06 GiB of the GPU's memory free; .*memory of the largest table to cached"
    with pytest.raises(UserError, match=expected), memory_guard(64):
        raise torch.OutOfMemoryError(said)


def test_other_faults_pass_through() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_guard(64):
        raise RuntimeError("shapes do not fit")


@pytest.mark.parametrize(
    ("loss", "mean", "expected"),
    [
        (0.7, 0.7, False),
        (float("nan"), 0.7, True),
        (float("inf"), 0.7, True),
        (900.0, 0.1, False),
        (1e5, 3.0, True),
        (1e5, None, False),
        (float("nan"), None, True),
    ],
)
def test_losses_that_end_a_training(loss: float, mean: float | None, expected: bool) -> None:
    assert diverged(loss, mean) is expected
