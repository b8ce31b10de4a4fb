"""Every way flashmoe refuses.

Owns the exception types, and how a failure of the system is told in one of them. Each message
names the thing at fault (a file, tensor, key, record or value) and the mend. Hosts in ``apps/``
turn these into one line on the terminal or one error body; anything else that escapes is a bug.
"""


class FlashMoeError(Exception):
    """The root of every refusal: catch this to catch them all."""


class InputError(FlashMoeError):
    """An argument, option, prompt or token id that cannot be honoured."""


class TemplateError(InputError):
    """A chat template that cannot be compiled, or that rejects the conversation."""


class ContextError(InputError):
    """The timeline would outgrow the context that was planned for it."""


class CheckpointError(FlashMoeError):
    """A published checkpoint that is malformed, incomplete or not supported."""


class ConversionError(FlashMoeError):
    """A conversion, or the spreading of a store, that cannot start, go on, or be resumed."""


class StoreError(FlashMoeError):
    """A store that is missing, unfinished, of another version, or damaged."""


class ReadError(StoreError):
    """A record that could not be read whole, or whose checksum does not match."""


class SessionError(FlashMoeError):
    """A saved session that cannot be written, is damaged, or belongs to another model."""


class CancelledError(FlashMoeError):
    """A pass that :meth:`flashmoe.Session.cancel` or its ``on_progress`` has ended; what had passed
    before stays."""


class ClosedError(FlashMoeError):
    """An engine that was closed, or a session of one, is used."""


class BudgetError(FlashMoeError):
    """A memory budget below the floor; the message names the number and what binds."""


class DeviceError(FlashMoeError):
    """A GPU that is not there, cannot be used, or has failed; the message names it."""


def reason(error: BaseException) -> str:
    """Why something failed, for a message that names the file itself: without the system's number,
    the path and Python's word for a text that is no text."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)
