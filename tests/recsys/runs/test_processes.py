"""Which device a rank trains on."""

import pytest
import torch

from data_pipelines.errors import UserError
from models.products import computes_bf16
from recsys.runs.processes import device_of, process_group


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)


@pytest.mark.parametrize(
    ("gpus", "name", "rank", "device"),
    [
        (0, "auto", 0, "cpu"),
        (0, "cpu", 3, "cpu"),
        (2, "cpu", 0, "cpu"),
        (2, "auto", 1, "cuda:1"),
        (2, "cuda", 0, "cuda:0"),
    ],
    indirect=["gpus"],
)
@pytest.mark.usefixtures("gpus")
def test_the_device_of_a_rank(name: str, rank: int, device: str) -> None:
    assert device_of(name, rank) == torch.device(device)


@pytest.mark.parametrize("gpus", [0], indirect=True)
@pytest.mark.usefixtures("gpus")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="Torch sees no GPU"), process_group("cuda"):
        pass


@pytest.mark.parametrize("gpus", [1], indirect=True)
@pytest.mark.usefixtures("gpus")
def test_two_ranks_do_not_share_a_gpu() -> None:
    with pytest.raises(UserError, match="at most 1 ranks per machine"):
        device_of("auto", 1)


def test_products_in_bf16_are_known_of_the_cpu() -> None:
    assert computes_bf16(torch.device("cpu")) in (False, True)
