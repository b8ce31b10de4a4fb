"""What a checkpoint says of generation: when to stop, and how to sample by default.

Owns the reading of generation_config.json; applies it to :class:`flashmoe.options.Sampling`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from flashmoe.errors import InputError, StoreError
from flashmoe.options import Sampling

_SAMPLED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class Generation:
    """Stop ids and default sampling of a store."""

    stop_ids: frozenset[int] = frozenset()
    sampling: Sampling = Sampling()

    @staticmethod
    def from_json(text: str | None, origin: str) -> Generation:
        """Read generation_config.json; None gives the library's own defaults.

        ``do_sample: false`` means greedy, as in transformers.

        Raises:
            StoreError: malformed, or a value out of range.
        """
        if text is None:
            return Generation()
        try:
            config = json.loads(text)
            if not isinstance(config, dict):
                raise TypeError("it is not a JSON object")
            return Generation(_stop_ids(config), _sampling(config))
        except (ValueError, TypeError, InputError, RecursionError) as error:
            raise StoreError(f"{origin} is malformed: {error}") from error


def _stop_ids(config: dict[str, Any]) -> frozenset[int]:
    ids = config.get("eos_token_id")
    if ids is None:
        return frozenset()
    ids = [ids] if isinstance(ids, int) else ids
    if not all(type(number) is int and number >= 0 for number in ids):
        raise TypeError(f"eos_token_id is {ids!r}; it must be an id or a list of ids")
    return frozenset(ids)


def _sampling(config: dict[str, Any]) -> Sampling:
    values = {name: config[name] for name in _SAMPLED if config.get(name) is not None}
    if config.get("do_sample") is False:
        values["temperature"] = 0.0
    return replace(Sampling(), **values)
