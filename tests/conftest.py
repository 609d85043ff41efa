"""Fixtures that every room uses, and the seeds that make every test repeatable."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import register_random, settings

# Property tests try the same examples in every run; --hypothesis-profile=explore looks for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile("repeatable")


class _TorchRandom:
    """Torch's global generator, which Hypothesis then seeds before each example, as it does those of the others."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


_torch_random = _TorchRandom()  # Hypothesis keeps only a weak reference
register_random(_torch_random)


def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    """A fixture draws the same numbers, whichever test asks for it first."""
    _seed()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """A test draws the same numbers, whatever ran before it."""
    _seed()


SLOWEST = ("test_torchrun.py", "test_docs.py", "test_resume.py")
"""Files that take minutes: they begin first, so that no worker waits for one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slowest files first (``--no-loadscope-reorder`` keeps this order), and skip tests that lack a GPU."""
    order = {name: number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU: make test-gpu"))


@pytest.fixture(scope="session")
def tiny_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Parquet log of 2,000 rows, ordered by time, whose clicks depend on user, item, tags and price.

    Columns: ``user`` (int), ``item`` (text), ``tags`` (list of text), ``price`` (float, some null), ``device`` (text,
    some null), ``time`` (unix seconds), ``rating`` (1 to 5), ``click`` (0/1).
    """
    rows, rng = 2000, np.random.default_rng(7)
    user, item = rng.zipf(1.5, rows) % 60, rng.zipf(1.3, rows) % 200
    tags = [[f"tag{(i * 7 + k) % 12}" for k in range(i % 4)] for i in item]
    price = np.round(rng.lognormal(2, 0.7, rows), 2)
    taste = np.sin(user * 1.7) * np.cos(item * 0.9) + 0.4 * (item % 4) - 0.1 * np.log(price)
    click = rng.random(rows) < 1 / (1 + np.exp(-2 * taste))
    frame = pl.DataFrame(
        {
            "user": user,
            "item": [f"item-{i}" for i in item],
            "tags": pl.Series(tags, dtype=pl.List(pl.String)),
            "price": pl.Series(price).set(pl.Series(rng.random(rows) < 0.05), None),
            "device": [None if d == 3 else ["phone", "web", "tv"][d] for d in rng.integers(0, 4, rows)],
            "time": 1_700_000_000 + np.sort(rng.integers(0, 3_000_000, rows)),
            "rating": np.clip(np.round(3 + taste * 1.5 + rng.normal(0, 0.5, rows)), 1, 5).astype(np.int64),
            "click": click.astype(np.int64),
        }
    )
    path = tmp_path_factory.mktemp("log") / "log.parquet"
    frame.write_parquet(path, row_group_size=500)
    return path


@pytest.fixture(scope="session")
def tiny_data(tiny_log: Path) -> dict[str, Any]:
    """A ``data:`` block for ``tiny_log``, of ids, a bag and a number, split by time."""
    return {
        "log": str(tiny_log),
        "time": "time",
        "user": "user",
        "tasks": {"click": {"column": "click"}},
        "split": {"by": "time", "valid": 0.1, "test": 0.1},
        "keys": ["user", "item"],
        "features": {
            "user": {"kind": "id"},
            "item": {"kind": "id"},
            "device": {"kind": "id"},
            "tags": {"kind": "bag"},
            "price": {"kind": "number", "transform": "log1p"},
        },
    }


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """An S3 server on loopback."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A bucket of its own on the server that the environment names."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    import fsspec

    fsspec.get_filesystem_class("s3").clear_instance_cache()
    name = f"bucket-{tmp_path.name.replace('_', '-').lower()}"
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz", type=int, default=25, help="damaged logs to try in test_damaged_logs.py")
