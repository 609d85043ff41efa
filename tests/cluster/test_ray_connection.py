"""A Ray cluster that this process starts is for this machine only."""

import json
import subprocess
import sys

import pytest

from data_pipelines.errors import UserError
from recsys.cluster.connection import ray_cluster

ray = pytest.importorskip("ray")

LISTENING = """
import ipaddress, json, psutil
from recsys.cluster.connection import ray_cluster

def address(text):
    found = ipaddress.ip_address(text)
    return getattr(found, "ipv4_mapped", None) or found

with ray_cluster(None) as ray:
    from ray._common.usage.usage_lib import usage_stats_enabled

    assert ray.get(ray.remote(lambda: 1).remote()) == 1
    me = psutil.Process()
    listening = [
        address(connection.laddr.ip)
        for process in (me, *me.children(recursive=True))
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    print(json.dumps([len(listening), all(a.is_loopback for a in listening), usage_stats_enabled()]))
"""


def test_an_own_cluster_listens_on_loopback_and_reports_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", LISTENING], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    ports, loopback, reports = json.loads(done.stdout.splitlines()[-1])
    assert (ports > 0, loopback, reports) == (True, True, False)


def test_a_cluster_of_someone_else_on_this_machine_is_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def init(address: str | None, **settings: object) -> None:
        asked.append(address)
        raise ConnectionError("not now")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    for address in (None, "local", "10.0.0.1:6379"):
        with pytest.raises(UserError, match="no Ray cluster answers"), ray_cluster(address):
            pass
    assert asked == ["local", "local", "10.0.0.1:6379"]
