"""The cache policy in plain Python, the twin that the native one is compared with.

The rules are told in ``flashmoe.stream.cache``; the calls are the single ones of its ``Cache``,
and give the same answers.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from flashmoe.quant import Array
from flashmoe.stream.cache import Admission, Key
from tests.stream.reference_forecast import Forecast, Trust

_FLOOR = 1e-4  # of a chance: the farthest expected use is finite, and ties go to the sweep
_OUT = 2.0  # above every chance: not to be evicted
_NOBODY = -1.0  # before every moment


class _Layer:
    """The experts of one layer that are in memory, and the one to leave first."""

    def __init__(self, moment: int, trust: Trust) -> None:
        self.forecast = Forecast(trust)
        self.moment = moment  # of its last visit, in visits
        self.resident: Array = np.zeros(0, bool)
        self.count = 0  # of them
        self._keep: Array = np.zeros(0, np.float32)  # the chance, or _OUT
        self.candidate = 0
        self.chance = 0.0  # of the candidate

    def place(self, expert: int) -> None:
        self.forecast.cover(expert)
        more = len(self.forecast) - len(self.resident)
        if more:
            self.resident = np.pad(self.resident, (0, more))
        self.resident[expert] = True
        self.count += 1

    def rank(self, sheltered: Collection[int]) -> None:
        """Take up new chances; ``sheltered`` experts are no candidates."""
        chances = self.forecast.chances()[: len(self.resident)]
        self._keep = np.where(self.resident, chances, np.float32(_OUT))
        if sheltered:
            inside = [expert for expert in sheltered if expert < len(self._keep)]
            self._keep[inside] = _OUT

    def exclude(self, expert: int) -> None:
        self._keep[expert] = _OUT

    def expected(self, layers: int, times: int) -> float:
        """Choose the candidate; the moment of its expected use, or -1 where there is none.

        The layer's next visit is ``times`` tokens'.
        """
        if not len(self._keep):
            return _NOBODY
        self.candidate = int(self._keep.argmin())
        chance = float(self._keep[self.candidate])
        if chance == _OUT:
            return _NOBODY
        self.chance = min(chance * times, 1.0)
        return layers + self.moment + layers / max(self.chance, _FLOOR)


class Cache:
    """``slots`` places for the experts of ``layers`` layers, of which a token chooses ``top_k``.

    Looking up, pinning and dropping are O(1), plus O(experts of a layer) once a visit; an
    eviction is O(layers + experts of a layer). Both are short passes over arrays; neither
    depends on the number of slots.
    """

    def __init__(self, slots: int, layers: int, top_k: int) -> None:
        if slots < 1 or layers < 1:
            raise ValueError(f"a cache of {slots} slots for {layers} layers holds nothing")
        self.slots = slots
        self.layers = layers
        self._slot: dict[Key, int] = {}
        self._pins: dict[Key, int] = {}
        self._free = list(range(slots - 1, -1, -1))  # the lowest leaves first
        trust = Trust()
        self._layers = [_Layer(layer - layers, trust) for layer in range(layers)]
        self._expected = [_NOBODY] * layers  # of each layer's candidate
        self._stale: set[int] = set()  # layers to be ranked anew
        self._passed: set[Key] = set()  # were candidates while pinned
        self._moment = -1
        self._layer = -1  # being visited
        self._routing: dict[int, None] = {}  # of the visit, in the order of asking
        self._told: list[int] = []  # of it, what the forecast does not know yet
        self._top_k = top_k
        self._tokens = 1  # of the visit, as far as is known

    def __len__(self) -> int:
        return len(self._slot)

    def __contains__(self, key: object) -> bool:
        return key in self._slot

    def lookup(self, key: Key) -> int | None:
        """The slot of an expert, or None where it has none; counts as a use."""
        layer, expert = key
        if layer != self._layer or expert in self._routing:
            self._visit(layer)
        self._routing[expert] = None
        self._told.append(expert)
        return self._slot.get(key)

    def sweep(self, layer: int, experts: list[int], rows: Array, tokens: int) -> list[int | None]:
        """The slots of all that a chunk of ``tokens`` chooses; ``rows`` are its last tokens'."""
        self._visit(layer, tokens)
        self._routing = dict.fromkeys(experts)
        visited = self._layers[layer]
        visited.moment = self._moment
        for number, row in enumerate(rows):
            if number:
                visited.forecast.begin()
            visited.forecast.add(row)
        return [self._slot.get((layer, expert)) for expert in experts]

    def resident(self, layer: int) -> int:
        """How many experts of a layer have a slot."""
        return self._layers[layer].count

    def slot(self, key: Key) -> int:
        """The slot of an expert that has one; does not count as a use."""
        return self._slot[key]

    def admit(self, key: Key, chance: float | None = None) -> Admission | None:
        """Give an absent expert a slot, evicting if need be.

        None when it may displace nobody now, since every slot is pinned. An expert that nobody
        has asked for yet, and that is only guessed to be used next, with a ``chance``, displaces
        neither experts of this visit nor one that is likelier to be used when its own layer comes
        round; pin it at once.
        """
        if key in self._slot:
            raise RuntimeError(f"expert {key} already has slot {self._slot[key]}")
        self._check(key[0])
        evicted = None
        if not self._free:
            evicted = self._victim() if chance is None else self._farthest(chance)
            if evicted is None:
                return None
            self._remove(evicted)
        slot = self._free.pop()
        self._slot[key] = slot
        self._layers[key[0]].place(key[1])
        if self._tokens > 1 and self._visiting(key):
            self._passed.add(key)
        elif self._visiting(key):
            pass  # sheltered until the visit ends
        elif chance is None:
            self._stale.add(key[0])
        else:
            self._passed.add(key)  # ranked once it is unpinned; before, its layer need not be
        return Admission(slot, evicted)

    @property
    def pinned(self) -> int:
        """Experts that are pinned."""
        return len(self._pins)

    @property
    def free(self) -> int:
        """Slots that hold nothing and are reserved for nobody."""
        return len(self._free)

    def reserve(self) -> int:
        """Take a free slot for an expert that is to come; :meth:`place` or ``unreserve`` it."""
        return self._free.pop()

    def unreserve(self, slot: int) -> None:
        """A reserved slot is free again."""
        self._free.append(slot)

    def place(self, key: Key, slot: int) -> None:
        """An absent expert is in a reserved slot; does not count as a use."""
        if key in self._slot:
            raise RuntimeError(f"expert {key} already has slot {self._slot[key]}")
        self._check(key[0])
        self._slot[key] = slot
        self._layers[key[0]].place(key[1])
        self._stale.add(key[0])

    def seed(self, shares: Array) -> None:
        """How often each expert was chosen before all this, (layers, experts), 0 to 1."""
        for layer, row in enumerate(shares):
            self._layers[layer].forecast.seed(row)
            self._stale.add(layer)

    def retire(self, count: int, least: int) -> list[int]:
        """Take ``count`` experts and every free slot away, as far as ``least`` slots remain.

        Returns the slots. Pinned experts stay, so it may be fewer.
        """
        most = max(self.slots - least, 0)
        for _ in range(min(count, most)):
            victim = self._farthest() or self._sheltered()
            if victim is None:
                break
            self._remove(victim)
        count = min(most, len(self._free))
        taken, self._free = self._free[:count], self._free[count:]
        self.slots -= len(taken)
        return taken

    def restore(self, slots: Collection[int]) -> None:
        """Give retired slots back."""
        self._free.extend(slots)
        self.slots += len(slots)

    def is_pinned(self, key: Key) -> bool:
        """Whether an expert has a slot and is pinned there."""
        return key in self._pins

    def pin(self, key: Key) -> None:
        """Keep an expert in its slot until as many :meth:`unpin` calls; pins add up."""
        if key not in self._slot:
            raise RuntimeError(f"expert {key} has no slot to be pinned in")
        self._pins[key] = self._pins.get(key, 0) + 1

    def unpin(self, key: Key) -> None:
        """Take back one :meth:`pin`."""
        pins = self._pins.get(key, 0)
        if not pins:
            raise RuntimeError(f"expert {key} is not pinned")
        if pins > 1:
            self._pins[key] = pins - 1
            return
        del self._pins[key]
        if key in self._passed:
            self._passed.remove(key)
            self._stale.add(key[0])

    def drop(self, key: Key) -> int:
        """Forget an expert, because its bytes are no good; returns the slot that is now free."""
        if key in self._pins:
            raise RuntimeError(f"expert {key} is pinned and cannot be dropped")
        if key not in self._slot:
            raise RuntimeError(f"expert {key} has no slot to be dropped from")
        self._stale.add(key[0])
        return self._remove(key)

    def _check(self, layer: int) -> None:
        if not 0 <= layer < self.layers:
            raise RuntimeError(f"layer {layer} lies outside the {self.layers} layers")

    def _visiting(self, key: Key) -> bool:
        return key[0] == self._layer and key[1] in self._routing

    def _visit(self, layer: int, tokens: int = 1) -> None:
        """The layer comes round; the visit before it is over and shelters nobody any more."""
        self._check(layer)
        if self._routing:
            self._tell()
            self._stale.add(self._layer)
        if tokens != self._tokens or (tokens > 1 and layer <= self._layer):
            self._stale.update(range(self.layers))  # who is still to come has changed
        self._tokens = tokens
        self._moment += (layer - self._layer - 1) % self.layers + 1
        self._layer = layer
        self._routing = {}
        self._layers[layer].forecast.begin()
        self._stale.add(layer)

    def _tell(self) -> None:
        """Let the forecast know what the visit has asked."""
        if self._tokens > 1:
            self._told.clear()  # the forecast was told token by token
        if self._told:
            visited = self._layers[self._layer]
            visited.moment = self._moment
            visited.forecast.add(self._told)
            self._told.clear()
            self._stale.add(self._layer)

    def _victim(self) -> Key | None:
        """Who leaves for an expert that is wanted; None where nobody may."""
        return self._farthest() or (None if self._tokens > 1 else self._sheltered())

    def _farthest(self, chance: float = 1.0) -> Key | None:
        """The unpinned expert outside this visit whose expected use is farthest ahead.

        None where there is none, or where it is used with more than this ``chance``.
        """
        if len(self._routing) >= self._top_k:
            self._tell()  # before that, more of this layer may be looked up, and be in memory
        for layer in self._stale:
            sheltered = layer == self._layer and self._tokens == 1
            self._layers[layer].rank(self._routing if sheltered else ())
            self._expected[layer] = self._layers[layer].expected(self.layers, self._times(layer))
        self._stale.clear()
        while (moment := max(self._expected)) != _NOBODY:
            layer = self._expected.index(moment)
            key = (layer, self._layers[layer].candidate)
            if self._layers[layer].chance > chance:
                return None
            self._layers[layer].exclude(key[1])
            self._expected[layer] = self._layers[layer].expected(self.layers, self._times(layer))
            if key not in self._pins:
                return key
            self._passed.add(key)
        return None

    def _times(self, layer: int) -> int:
        """How many tokens choose when a layer comes round: in a chunk, all of it may be to come."""
        return self._tokens if layer > self._layer else 1

    def _sheltered(self) -> Key | None:
        """The unpinned expert of this visit that was asked for first."""
        inside = ((self._layer, expert) for expert in self._routing)
        return next((key for key in inside if key in self._slot and key not in self._pins), None)

    def _remove(self, key: Key) -> int:
        """Take an expert out of its slot, which is free then."""
        slot = self._slot.pop(key)
        self._layers[key[0]].resident[key[1]] = False
        self._layers[key[0]].count -= 1
        self._free.append(slot)
        return slot
