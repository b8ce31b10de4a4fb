"""``eval``: how good a store's answers are, in figures.

A text's perplexity, the divergence from another store of the same model, and the validity of tool
calls. ``command`` has the order of an evaluation; the arithmetic of log-probabilities is
:mod:`flashmoe.scoring`'s.
"""
