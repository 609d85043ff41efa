"""The device that scores: names, and what is said about it."""

import pytest
import torch

from data_pipelines.errors import UserError
from serving.artifact.device import check_room, described, scoring_device

CUDA = torch.device("cuda", 0)


def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert scoring_device("auto") == scoring_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="the device is cuda, and Torch sees no GPU"):
        scoring_device("cuda")


def test_with_a_gpu_only_cpu_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert (scoring_device("auto"), scoring_device("cuda"), scoring_device("cpu")) == (CUDA, CUDA, torch.device("cpu"))


@pytest.mark.parametrize(("capability", "name"), [((9, 0), "cuda (bf16)"), ((7, 5), "cuda (fp32)")])
def test_the_precision_is_said(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], name: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert described(CUDA) == name
    assert described(torch.device("cpu")) == "cpu"


def test_tables_without_room_on_the_card_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**9, 2 * 10**9))
    check_room(10**9, CUDA)
    with pytest.raises(UserError, match=r"take 1\.50 GB on a GPU, which has 1\.00 GB left: score with device cpu"):
        check_room(1_500_000_000, CUDA)
