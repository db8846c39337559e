"""Requests made from the OpenAPI document, well-formed and not: none may be an error of the server."""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from schemathesis import Case
from schemathesis.schemas import APIOperation

from tests.end_to_end.box import Box, running_box

pytestmark = pytest.mark.exhaustive

EXAMPLES = 20
# Without a worker nothing generates, and no preview or preflight runs: those are 503.
NO_WORKER = 503


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    folder = tmp_path_factory.mktemp("openapi")
    with running_box(folder, folder / "models", max_upload_bytes=str(1 << 20)) as box:
        yield box


def operations(box: Box) -> list[APIOperation]:
    schema = schemathesis.openapi.from_url(f"{box.client.base_url}/openapi.json")
    return [found.ok() for found in schema.get_all_operations()]


def test_no_request_of_the_openapi_document_is_a_server_error(box: Box) -> None:
    found = operations(box)
    assert len(found) > 40
    for operation in found:

        @seed(20_260_701)
        @settings(
            max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy())
        def send(case: Case) -> None:
            response = case.call(base_url=str(box.client.base_url), timeout=60)
            assert response.status_code < 500 or response.status_code == NO_WORKER, response.text
            if response.status_code >= 400 and case.path != "/ready":  # its 503 has reasons of its own
                assert response.json()["error"]["message"]

        send()
    assert "Traceback" not in box.log()
