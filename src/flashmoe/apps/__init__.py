"""Faces: the only code that prints, parses arguments, reads the environment and exits.

``cli`` has the commands; the module of a command's name does its work. ``main`` is where the
process begins, and imports nothing before it has dealt with Ctrl-C.
"""

import signal


def main() -> int:
    """The ``flashmoe`` command; returns the exit code of the process.

    While modules load, Ctrl-C ends the process at once and in silence: nothing is worth saving
    yet. A command that has something to save takes interrupts back when its modules are there.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from flashmoe.apps import cli

    return cli.main()
