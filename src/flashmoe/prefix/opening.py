"""The prefix cache of an engine.

Owns what names its pieces: all that decides the last bits of a state.
"""

from __future__ import annotations

from collections.abc import Callable

from flashmoe import __version__
from flashmoe.kernels import Kernels
from flashmoe.kernels.reference import CHUNK
from flashmoe.model.state import State
from flashmoe.options import PrefixCache, Runtime
from flashmoe.prefix import keys
from flashmoe.prefix.cache import Prefixes
from flashmoe.store.reader import Store
from flashmoe.stream import sizes
from flashmoe.stream.budget import Plan
from flashmoe.stream.sizes import Outlay


def prefixes_of(
    options: PrefixCache,
    store: Store,
    plan: Plan,
    kernels: Kernels,
    outlay: Outlay,
    runtime: Runtime,
    key: str,
    reserve: Callable[[], Callable[[State, int], None] | None],
) -> Prefixes:
    """That of the engine called ``key``; ``reserve`` refers to what makes room for a timeline, as
    long as that lives."""
    # Chunks that end at multiples of 64 do not decide anything.
    odd = (runtime.chunk_tokens or 0) % CHUNK
    variant = f"{kernels.name} {kernels.instruction_set}"

    def reserved(state: State, tokens: int) -> None:
        if (method := reserve()) is not None:
            method(state, tokens)

    return Prefixes(
        options,
        keys.identity(key, variant, str(runtime.chunk_tokens if odd else None), __version__),
        limit_bytes=plan.prefix_bytes,
        state_bytes=sizes.state_bytes(outlay.shape, outlay.float_bytes),
        token_bytes=sizes.kv_bytes(outlay.shape, 1, outlay.float_bytes, outlay.kv),
        reserve=reserved,
        about={"store": str(store.path.absolute()), "kernels": variant},
    )
