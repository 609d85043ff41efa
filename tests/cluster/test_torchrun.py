"""Training under torchrun: two nodes as one, and what is left goes on when something dies."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import psutil
import pytest
from polars.testing import assert_frame_equal

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.disk.storage import open_directory
from data_pipelines.errors import UserError
from data_pipelines.synthetic import DemoConfig, demo_experiment, generate
from recsys.config.experiment import ExperimentConfig, load_config
from recsys.config.yaml_files import to_yaml
from recsys.evaluation.evaluate import evaluate
from recsys.training.train import train

pytestmark = pytest.mark.timeout(900)

TORCHRUN = str(Path(sys.executable).with_name("torchrun"))
RECSYS = str(Path(sys.executable).with_name("recsys"))
QUICK = "last_call_timeout=5,keep_alive_interval=1,keep_alive_max_attempt=3"

Agent = Callable[..., subprocess.Popen[bytes]]


@dataclass(frozen=True)
class Node:
    """Where an agent runs: what stands before its command, its address, its network interface."""

    prefix: tuple[str, ...]
    address: str
    interface: str


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Node, Node]]:
    """Two nodes with addresses of their own in network namespaces; on loopback where those are not allowed."""
    names = [f"recsys-{os.getpid()}-{end}" for end in "ab"]
    addresses = ["10.77.0.1", "10.77.0.2"]
    commands = [f"netns add {name}" for name in names]
    commands += [f"link add net0 netns {names[0]} type veth peer name net0 netns {names[1]}"]
    for name, address in zip(names, addresses, strict=True):
        commands += [f"-n {name} addr add {address}/24 dev net0"]
        commands += [f"-n {name} link set {interface} up" for interface in ("lo", "net0")]
    try:
        for command in commands:
            subprocess.run(["ip", *command.split()], check=True, capture_output=True)
        first, second = (
            Node(("ip", "netns", "exec", name), address, "net0") for name, address in zip(names, addresses, strict=True)
        )
        yield first, second
    except (OSError, subprocess.CalledProcessError):
        loopback = Node((), "127.0.0.1", "lo")
        yield loopback, loopback
    finally:
        for name in names:
            with suppress(OSError):
                subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.fixture
def agent(nodes, config_file, dataset, tmp_path) -> Agent:
    """Start one torchrun agent of a job: ``agent(run, shape=, ranks=, first=)``, on the first node or the second."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"{nodes[0].address}:{free.getsockname()[1]}"

    def start(
        run: str,
        *,
        shape: str = "1",
        ranks: int = 1,
        first: bool = True,
        config: Path = config_file,
        data: Dataset = dataset,
    ) -> subprocess.Popen[bytes]:
        node = nodes[0 if first else 1]
        settings = f"{QUICK},is_host={str(first).lower()}"
        rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", run, "--rdzv-conf", settings]
        size = ["--nnodes", shape, "--nproc-per-node", str(ranks), "--max-restarts", "3", "--local-addr", node.address]
        work = [RECSYS, "train", str(config), str(data.path), str(tmp_path / run)]
        environment = {
            "OMP_NUM_THREADS": "1",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "GLOO_SOCKET_IFNAME": node.interface,
        }
        return subprocess.Popen(
            [
                *node.prefix,
                *[TORCHRUN, *size, *rendezvous, "--no-python", *work, "--resume"],
                *["train.epochs=15", "train.patience=15"],
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | environment,
        )

    return start


def end(*agents: subprocess.Popen[bytes]) -> None:
    for process in agents:
        assert process.wait(timeout=800) == 0


def valid(run: Path) -> dict[str, dict[str, float]]:
    """Metrics of the valid split that a finished run ended with."""
    metrics: dict[str, dict[str, float]] = open_directory(run, "run").meta["result"]["valid"]
    return metrics


def measured(run: Path) -> pl.DataFrame:
    """Losses and valid metrics over the steps."""
    kept = pl.read_parquet(run / "metrics.parquet").filter(pl.col("metric").str.contains("^(loss|click/.*)$"))
    return kept.drop("seconds").sort("step", "split", "metric")


def ranks_of(agent: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [child for child in psutil.Process(agent.pid).children(recursive=True) if "train" in child.cmdline()]


def wait_for_checkpoint(run: Path) -> None:
    deadline = time.monotonic() + 600
    while not list(run.glob("checkpoints/step-*")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_nodes_train_as_one_and_a_killed_rank_changes_nothing(agent, tmp_path):
    end(agent("nodes", shape="2"), agent("nodes", shape="2", first=False))

    one_node = agent("ranks", ranks=2)
    wait_for_checkpoint(tmp_path / "ranks")
    ranks_of(one_node)[-1].kill()
    end(one_node)
    assert valid(tmp_path / "ranks") == valid(tmp_path / "nodes")
    two_nodes, one_node_again = measured(tmp_path / "nodes"), measured(tmp_path / "ranks")
    assert {"loss", "click/auc", "click/logloss"} <= set(two_nodes["metric"])
    assert_frame_equal(two_nodes, one_node_again, rel_tol=1e-6)


def test_restarts_that_would_meet_dead_ranks_are_refused(config_file, dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(UserError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        train(load_config(config_file), dataset, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_killed_node_is_gone_on_without_to_a_model_as_good(agent, tmp_path):
    generate(DemoConfig(rows=10_000), tmp_path / "log.parquet")
    experiment = demo_experiment(str(tmp_path / "log.parquet"))
    experiment["train"] |= {"epochs": 15, "patience": 15, "batch_size": 64, "checkpoint_every": 20}
    config = ExperimentConfig.model_validate(experiment)
    data = prepare(config.data, tmp_path / "dataset")
    (tmp_path / "demo.yaml").write_text(to_yaml(config))

    kind = {"shape": "1:2", "config": tmp_path / "demo.yaml", "data": data}
    left, lost = agent("run", **kind), agent("run", **kind, first=False)
    wait_for_checkpoint(tmp_path / "run")
    assert ranks_of(lost)
    for process in [*ranks_of(lost), psutil.Process(lost.pid)]:
        process.kill()
    end(left)
    # The node is lost early: most steps are those of one rank, and of its batch.
    train(config, data, tmp_path / "undisturbed")
    low, high = evaluate(tmp_path / "undisturbed", data, "valid").intervals["click"]["auc"]
    assert low > 0.6
    assert low <= evaluate(tmp_path / "run", data, "valid", draws=0).tasks["click"]["auc"] <= high
