"""Reasoning that a client keeps and sends back, where its API has no open place for the text.

Owns that form: the text itself, in an alphabet that no client touches. It hides nothing and
proves nothing; whoever sends it back could as well have written the text.
"""

from __future__ import annotations

import base64
import binascii

_MARK = "fm1."  # so that what another server has sealed is not taken for ours


def seal(text: str) -> str:
    """The text in a form to be handed through."""
    return _MARK + base64.urlsafe_b64encode(text.encode()).decode()


def unseal(sealed: str) -> str | None:
    """The text again; None for what another server has sealed, which cannot be read here."""
    if not sealed.startswith(_MARK):
        return None
    try:
        return base64.b64decode(sealed[len(_MARK) :], altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        return None
