"""Which engine a request goes to, and which other one should load what many requests wait for.

An adapter is served where it is already on the device, so that engines hold different adapters and their
caches of prompts stay of use. Engines that hold the same are ordered by rendezvous hashing (Thaler and
Ravishankar, 1998), so that several processes choose alike and exchange nothing; one that has more than
its share of the requests is passed over, as in consistent hashing with bounded loads (Mirrokni et al., 2016).
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from app.core.engine.balancing.loads import EngineLoads, Wanted
from app.core.engine.endpoints import EngineEndpoint
from app.core.engine.messages import GenerateRequest

# So many requests are one batch that hardly takes longer than one: they are not worth a second engine.
_FEW_REQUESTS = 4
# How much more than its share of the requests an engine may have before another one loads the same.
_OVERLOAD = 1.25
# How long requests must find every engine that has the adapter overloaded before another one loads it.
SUSTAINED_SECONDS = 1.0


@dataclass(frozen=True)
class Choice:
    """The engines to try, best first.

    `equals`: addresses of those that have the base model, and so can take over what one refuses. `copy_to`:
    an engine that should load what the request needs, for later requests.
    """

    order: list[EngineEndpoint]
    equals: frozenset[str]
    copy_to: EngineEndpoint | None = None


def choose(
    engines: Sequence[EngineEndpoint],
    request: GenerateRequest,
    loads: EngineLoads,
    suspects: frozenset[str] = frozenset(),
) -> Choice:
    """Choose among live engines; `suspects` are addresses of those that respond to no probe."""
    usable = [one for one in engines if not (one.is_silent or one.is_paused or one.url in suspects)]
    unusable = sorted(
        (one for one in engines if one not in usable),
        key=lambda one: (one.url in suspects or one.is_silent, one.is_paused),
    )
    found = _Candidates(usable, request, loads)
    first = found.first()
    rest = sorted((one for one in usable if one is not first), key=found.preference)
    order = [*([first] if first else []), *rest, *unusable]
    equals = frozenset(one.url for one in found.holders)
    return Choice(order, equals, found.find_copy_target())


class _Candidates:
    """The usable engines for one request: `holders` have its base model, `having` its adapter too."""

    def __init__(
        self, usable: Sequence[EngineEndpoint], request: GenerateRequest, loads: EngineLoads
    ) -> None:
        self._usable = usable
        self._base_model = request.base_model
        self._wanted = Wanted.of(request)
        self._loads = loads
        self.holders = [one for one in usable if self._holds(one)]
        self.having = [one for one in self.holders if self._has_adapter(one)]

    def first(self) -> EngineEndpoint | None:
        """The engine that should take the request; None where no engine is usable."""
        if not self._usable:
            return None
        if not self.having:
            return min(self.holders or self._usable, key=self.preference)
        share = _share(self.having, self._loads)
        free = [one for one in self.having if self._loads.load(one.url) < self._limit(one, share)]
        if free and self._wanted.adapter_id is not None:
            return min(free, key=self._rendezvous)
        return min(self.having, key=self.preference)

    def preference(self, engine: EngineEndpoint) -> tuple[bool, bool, bool, bool, int, int]:
        """Sorts engines, best first, as if all had as much of the request's needs as the sorted ones."""
        return (
            engine not in self.having,
            engine not in self.holders,
            not engine.is_loading(self._base_model),
            not self._has_place(engine),
            self._loads.load(engine.url),
            self._rendezvous(engine),
        )

    def find_copy_target(self) -> EngineEndpoint | None:
        """Another engine that should load the same, where those that have it stay overloaded."""
        others = [one for one in self._usable if one not in self.having]
        targets = [one for one in others if one in self.holders] or [
            one for one in others if self._has_place(one) and self._is_idle(one)
        ]
        share = _OVERLOAD * _share([*self.having, *targets], self._loads)
        is_overloaded = bool(self.having and targets) and all(
            self._loads.load(one.url) >= self._limit(one, share) for one in self.having
        )
        seconds = self._loads.measure_overload(self._wanted, is_overloaded=is_overloaded)
        if not is_overloaded or seconds < SUSTAINED_SECONDS:
            return None
        return min(targets, key=self.preference)

    def _limit(self, engine: EngineEndpoint, share: float) -> int:
        """With how many requests the engine counts as full."""
        rows = engine.rows_of(self._base_model)
        limit = max(_FEW_REQUESTS, math.ceil(share))
        return limit if rows is None else min(limit, rows)

    def _holds(self, engine: EngineEndpoint) -> bool:
        base = self._base_model
        is_brought = self._loads.has_brought(engine.url, Wanted(base.key))
        return is_brought or engine.holds(base.name, base.quantization)

    def _has_adapter(self, engine: EngineEndpoint) -> bool:
        wanted = self._wanted
        if wanted.adapter_id is None or wanted.adapter_id in engine.state.adapters:
            return True
        return self._loads.has_brought(engine.url, wanted)

    def _has_place(self, engine: EngineEndpoint) -> bool:
        """Whether the engine can load a base model without the loss of the only copy of another one."""
        state = engine.state
        if state.loading is not None or state.max_base_models == 0:
            return False
        if len(state.bases) < state.max_base_models:
            return True
        others = [one for one in self._usable if one is not engine]
        return any(
            any(one.holds(base.base_model.name, base.base_model.quantization) for one in others)
            for base in state.bases
        )

    def _is_idle(self, engine: EngineEndpoint) -> bool:
        return self._loads.load(engine.url) == 0 and not engine.state.waiting

    def _rendezvous(self, engine: EngineEndpoint) -> int:
        """A number that orders the engines for an adapter or base model, the same in every process."""
        of = self._wanted.adapter_id or self._wanted.base_key
        return int.from_bytes(hashlib.blake2b(f"{engine.url} {of}".encode(), digest_size=8).digest())


def _share(engines: Sequence[EngineEndpoint], loads: EngineLoads) -> float:
    """How many requests each engine would have, with one more, if all had the same number."""
    return (sum(loads.load(one.url) for one in engines) + 1) / max(1, len(engines))
