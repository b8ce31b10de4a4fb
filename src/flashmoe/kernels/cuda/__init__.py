"""Arithmetic on a GPU: CUDA C++ sources (``source/``), and the launchers that check and call them.

Nothing here imports a GPU library but ``gpu``, which is imported when a GPU is asked for.
"""
