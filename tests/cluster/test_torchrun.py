"""Training under torchrun: two nodes as one, and what is left goes on when something dies."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from data_pipelines.errors import UserError
from data_pipelines.storage import open_directory
from recsys.config import load_config
from recsys.training import train

pytestmark = pytest.mark.timeout(900)

TORCHRUN = str(Path(sys.executable).with_name("torchrun"))
RECSYS = str(Path(sys.executable).with_name("recsys"))
QUICK = "last_call_timeout=5,keep_alive_interval=1,keep_alive_max_attempt=3"

Agent = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def agent(config_file, dataset, tmp_path) -> Agent:
    """Start one torchrun agent of a job: ``agent(run, nodes=, ranks=, first=)``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"

    def start(run: str, *, nodes: str = "1", ranks: int = 1, first: bool = True) -> subprocess.Popen[bytes]:
        settings = f"{QUICK},is_host={str(first).lower()}"
        rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", run, "--rdzv-conf", settings]
        shape = ["--nnodes", nodes, "--nproc-per-node", str(ranks), "--max-restarts", "3"]
        work = [RECSYS, "train", str(config_file), str(dataset.path), str(tmp_path / run)]
        return subprocess.Popen(
            [TORCHRUN, *shape, *rendezvous, "--no-python", *work, "--resume", "train.epochs=15", "train.patience=15"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        )

    return start


def end(*agents: subprocess.Popen[bytes]) -> None:
    for process in agents:
        assert process.wait(timeout=400) == 0


def valid(run: Path) -> dict[str, dict[str, float]]:
    """Metrics of the valid split that a finished run ended with."""
    metrics: dict[str, dict[str, float]] = open_directory(run, "run").meta["result"]["valid"]
    return metrics


def ranks_of(agent: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [child for child in psutil.Process(agent.pid).children(recursive=True) if "train" in child.cmdline()]


def wait_for_checkpoint(run: Path) -> None:
    deadline = time.monotonic() + 300
    while not list(run.glob("checkpoints/step-*")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_nodes_train_as_one_and_a_killed_rank_changes_nothing(agent, tmp_path):
    end(agent("nodes", nodes="2"), agent("nodes", nodes="2", first=False))

    one_node = agent("ranks", ranks=2)
    wait_for_checkpoint(tmp_path / "ranks")
    ranks_of(one_node)[-1].kill()
    end(one_node)
    assert valid(tmp_path / "ranks") == valid(tmp_path / "nodes")


def test_restarts_that_would_meet_dead_ranks_are_refused(config_file, dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(UserError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        train(load_config(config_file), dataset, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_killed_node_is_gone_on_without(agent, tmp_path):
    left, lost = agent("run", nodes="1:2"), agent("run", nodes="1:2", first=False)
    wait_for_checkpoint(tmp_path / "run")
    assert ranks_of(lost)
    for process in [*ranks_of(lost), psutil.Process(lost.pid)]:
        process.kill()
    end(left)
    assert valid(tmp_path / "run")["click"]["auc"] > 0.5
