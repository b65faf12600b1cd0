"""Who has most waiting for its weight: the tenants of a band, and the flows of each tenant.

Who is to give way is found in this order, so that a tenant that names many flows is as large as one that names none.
"""

from math import log2
from typing import Generic, Protocol, TypeVar

from beaconry.flowcontrol.fairness import Flow
from beaconry.values.errors import InternalError


class _Sized(Protocol):
    key: str
    size: int
    weight: float
    bucket: int


T = TypeVar("T", bound=_Sized)


class Sizes(Generic[T]):
    """Those with something waiting, filed by size over weight, so that a largest one is found among a few dozen sizes.

    Invariant (`check`): each is filed in `_by_size` under its size, and no size is there that none has.
    """

    __slots__ = ("_by_size",)

    def __init__(self) -> None:
        self._by_size: dict[int, dict[str, T]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_size.values()))

    def largest(self) -> T:
        """One that has most waiting for its weight; there is at least one."""
        return next(iter(self._by_size[max(self._by_size)].values()))

    def count(self, one: T, sign: int) -> None:
        """One request more of it waits, or one less."""
        before, was = one.size, one.bucket
        one.size += sign
        one.bucket = _bucket(one)
        if before and one.size and one.bucket == was:
            return
        if before:
            filed = self._by_size[was]
            del filed[one.key]
            if not filed:
                del self._by_size[was]
        if one.size:
            self._by_size.setdefault(one.bucket, {})[one.key] = one

    def check(self) -> None:
        """Raise InternalError if the invariant does not hold."""
        for bucket, filed in self._by_size.items():
            if not filed:
                raise InternalError(f"nothing is filed under the size {bucket}")
            for one in filed.values():
                if not one.size or one.bucket != bucket or bucket != _bucket(one):
                    raise InternalError(f"{one.key} of {one.size} is not filed under its size")


class Share:
    """What one tenant has waiting in a band: one of the configured tenants, or a flow that belongs to none."""

    __slots__ = ("bucket", "flows", "key", "size", "weight")

    def __init__(self, key: str) -> None:
        self.key = key
        self.size = 0
        """Requests that wait."""
        self.weight = 1.0
        self.bucket = 0
        self.flows: Sizes[Flow] = Sizes()


def has_more(large: _Sized, small: _Sized | None, weight: float) -> bool:
    """One has more waiting for its weight than another one (None: that has nothing yet) would have with one request more."""
    return large.size / large.weight > (1 + (small.size if small is not None else 0)) / weight


def _bucket(one: _Sized) -> int:
    """Steps of a twelfth, so that few buckets are enough for any size and weight."""
    return int(8 * log2(1 + one.size / one.weight))
