"""Faces: the only code that prints, parses arguments, reads the environment and exits.

``cli`` declares the commands and turns refusals into one line; every command has a module of its
own name. ``routing_log`` and ``routing`` are the log of expert choices and its analysis.
"""
