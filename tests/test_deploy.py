"""The files in deploy/ agree with each other and with the command. No container engine is needed, and none is used."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml

from recsys.cli import app
from serving.http import auth, telemetry

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
MANIFESTS = [
    manifest for path in sorted(DEPLOY.glob("kubernetes/*.yaml")) for manifest in yaml.safe_load_all(path.read_text())
]
GUIDE = (ROOT / "docs/guides/deploy.md").read_text()
OURS = "sparse-recsys"


def instruction(name: str) -> list[str]:
    """The arguments of the last stage's instructions of this name."""
    last = re.split(r"^FROM .*$", DOCKERFILE.replace("\\\n", " "), flags=re.MULTILINE)[-1]
    return re.findall(rf"^{name} (.*)$", last, re.MULTILINE)


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and pod of every workload."""
    for manifest in MANIFESTS:
        spec = manifest.get("spec", {})
        spec = spec["jobTemplate"]["spec"] if manifest["kind"] == "CronJob" else spec
        if "template" in spec:
            yield manifest["metadata"]["name"], spec["template"]["spec"]


def ours() -> list[tuple[str, dict[str, Any]]]:
    return [(name, pod) for name, pod in pods() if pod["containers"][0]["image"] == OURS]


def commands() -> Iterator[list[str]]:
    """What every container runs of `recsys`, as words."""
    for service in COMPOSE["services"].values():
        if service.get("image") == OURS:
            yield list(service["command"])
    for _, pod in ours():
        for container in pod["containers"]:
            if "command" in container:
                assert container["command"] == ["sh", "-c"]
                _, recsys, *words = shlex.split(container["args"][0])
                assert recsys == "recsys"
                yield words
            else:
                yield list(container["args"])
    for block in re.findall(r"```text\n(.*?)```", GUIDE, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if found := re.search(r"run --rm (?:-T )?command (.*?)(?: >.*)?$", line):
                yield shlex.split(found[1])


def test_every_command_exists_and_takes_its_options() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group | typer.core.TyperGroup)
    checked = set()
    for verb, *words in commands():
        group.commands[verb].make_context(verb, list(words))  # refuses unknown options and missing arguments
        checked.add(verb)
    assert checked >= {"serve", "worker", "daily", "token", "doctor"}


def test_the_image_is_built_from_what_is_there_and_runs_as_nobody_special() -> None:
    assert instruction("ENTRYPOINT") == ['["recsys"]']
    [user] = instruction("USER")
    assert user.split(":")[0].isdigit()
    assert user != "0:0"
    sources = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    kept = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    for source in " ".join(sources).split():
        assert (ROOT / source).exists(), source
        assert f"!{source}" in kept, f"{source} is not sent to the builder"
    base = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert base == ["python:3.11-slim"] * 2
    python = re.search(r'requires-python = ">=([\d.]+)', (ROOT / "pyproject.toml").read_text())
    assert python is not None
    assert python[1] == "3.11"


def test_ports_and_paths_agree() -> None:
    [exposed] = instruction("EXPOSE")
    [health] = re.findall(r"127\.0\.0\.1:(\d+)(/\w+)", DOCKERFILE)
    assert health == (exposed, "/readyz")
    assert health[1] in auth._OPEN
    serving = [words for words in commands() if words[0] == "serve"]
    assert len(serving) == 2
    assert all(f"--port={exposed}" in words and "--host=0.0.0.0" in words for words in serving)
    assert COMPOSE["services"]["service"]["ports"] == [f"127.0.0.1:{exposed}:{exposed}"]
    [scrape] = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": [f"service:{exposed}"]}]
    assert scrape["authorization"]["credentials_file"] == f"/run/secrets/{next(iter(COMPOSE['secrets']))}"
    [container] = next(pod for name, pod in ours() if name == "recsys")["containers"]
    assert container["ports"] == [{"name": "http", "containerPort": int(exposed)}]
    for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
        assert container[probe]["httpGet"]["port"] == "http"
        assert container[probe]["httpGet"]["path"] in auth._OPEN


def test_the_database_is_the_one_that_runs() -> None:
    database = COMPOSE["services"]["database"]["environment"]
    for name in ("service", "worker", "command"):
        url = COMPOSE["services"][name]["environment"]["RECSYS_JOBS_DB"]
        found = re.fullmatch(r"postgresql://(\w+):\$\{POSTGRES_PASSWORD:\?[^}]*\}@(\w+)/(\w+)", url)
        assert found is not None
        assert found.groups() == (database["POSTGRES_USER"], "database", database["POSTGRES_DB"])
    for _, pod in pods():
        for variable in pod["containers"][0].get("env", []):
            if "valueFrom" in variable:
                secret = variable["valueFrom"]["secretKeyRef"]
                assert re.search(rf"create secret generic {secret['name']}\b.*--from-literal={secret['key']}=", GUIDE)


def test_containers_write_only_to_their_volumes() -> None:
    for name in ("service", "worker", "command"):
        service = COMPOSE["services"][name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["volumes"] == ["data:/srv/recsys"]
    [user] = instruction("USER")
    for _, pod in ours():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == user
        [container] = pod["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert "memory" in container["resources"]["limits"]


def test_volumes_that_are_mounted_are_declared() -> None:
    claims = {m["metadata"]["name"] for m in MANIFESTS if m["kind"] == "PersistentVolumeClaim"}
    for _, pod in ours():
        declared = {volume["name"]: volume for volume in pod["volumes"]}
        for mount in pod["containers"][0]["volumeMounts"]:
            volume = declared[mount["name"]]
            claim = volume.get("persistentVolumeClaim")
            assert claim is None or claim["claimName"] in claims
            if "configMap" in volume:
                assert f"create configmap {volume['configMap']['name']}" in GUIDE
    for service in COMPOSE["services"].values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]


def test_selectors_find_their_pods() -> None:
    labels = {}
    for manifest in MANIFESTS:
        spec = manifest["spec"]
        if manifest["kind"] in ("Deployment", "StatefulSet"):
            labels[manifest["metadata"]["name"]] = spec["template"]["metadata"]["labels"]
            assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    for manifest in MANIFESTS:
        if manifest["kind"] == "Service":
            assert manifest["spec"]["selector"] in labels.values()


def test_a_day_that_is_refused_is_not_tried_again() -> None:
    [job] = [manifest["spec"] for manifest in MANIFESTS if manifest["kind"] == "CronJob"]
    assert job["concurrencyPolicy"] == "Forbid"
    [refused, _] = job["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    assert (refused["action"], refused["onExitCodes"]["values"]) == ("FailJob", [2])
    pod = job["jobTemplate"]["spec"]["template"]["spec"]
    assert refused["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    assert pod["restartPolicy"] == "Never"


def test_the_board_shows_metrics_that_the_service_has() -> None:
    source = Path(telemetry.__file__).read_text()
    counters = set(re.findall(r'Counter\("(\w+)"', source))
    histograms = set(re.findall(r'Histogram\(\s*"(\w+)"', source))
    known = {f"{name}_total" for name in counters} | set(re.findall(r'GaugeMetricFamily\(\s*"(\w+)"', source))
    known |= {f"{name}_{part}" for name in histograms for part in ("bucket", "count", "sum")}
    board = yaml.safe_load((DEPLOY / "grafana/board.json").read_text())
    shown = {
        name
        for panel in board["panels"]
        for target in panel["targets"]
        for name in re.findall(r"\brecsys_\w+", target["expr"])
    }
    assert shown
    assert shown <= known
    [datasource] = yaml.safe_load((DEPLOY / "grafana/datasources.yaml").read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {datasource["uid"]}


@pytest.mark.parametrize(
    "path", sorted(path for path in DEPLOY.rglob("*") if path.is_file()), ids=lambda path: path.name
)
def test_no_registry_is_named(path: Path) -> None:
    images = re.findall(r"^\s*(?:- )?(?:image:|FROM) ?(\S+)", path.read_text(), re.MULTILINE)
    assert not [image for image in images if "." in image.split("/")[0].split(":")[0]]
