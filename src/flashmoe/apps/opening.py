"""Opening a store as the command line asks for it.

Owns what is said where an answer will differ from the published model's; loading is the engine's.
"""

from __future__ import annotations

from dataclasses import replace

from flashmoe.apps.flags import LOSSY_KV
from flashmoe.apps.plan import budget_of
from flashmoe.apps.request import Limits
from flashmoe.apps.terminal import note
from flashmoe.engine import Engine
from flashmoe.kernels.reference import CHUNK
from flashmoe.model.observer import Observer
from flashmoe.options import PrefixCache, Runtime
from flashmoe.store.reader import Store


def open_engine(
    store: str,
    limits: Limits,
    runtime: Runtime,
    kernels: str,
    prefix_cache: PrefixCache | None = None,
    observer: Observer | None = None,
    *,
    grammars: bool = False,
    host_bytes: int = 0,
) -> Engine:
    """Open the store within the budget, and say so where the answer will differ.

    ``grammars`` plans memory for replies that are bound, calls of tools among them;
    ``host_bytes`` is what the caller takes beside the engine, within the same budget.

    Raises:
        StoreError, BudgetError, InputError, DeviceError: as for :meth:`Engine.open`.
    """
    own = Store.open(store, runtime.store_dirs).shape.experts
    wanted = own.top_k if limits.experts is None else limits.experts
    budget = budget_of(limits.ram, limits.context, limits.slots, wanted, limits.kv)
    budget = replace(budget, host_bytes=host_bytes, vram_bytes=limits.vram_bytes)
    engine = Engine.open(
        store,
        budget=budget,
        kernels=kernels,
        experts_per_token=limits.experts,
        runtime=runtime,
        observer=observer,
        prefix_cache=prefix_cache,
        grammars=grammars,
    )
    if wanted != own.top_k:
        note(
            "lossy: answers differ from the published model: "
            f"{wanted} of {own.top_k} experts a token"
        )
    if limits.kv in LOSSY_KV:
        note(f"lossy: {LOSSY_KV[limits.kv]}")
    if (runtime.chunk_tokens or 0) % CHUNK:
        note(
            f"chunks of {runtime.chunk_tokens} tokens show in the last digits of the answer; "
            f"multiples of {CHUNK} do not"
        )
    return engine
