"""One router with one setting, as a benchmark starts it, and what all of them meet: engines, bands, tenants."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct

from beaconry.tenancy.keys import key_of

MODEL = "m"
"""The engines answer to it."""
ENGINES, PLACES = 4, 16
"""Engines, and requests that each of them runs at once."""
BLOCKS, BATCHED_TOKENS = 8192, 4096
"""KV blocks of an engine, and tokens of its longest step."""
FULL_RATE = 30.0
"""Requests per second that the engines complete when twice as many come: 100 % load."""
GOOD_S = 3.0
"""Patience for the first token."""
WAIT_S = 0.8 * GOOD_S
"""What may wait longer in a queue will not make it."""
BANDS = {"interactive": (10, 0.1), "standard": (0, 0.8), "batch": (-10, 0.1)}
"""Priority, and share of all requests."""
TENANTS = {"flood": 0.5, "steady": 0.25, "quiet": 0.25}
"""Share of all requests."""
KEYS = {tenant: key_of(tenant.encode().ljust(32, b".")) for tenant in TENANTS}
OBJECTIVE = "x-llm-d-inference-objective"

Headers = tuple[tuple[str, str], ...]


class Site(Struct, frozen=True, kw_only=True):
    """Where a router is to be started."""

    port: int
    """Free, and so is the next one."""
    engines: tuple[int, ...]
    """Their ports."""
    folder: Path
    """Its own, for its files."""
    peers: Path
    """Folder of the virtual environments `venv-dynamo`, `venv-envoy`, `venv-litellm`, `venv-sglang` and `venv-vllmr`."""


def nothing(_: object) -> tuple[()]:
    """No headers, no processes."""
    return ()


class Rival(Struct, frozen=True):
    """One router with one setting."""

    name: str
    program: str
    """What has to be there: a path below the folder of the peers, or a name on the PATH; empty for this repository's own."""
    command: Callable[[Site], Sequence[str]]
    beside: Callable[[Site], Sequence[Sequence[str]]] = nothing
    """Processes that belong to it and start with it."""
    hints: Callable[[str], Headers] = nothing
    """Headers that tell it a request's band, where it does not take them from `OBJECTIVE`."""
    fills_core: bool = False
    """It keeps a core busy with this load, so it is measured alone."""

    def missing(self, peers: Path) -> str | None:
        """What is not installed; None if nothing is."""
        there = not self.program or (peers / self.program).exists() or system_program(self.program) is not None
        return None if there else f"{peers / self.program}" if "/" in self.program else f"{self.program} on the PATH"


def system_program(name: str) -> str | None:
    """The place of a system's program, which an ordinary user's PATH may lack."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin")
