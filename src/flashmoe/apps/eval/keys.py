"""The JSON of an evaluation: every key, in order, and what it means.

Owns the names alone, so that the command line can tell them without loading anything.
"""

WHOLE = {
    "store": "what was evaluated",
    "bits": "of an expert's weight, the mean where they differ",
    "experts_per_token": "chosen in each layer",
    "kv": "how keys and values were held",
    "text": "see below; null without --text",
    "against": "see below; null without --against",
    "tools": "see below; null without --tools",
    "seconds": "that all took, loading included",
    "peak_rss_bytes": "largest resident memory of the process",
    "ram_bytes": "the memory it was given",
}
"""The JSON keys in order, and what they mean."""

TEXT = {
    "file": "the text",
    "tokens": "of the text",
    "scored_tokens": "predicted, each once; the figures are means over these",
    "scored_bytes": "of UTF-8 that they make",
    "windows": "timelines that they were predicted in",
    "context": "tokens that pass in a window at most",
    "stride": "tokens from the beginning of a window to that of the next",
    "nats_per_token": "the mean loss, -ln p",
    "nats_per_token_se": "its standard error",
    "perplexity": "e to that loss",
    "perplexity_se": "its standard error, perplexity times that of the loss",
    "bits_per_byte": "the loss of all tokens over their bytes: the same unit for any vocabulary",
    "bits_per_byte_se": "its standard error",
}
"""The JSON keys of ``text`` in order, and what they mean."""

AGAINST = {
    "store": "the other store: the one that is diverged from",
    "perplexity": "its own, of the same tokens",
    "nats_difference": "this store's mean loss less the other's",
    "nats_difference_se": "its standard error, over pairs",
    "perplexity_difference": "this store's perplexity less the other's",
    "perplexity_ratio": "the one over the other",
    "kl_mean": "mean Kullback-Leibler divergence of this store's distribution from the other's, "
    "in nats a token",
    "kl_mean_se": "its standard error",
    "kl_median": "the middle one",
    "kl_p99": "below which 99 % of tokens are",
    "kl_max": "the largest",
    "same_top_1": "share of tokens where both find the same one likeliest",
    "same_top_1_se": "its standard error",
}
"""The JSON keys of ``against`` in order, and what they mean."""

TOOLS = {
    "file": "the cases",
    "cases": "how many there are; each is asked once on each side",
    "expected": "those that name the right call",
    "temperature": "0 is greedy",
    "seed": "of the first case; every next one has the next",
    "max_tokens": "a reply is cut after so many",
    "unconstrained": "the side on which the model writes as it will, see below",
    "constrained": "the side on which a grammar holds calls to the tools and their schemas",
}
"""The JSON keys of ``tools`` in order, and what they mean."""

SIDE = {
    "well_formed": "replies that ended, called offered tools and left no markup in their text",
    "valid": "of these, replies whose every call satisfies its schema, by jsonschema",
    "right": "replies that were the expected call; null where no case expects one",
    "cut": "replies that did not end within max_tokens",
    "tokens": "of all replies",
    "faults": "for each reply that was not valid and right: case, fault, and its text",
}
"""The JSON keys of each side, and what they mean."""
