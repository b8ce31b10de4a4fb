"""What becomes of the library's errors at the door: a status, and words for the client.

Owns the mapping. Invariant: what is the client's to mend is told to it as it is; what is not (a
damaged store, a bug) is told to the log, and the client hears no path and no trace.
"""

from __future__ import annotations

import logging

from flashmoe.apps.serve.ask import BadRequest, Refusal
from flashmoe.errors import ContextError, FlashMoeError, InputError

_log = logging.getLogger(__name__)


def refusal_of(error: BaseException) -> Refusal:
    """The refusal that an error comes to; logs what is no client's fault."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, ContextError):
        return BadRequest(str(error), code="context_length_exceeded")
    if isinstance(error, InputError):
        return BadRequest(str(error), code="invalid_value")
    if isinstance(error, FlashMoeError):
        _log.error("a reply has failed: %s", error)
        return Refusal(500, "the model could not be run; the server's log says why")
    _log.error("a reply has failed, which is a bug", exc_info=error)
    return Refusal(500, "the server has failed; its log says how")


def stopping() -> Refusal:
    """The server is about to end."""
    return Refusal(503, "the server is stopping", code="server_stopping", retry_after=10)


def busy(what: str) -> Refusal:
    """There is no room for more of this."""
    return Refusal(
        503,
        f"{what} take all the memory that is set aside for them: try again later",
        code="server_busy",
        retry_after=5,
    )


def too_late(seconds: float) -> Refusal:
    """A request has taken as long as one may."""
    return Refusal(
        504,
        f"the reply has taken over {seconds:g} seconds, which is as long as one may here "
        "(--request-timeout)",
        code="timeout",
    )
