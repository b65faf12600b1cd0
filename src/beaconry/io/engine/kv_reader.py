"""The decode engine's side of a handover: fetches the KV that sequences here wait for.

From a request's arrival on, its KV's holder is told six times a lease that it is still wanted. When the engine has room, the bytes are
asked for; they take as long as the slower of two shared links, the holder's outwards and the one inwards here, and a latency; then the
holder is told to let go. If that fails at any point, KV has not come. A holder that died is noticed when it is asked next.

See `kv_holder.py` for the questions.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import msgspec

from beaconry.engine_model.kv_link import KvLink
from beaconry.engine_model.sequence import Sequence
from beaconry.io.engine.kv_holder import KEEP, READ, RELEASE, Question, Sending
from beaconry.io.engine.kv_params import KvTransferOptions, Source
from beaconry.io.engine.loop import EngineLoop
from beaconry.io.engine.observations import Handovers
from beaconry.io.fetch import fetch
from beaconry.io.upstream import UpstreamPool
from beaconry.values.errors import EngineError

ANSWER_S: Final = 5.0
"""Within which a holder must answer; it has only to look."""
ANSWER_BYTES: Final = 65_536
BEATS: Final = 6
"""Per lease, that the holder is told that its KV is wanted; vLLM's."""

_LOG = logging.getLogger(__name__)


class KvReader:
    """Fetches KV. Runs as `run`, in a task of its owner.

    `_sources` has who holds the KV of each sequence here that waits for it; `_tasks` what is under way for each of them. `_group` is
    None while not running; `_pools` are connections by address.
    """

    def __init__(
        self,
        options: KvTransferOptions,
        steps: EngineLoop,
        counts: Handovers,
        failed: Callable[[str], None],
        speed: float,
    ) -> None:
        """`failed` is told of sequences whose KV will not come."""
        self._options = options
        self._steps = steps
        self._counts = counts
        self._failed = failed
        self._speed = speed
        self._inwards = KvLink()
        self._sources: dict[str, Source] = {}
        self._tasks: dict[str, list[asyncio.Task[None]]] = {}
        self._pools: dict[tuple[str, int], UpstreamPool] = {}
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Fetch until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                await asyncio.Event().wait()
        finally:
            self._group = None
            for pool in self._pools.values():
                pool.abort()

    def expect(self, sequence_id: str, source: Source) -> None:
        """A sequence is here that will wait for KV."""
        self._sources[sequence_id] = source
        self._tasks[sequence_id] = [self._running().create_task(self._claim(source))]

    def fetch(self, sequence: Sequence) -> None:
        """There is room for a sequence's KV."""
        source = self._sources[sequence.id]
        self._tasks[sequence.id].append(self._running().create_task(self._bring(sequence, source)))

    def forget(self, sequence_id: str) -> None:
        """A sequence does not want its KV any more, if it ever did: nor need its holder keep it."""
        source = self._sources.get(sequence_id)
        if source is not None:
            self._end(sequence_id)
            self._running().create_task(self._let_go(source))

    def _running(self) -> asyncio.TaskGroup:
        assert self._group is not None
        return self._group

    def _end(self, sequence_id: str) -> None:
        del self._sources[sequence_id]
        for task in self._tasks.pop(sequence_id):
            if task is not asyncio.current_task():
                task.cancel()

    # -- tasks

    async def _claim(self, source: Source) -> None:
        """Keep the lease alive. That a holder does not answer shows when it is read from."""
        while True:
            try:
                await self._ask(KEEP, source)
            except EngineError as error:
                _LOG.debug("KV not claimed: %s", error)
            await asyncio.sleep(self._options.lease_s / BEATS)

    async def _bring(self, sequence: Sequence, source: Source) -> None:
        """Fetch a sequence's KV."""
        now_s, way = asyncio.get_running_loop().time, self._options.way
        begun_s = now_s()
        try:
            sending = msgspec.json.decode(await self._ask(READ, source, sequence.fetched), type=Sending)
            posted_s = now_s()
            model_s = self._steps.now_s()
            coming_s = self._inwards.send(model_s, way.seconds(sequence.fetched)) - model_s
            await asyncio.sleep(max(sending.seconds, coming_s / self._speed) + way.latency_s / self._speed)
            await self._ask(RELEASE, source)
        except (EngineError, msgspec.MsgspecError) as error:
            _LOG.warning("KV of %s not fetched: %s", source.request_id, error)
            self._counts.failed += 1
            self._end(sequence.id)
            self._failed(sequence.id)
            return
        self._counts.observe(now_s() - posted_s, posted_s - begun_s, sequence.fetched * way.bytes_per_token)
        self._end(sequence.id)
        self._steps.imported(sequence.id)

    async def _let_go(self, source: Source) -> None:
        try:
            await self._ask(RELEASE, source)
        except EngineError as error:
            _LOG.debug("KV not released: %s", error)
            self._counts.failed_notices += 1

    async def _ask(self, path: str, source: Source, tokens: int = 0) -> bytes:
        """Ask a holder. EngineError if it does not answer, or has nothing for us."""
        address = (source.host, source.port)
        pool = self._pools.get(address)
        if pool is None:
            pool = self._pools[address] = UpstreamPool(*address, ANSWER_S, self._running().create_task)
        body = msgspec.json.encode(Question(engine_id=source.engine_id, request_id=source.request_id, tokens=tokens))
        answer = await fetch(pool, path, f"{source.host}:{source.port}", ANSWER_S, ANSWER_BYTES, body)
        if answer.status != 200:
            raise EngineError(f"{path} at {source.host}:{source.port}: status {answer.status}")
        return answer.body
