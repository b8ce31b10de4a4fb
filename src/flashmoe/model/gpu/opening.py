"""A decoder on a GPU for a store: the device's memory divided, its slots above the streamer's.

Owns the order: first the plan, which may refuse, then the memory.
"""

from __future__ import annotations

import logging
from functools import partial

import numpy as np

from flashmoe.errors import BudgetError, DeviceError, InputError
from flashmoe.kernels.cuda.attention import MOST_QUERIES, WIDTHS
from flashmoe.kernels.cuda.decode import (
    MOST_CHOSEN,
    MOST_EXPERTS,
    MOST_INPUTS,
    Places,
)
from flashmoe.kernels.cuda.descriptors import CHUNK, Placed
from flashmoe.kernels.cuda.device import Device
from flashmoe.kernels.cuda.mailbox import Mailbox
from flashmoe.kernels.cuda.panel_experts import PLACES
from flashmoe.model.gpu.chunk import experts_bytes, token_bytes
from flashmoe.model.gpu.decoder import GpuDecoder
from flashmoe.model.gpu.layer import Slots
from flashmoe.model.gpu.tokens import Tier
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
from flashmoe.stream.tiers.mover import Mover
from flashmoe.stream.tiers.vram import Vram
from flashmoe.stream.units import format_bytes
from flashmoe.stream.usage import Usage

_log = logging.getLogger(__name__)


def planned(
    store: Store, shape: ModelShape, outlay: Outlay, device: Device, limit_bytes: int | None
) -> room.Room:
    """The plan of the device's memory, as it stands now.

    Raises:
        BudgetError: it has no room for this model.
        InputError: the kernels do not take it.
    """
    _check(shape)
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
        # One token's of a layer, and as many on offer for the next.
        least=min(2 * shape.experts.top_k, len(layouts) * shape.experts.count),
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
        BudgetError: the device refuses the memory, or RAM is too small beside it.
        InputError: the kernels do not take this model.
    """
    _check_ram(plan, streamer, shape.experts.top_k)
    kept: list[Array] = []
    arena = device.arena(plan.slots * plan.slot_bytes)
    mover = device.mover(arena, plan.slot_bytes)

    def close() -> None:
        streamer.picture.above = None  # it would keep the arena
        for end in (mover.drain, device.synchronize, *(partial(device.unpin, a) for a in kept)):
            try:
                end()
            except DeviceError as error:  # whatever it was, this is the end
                _log.warning("while the GPU is let go of: %s", error)
        kept.clear()

    try:
        kept += _pinned(device, streamer, plan)
        ram = Places(device.host_address(kept[0]), plan.slot_bytes) if kept else None
        slots = Slots(arena, device.address(arena), plan.slot_bytes, ram)
        tier = _tier(store, shape, device, plan, streamer, mover, slots)
        trunk = Trunk(store.tensors(), np.dtype(np.float32))
        decoder = GpuDecoder(shape, trunk, device, observer, tier, close)
        device.release()  # what its copies have left
        if plan.whole:
            decoder.fill()
            streamer.usage = Usage(shape.layers, shape.experts.count)  # nobody has chosen these
    except BaseException:
        close()
        raise
    return decoder


def _tier(
    store: Store,
    shape: ModelShape,
    device: Device,
    plan: room.Room,
    streamer: Streamer,
    mover: Mover,
    slots: Slots,
) -> Tier:
    """Who is in which slot, and the memory in which host and device tell each other of it."""
    layouts = [entry.layout for entry in store.manifest.layers]
    table, places = (device.pinned((len(layouts), shape.experts.count), np.int32) for _ in range(2))
    mailbox = Mailbox(device, len(layouts))
    vram = Vram(
        store,
        plan.slots,
        mover,
        streamer,
        top_k=shape.experts.top_k,
        # Where RAM has no room for all of them, what is in VRAM need not be there too.
        exclusive=streamer.slots < plan.experts,
        table=table,
        records=places,
        ring=mailbox.offers,
    )
    records = [_placed(layout) for layout in layouts]
    record_bytes = [layout.record_bytes for layout in layouts]
    return Tier(slots, records, record_bytes, vram, mailbox, places)


def _check_ram(plan: room.Room, streamer: Streamer, top_k: int) -> None:
    """What the device reads from RAM in one go must fit there."""
    if not plan.whole and streamer.least_slots < top_k:
        raise BudgetError(
            f"{streamer.least_slots} slots in RAM are too few for one token's {top_k} experts of a "
            "layer, which the GPU reads from there: give more --ram (or Budget.slots)"
        )


def _pinned(device: Device, streamer: Streamer, plan: room.Room) -> list[Array]:
    """The streamer's slots, where the device can read them; none where it need not, and the system
    does not allow it."""
    arena = streamer.lending.keep()
    try:
        device.pin(arena)
    except DeviceError as error:
        if not plan.whole:
            raise BudgetError(
                f"{format_bytes(arena.nbytes)} of RAM cannot be pinned for the GPU to read "
                f"({error}): give a smaller --ram, or run with --kernels cpu"
            ) from error
        _log.warning("slots in RAM cannot be pinned, so the experts come more slowly: %s", error)
        return []
    return [arena]


def _check(shape: ModelShape) -> None:
    """What the kernels refuse, before anything is loaded."""
    experts, attention = shape.experts, shape.attention
    wrong = None
    if experts.top_k > MOST_CHOSEN or experts.count > MOST_EXPERTS:
        wrong = (
            f"{experts.top_k} of {experts.count} experts; at most {MOST_CHOSEN} of {MOST_EXPERTS}"
        )
    elif attention is not None and attention.head_dim not in WIDTHS:
        known = ", ".join(map(str, WIDTHS))
        wrong = f"attention of head_dim {attention.head_dim}; they know {known}"
    elif attention is not None and attention.heads > MOST_QUERIES * attention.kv_heads:
        group = attention.heads // attention.kv_heads
        wrong = f"{group} query heads a kv head; at most {MOST_QUERIES}"
    elif shape.hidden > MOST_INPUTS:
        wrong = f"a hidden size of {shape.hidden}; at most {MOST_INPUTS}"
    elif shape.hidden % CHUNK or experts.intermediate % CHUNK:
        wrong = f"widths {shape.hidden} and {experts.intermediate}; both in multiples of {CHUNK}"
    if wrong:
        raise InputError(
            f"the GPU's kernels do not take {wrong}: run this model with --kernels cpu"
        )


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
