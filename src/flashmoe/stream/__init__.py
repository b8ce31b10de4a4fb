"""Bytes in motion: the memory budget, the slots, the cache policy, and the reads that join them.

Experts reach the arithmetic only through ``streamer.Streamer.hold``.
"""
