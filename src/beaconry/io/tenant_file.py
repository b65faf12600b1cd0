"""The files of keys. The tenants file is read at the start, and again whenever it changes, without a request noticing.

A version that cannot be loaded changes nothing: it is reported, and the keys that were known before stay in force.
"""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

from beaconry.config.tenants import TenantsFile
from beaconry.io.config_file import read_yaml
from beaconry.io.watched_file import POLL_S, follow
from beaconry.router.facts import TenantsChanged
from beaconry.values.errors import OperatorError

KEY_BYTES = 4096


def limits_of(file: TenantsFile) -> TenantsChanged:
    """What the router must be told of a file."""
    return TenantsChanged({name: tenant.limits for name, tenant in file.tenants.items()})


def read_key(path: Path) -> bytes:
    """The one key in a file. Raises OperatorError, which does not show what is in it."""
    try:
        with path.open("rb") as file:
            key = file.read(KEY_BYTES + 1).strip()
    except OSError as fault:
        raise OperatorError(f"{path}: cannot be read: {fault.strerror}") from None
    if not re.fullmatch(rb"[\x21-\x7e]+", key) or len(key) > KEY_BYTES:
        raise OperatorError(
            f"{path}: must hold one key, of printable ASCII characters without spaces, and nothing else"
        )
    return key


class TenantFile:
    """Follows one file. `take` gets each good version, and may refuse it with OperatorError; `refused` gets the reasons."""

    def __init__(
        self,
        path: Path,
        *,
        take: Callable[[TenantsFile], None],
        refused: Callable[[OperatorError], None],
        poll_s: float = POLL_S,
    ) -> None:
        self._path = path
        self._take = take
        self._refused = refused
        self._poll_s = poll_s
        self._loaded: TenantsFile | None = None

    def load(self) -> None:
        """Take the file as it is. Raises OperatorError."""
        self._accept(read_yaml(self._path, TenantsFile))

    async def follow(self) -> None:
        """Watch until cancelled."""
        await follow(self._path, self._reread, self._poll_s)

    async def _reread(self) -> None:
        try:
            self._accept(await asyncio.to_thread(read_yaml, self._path, TenantsFile))
        except OperatorError as fault:
            self._refused(fault)

    def _accept(self, file: TenantsFile) -> None:
        if file != self._loaded:
            self._take(file)
            self._loaded = file
