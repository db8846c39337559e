"""Grafana's dashboard: every series and label in it exists in GET /metrics."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML

from app.core.engine.devices import WorkerDevice
from app.core.storage.database import Database
from tests.factories import make_job
from tests.fakes import FakeEngine
from tests.worker.inference.engine.bench import Bench

FOLDER = Path(__file__).parents[2] / "docker" / "monitoring"
# Prometheus adds them to every series of a target; `le` is a histogram's own.
ADDED = {"job", "instance"}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "tunesmith.json").read_text())
    return found


def expressions(dashboard: dict[str, Any]) -> Iterator[str]:
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def read_series(client: TestClient) -> dict[str, list[dict[str, str]]]:
    """The labels of every series of GET /metrics, by its name."""
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def test_every_series_and_label_of_the_dashboard_exists(
    dashboard: dict[str, Any], client: TestClient, database: Database, engine: FakeEngine
) -> None:
    bench = Bench()
    bench.finish(bench.submit(max_new_tokens=3))
    engine.metrics = bench.engine.metrics.render()
    device = WorkerDevice(
        kind="cuda", name="GPU", memory_bytes=9, free_bytes=4, utilization_percent=50, temperature_celsius=60
    )
    engine.register(database, devices=[device])
    with database.transaction() as session:
        make_job(session)
    client.get("/jobs")
    series = read_series(client)
    used = set()
    for expression in expressions(dashboard):
        names = re.findall(r"\btunesmith_\w+", expression)
        assert names, expression
        used.update(names)
        for name in names:
            assert name in series, f"GET /metrics has no {name}"
        labels = set().union(*(series[name][0] for name in names)) | ADDED
        grouped = {
            label for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(", ")
        }
        matched = dict(re.findall(r'(\w+)=~?"([^"]*)"', expression))
        assert grouped | matched.keys() <= labels, expression
        if "state" in matched:
            assert matched["state"] in {one["state"] for one in series[names[0]]}
    suffix = r"_(bucket|sum|count|created|total)$"
    own = {re.sub(suffix, "", name) for name in series if name.startswith("tunesmith_")}
    shown = {re.sub(suffix, "", name) for name in used}
    assert own == shown, "a series that no panel shows"


def test_the_dashboard_can_be_imported_with_any_data_source(dashboard: dict[str, Any]) -> None:
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["title"]
        assert panel["description"]
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24


def test_compose_provides_what_the_dashboard_needs() -> None:
    yaml = YAML(typ="safe")
    services = yaml.load(FOLDER.parent / "compose.monitoring.yaml")["services"]
    assert "api" in services.pop("api")["environment"]["TUNESMITH_ALLOWED_HOSTS"]
    for service in services.values():
        assert service["profiles"] == ["monitoring"]
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert not source.startswith(".") or (FOLDER.parent / source).is_file(), source
    [scrape] = yaml.load(FOLDER / "prometheus.yaml")["scrape_configs"]
    assert (scrape["job_name"], scrape["metrics_path"]) == ("tunesmith", "/metrics")
    [source] = yaml.load(FOLDER / "datasources.yaml")["datasources"]
    assert source["type"] == "prometheus"
    [provider] = yaml.load(FOLDER / "dashboards.yaml")["providers"]
    assert any(
        volume.split(":")[1].startswith(provider["options"]["path"])
        for volume in services["grafana"]["volumes"]
    )
