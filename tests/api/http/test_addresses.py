from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.core.settings import Settings
from app.core.specs.patterns import RULES
from app.main import create_app


@pytest.mark.parametrize("path", ["/jobs/", "/jobs//", "/health/", "/v1/models/"])
def test_a_slash_at_the_end_means_nothing(client: TestClient, path: str) -> None:
    assert client.get(path, follow_redirects=False).status_code == 200


@pytest.mark.parametrize("path", ["/", "/docs", "/dashboard/style.css"])
def test_pages_are_served_as_before(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 200


def test_an_unknown_parameter_is_refused_with_the_one_that_was_meant(client: TestClient) -> None:
    error = client.get("/jobs?stat=running").json()["error"]
    assert (error["param"], error["hint"]) == ("stat", "Did you mean `state`?")
    error = client.get("/status?verbose=1").json()["error"]
    assert error["hint"] == "It takes none here."
    assert client.get("/jobs?state=running&limit=3").status_code == 200


def test_every_pattern_of_the_api_has_a_rule_in_words(settings: Settings) -> None:
    def patterns(node: Any) -> set[str]:
        if isinstance(node, list):
            return {found for one in node for found in patterns(one)}
        if not isinstance(node, dict):
            return set()
        own = {node["pattern"]} if isinstance(node.get("pattern"), str) else set()
        return own | {found for one in node.values() for found in patterns(one)}

    assert patterns(create_app(settings).openapi()) - set(RULES) == set()
