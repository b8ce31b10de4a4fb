"""The server against its own OpenAPI document: whatever schemathesis sends, the answer is one that
the document names, and what the document forbids is refused.

What it allows need not be honoured: a conversation that the chat template refuses is of the right
form all the same. Schemathesis' own fixtures for pytest do not know pytest 9.2, so that its
strategies are given to hypothesis here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

pytest.importorskip("schemathesis")

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS

from flashmoe.apps.serve.openapi import document
from tests.oracle.served import served

pytestmark = pytest.mark.oracle

DOCUMENT = document("demo")
OPERATIONS = {
    f"{operation.method} {operation.path}": operation
    for operation in (
        found.ok() for found in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations()
    )
}
EXAMPLES = 25
_BOUNDS = {"/v1/responses": "max_output_tokens", "/v1/messages/count_tokens": ""}
_TOKENS_MOST = 2


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that takes any model's name, and has never met a bug of its own afterwards."""
    log = tmp_path_factory.mktemp("served") / "log"
    with served(log, "--any-model", "--no-prefix-cache") as found:
        yield found
        assert "Traceback" not in log.read_text(encoding="utf-8")


def test_the_document_is_served(address: str) -> None:
    assert httpx.get(f"{address}/openapi.json", trust_env=False).json() == DOCUMENT


@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize("name", OPERATIONS)
def test_answers_are_those_of_the_document(address: str, name: str, mode: GenerationMode) -> None:
    operation = OPERATIONS[name]
    if operation.method == "get" and mode.is_negative:
        pytest.skip("there is nothing that could be wrong with it")

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        if mode.is_positive:
            shorten(case)
        response = case.call(base_url=address, timeout=60)
        left_out = CHECKS.get_by_names(["positive_data_acceptance"])
        case.validate_response(response, excluded_checks=left_out)
        if response.status_code >= 400:
            body = response.json()
            assert isinstance(body["error"]["message"], str)
            assert (body.get("type") == "error") == ("/v1/messages" in operation.path)

    ask()


def shorten(case: Any) -> None:
    """Have a reply as short as may be."""
    bound = _BOUNDS.get(case.operation.path, "max_tokens")
    if bound and isinstance(case.body, dict):
        case.body[bound] = _TOKENS_MOST
        case.body.pop("max_completion_tokens", None)
