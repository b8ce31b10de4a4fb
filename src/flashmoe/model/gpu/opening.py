"""A decoder on a GPU for a store: the device's memory divided, its slots above the streamer's.

Owns the order: first the plan, which may refuse, then the memory.
"""

from __future__ import annotations

import logging
from functools import partial

import numpy as np

from flashmoe.errors import DeviceError
from flashmoe.kernels.cuda.decode import Placed
from flashmoe.kernels.cuda.device import Device
from flashmoe.kernels.cuda.panel_experts import PLACES
from flashmoe.model.gpu.chunk import experts_bytes, token_bytes
from flashmoe.model.gpu.decoder import GpuDecoder
from flashmoe.model.gpu.layer import Slots
from flashmoe.model.observer import Observer
from flashmoe.model.trunk import Trunk
from flashmoe.quant import Array
from flashmoe.shape import ModelShape
from flashmoe.store.layout import RecordLayout
from flashmoe.store.reader import Store
from flashmoe.stream import sizes
from flashmoe.stream.sizes import Outlay
from flashmoe.stream.streamer import Streamer
from flashmoe.stream.tiers import room
from flashmoe.stream.tiers.vram import Vram
from flashmoe.stream.usage import Usage

_log = logging.getLogger(__name__)


def planned(
    store: Store, shape: ModelShape, outlay: Outlay, device: Device, limit_bytes: int | None
) -> room.Room:
    """The plan of the device's memory, as it stands now.

    Raises:
        BudgetError: it has no room for this model.
    """
    layouts = [entry.layout for entry in store.manifest.layers]
    # Both sets of recurrent arrays are in `state_bytes`.
    timeline = outlay.state_bytes + outlay.kv_bytes(outlay.context_tokens)
    free, _ = device.memory()
    return room.divided(
        limit_bytes,
        free,
        trunk_bytes=sizes.trunk_bytes(store, outlay.float_bytes),
        timelines_bytes=outlay.sessions * timeline,
        chunk_bytes=partial(_chunk_bytes, shape),
        slot_bytes=max(layout.record_bytes for layout in layouts),
        least=shape.experts.top_k,
        most=len(layouts) * shape.experts.count,
    )


def opened(
    store: Store,
    shape: ModelShape,
    device: Device,
    plan: room.Room,
    streamer: Streamer,
    observer: Observer,
) -> GpuDecoder:
    """The decoder, with empty slots; or, where every expert has one, with all of them.

    Raises:
        ReadError: an expert could not be read.
        BudgetError: the device refuses the memory.
        InputError: the kernels do not take this model.
    """
    layouts = [entry.layout for entry in store.manifest.layers]
    arena = device.arena(plan.slots * plan.slot_bytes)
    slots = Slots(arena, device.address(arena), plan.slot_bytes)
    table = device.pinned((len(layouts), shape.experts.count), np.int32)
    mover = device.mover(arena, plan.slot_bytes)
    top_k = shape.experts.top_k
    spare = room.spare(plan.slots, top_k)
    # Where RAM has no room for all of them, what is in VRAM need not be there too.
    exclusive = streamer.slots < plan.experts
    tier = Vram(
        store,
        plan.slots,
        mover,
        streamer,
        top_k=top_k,
        spare=spare,
        exclusive=exclusive,
        table=table,
    )
    trunk = Trunk(store.trunk(), np.dtype(np.float32))
    records = [_placed(layout) for layout in layouts]
    kept = _pinned(device, streamer)

    def close() -> None:
        mover.drain()
        device.synchronize()
        if kept is not None:
            device.unpin(kept)

    decoder = GpuDecoder(shape, trunk, device, observer, slots, records, tier, close)
    if plan.whole:
        decoder.fill()
        streamer.usage = Usage(len(layouts), shape.experts.count)  # nobody has chosen these
    return decoder


def _pinned(device: Device, streamer: Streamer) -> Array | None:
    """The streamer's slots, so that copies from them need no other memory; None where the system
    does not allow it, and copies are slower."""
    arena = streamer.lending.keep()
    try:
        device.pin(arena)
    except DeviceError as error:
        _log.warning("slots in RAM cannot be pinned, so copies to the GPU are slower: %s", error)
        return None
    return arena


def _chunk_bytes(shape: ModelShape, tokens: int) -> int:
    """What a chunk of so many tokens takes of the device's memory."""
    places = min(tokens * shape.experts.top_k, PLACES + tokens)
    return tokens * token_bytes(shape) + experts_bytes(shape, places)


def _placed(layout: RecordLayout) -> tuple[Placed, ...]:
    """Where the matrices of an expert lie in its record."""
    return tuple(
        (form, shape, tuple(field.offset for field in fields))
        for form, shape, fields in layout.matrices
    )
