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
    """Those with something waiting, filed by size over weight, so that the largest is at hand whatever changes.

    Invariants (`check`): each is filed in `_by_size` under its size, and nothing is filed above `_largest`.
    """

    __slots__ = ("_by_size", "_largest")

    def __init__(self) -> None:
        self._by_size: list[dict[str, T]] = [{}]
        self._largest = 0

    def __len__(self) -> int:
        return sum(map(len, self._by_size))

    def largest(self) -> T:
        """One that has most waiting for its weight; there is at least one."""
        return next(iter(self._by_size[self._largest].values()))

    def count(self, one: T, sign: int) -> None:
        """One request more of it waits, or one less."""
        self._by_size[one.bucket].pop(one.key, None)
        one.size += sign
        one.bucket = bucket = _bucket(one)
        if one.size:
            while len(self._by_size) <= bucket:
                self._by_size.append({})
            self._by_size[bucket][one.key] = one
            self._largest = max(self._largest, bucket)
        while self._largest and not self._by_size[self._largest]:
            self._largest -= 1

    def check(self) -> None:
        """Raise InternalError if an invariant does not hold."""
        for bucket, filed in enumerate(self._by_size):
            for one in filed.values():
                if not one.size or one.bucket != bucket or bucket != _bucket(one):
                    raise InternalError(f"{one.key} of {one.size} is not filed under its size")
        if any(self._by_size[self._largest + 1 :]):
            raise InternalError("the largest is not known")


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
