"""What a comparison touches before it begins is touched once, and let go."""

import backing
from pytest import MonkeyPatch

from flashmoe.stream import memory
from flashmoe.stream.memory import Memory, resident_bytes


def test_what_is_available_is_touched_and_let_go(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(backing, "STEP_BYTES", 1 << 20)
    offered = Memory(0, backing.LEFT_BYTES + (32 << 20), None, None, "a test")
    monkeypatch.setattr(memory, "available", lambda: offered)
    before, peak = resident_bytes(), memory.peak_resident_bytes()
    assert backing.back_memory() > 0
    assert resident_bytes() - before < 8 << 20
    assert memory.peak_resident_bytes() >= min(peak, before + (32 << 20))


def test_a_machine_with_little_is_left_alone(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: Memory(0, 1 << 20, None, None, "a test"))
    before = memory.peak_resident_bytes()
    backing.back_memory()
    assert memory.peak_resident_bytes() - before < 8 << 20
