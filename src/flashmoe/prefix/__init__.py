"""Prefix cache: a timeline that begins as an earlier one did need not be computed again.

What is kept, and how it is found, in memory and on disk; above the model's state, below the
engine. What resumes goes on as the session would have that kept it, to the last bit.
"""
