"""The server against its own OpenAPI document: whatever schemathesis sends, the answer is one that
the document names, and what the document forbids is refused.

What it allows need not be honoured: a conversation that the chat template refuses is of the right
form all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("schemathesis")

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import CHECKS

from tests.oracle.served import served

pytestmark = pytest.mark.oracle

_BOUNDS = {"/v1/responses": "max_output_tokens", "/v1/messages/count_tokens": ""}
_TOKENS_MOST = 2


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The document of a server that takes any model's name."""
    log = tmp_path_factory.mktemp("served") / "log"
    with served(log, "--any-model", "--no-prefix-cache") as address:
        yield schemathesis.openapi.from_url(f"{address}/openapi.json")
        assert "Traceback" not in log.read_text(encoding="utf-8")


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_answers_are_those_of_the_document(case: Any) -> None:
    shorten(case)
    response = case.call(timeout=60)
    left_out = CHECKS.get_by_names(["positive_data_acceptance"])
    case.validate_response(response, excluded_checks=left_out)
    if response.status_code >= 400:
        body = response.json()
        assert isinstance(body["error"]["message"], str)
        assert (body.get("type") == "error") == ("/v1/messages" in case.operation.path)


def shorten(case: Any) -> None:
    """Have a reply that may come as short as may be; what is to be refused stays as it is."""
    bound = _BOUNDS.get(case.operation.path, "max_tokens")
    if bound and isinstance(case.body, dict) and case.meta.generation.mode.is_positive:
        case.body[bound] = _TOKENS_MOST
        case.body.pop("max_completion_tokens", None)
