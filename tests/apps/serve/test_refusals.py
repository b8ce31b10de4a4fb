"""What the library's errors come to at the door."""

import logging

import pytest

from flashmoe.apps.serve.ask import BadRequest
from flashmoe.apps.serve.refusals import refusal_of, stopping, too_late
from flashmoe.errors import ContextError, InputError, ReadError, TemplateError


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (BadRequest("x", "n", "c"), 400, "c"),
        (InputError("x"), 400, "invalid_value"),
        (TemplateError("x"), 400, "invalid_value"),
        (ContextError("x"), 400, "context_length_exceeded"),
    ],
)
def test_what_a_client_can_mend_is_told_to_it(error, status, code):
    refusal = refusal_of(error)
    assert (refusal.status, refusal.code, refusal.message) == (status, code, "x")


@pytest.mark.parametrize("error", [ReadError("/secret/place is damaged"), KeyError("secret")])
def test_what_it_cannot_is_told_to_the_log_alone(error, caplog):
    with caplog.at_level(logging.ERROR):
        refusal = refusal_of(error)
    assert refusal.status == 500 and "secret" not in refusal.message
    assert "secret" in caplog.text


def test_the_server_names_its_own_reasons():
    assert stopping().status == 503 and stopping().retry_after
    assert too_late(5).status == 504 and "5 seconds" in too_late(5).message
