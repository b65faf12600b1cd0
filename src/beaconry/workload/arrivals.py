"""When requests arrive: endless streams of seconds since the start of the run, non-decreasing."""

import math
from collections.abc import Iterator
from random import Random


def fixed(rate: float) -> Iterator[float]:
    """One arrival every `1 / rate` seconds, the first at 0."""
    count = 0
    while True:
        yield count / rate
        count += 1


def poisson(rate: float, rng: Random) -> Iterator[float]:
    """Independent arrivals, `rate` per second on average: gaps are exponential."""
    return gamma(rate, 1.0, rng)


def gamma(rate: float, shape: float, rng: Random) -> Iterator[float]:
    """Gaps are gamma distributed with mean `1 / rate`: shape 1 is Poisson, below 1 comes in bursts, above 1 is more regular."""
    at_s = 0.0
    while True:
        at_s += rng.gammavariate(shape, 1.0 / (rate * shape))
        yield at_s


def diurnal(rate: float, swing: float, period_s: float, rng: Random) -> Iterator[float]:
    """Independent arrivals whose rate follows a cosine around `rate`, lowest at 0: from `rate (1 - swing)` to `rate (1 + swing)`."""
    highest = rate * (1.0 + swing)
    at_s = 0.0
    while True:
        at_s += rng.expovariate(highest)
        if rng.random() * highest < rate * (1.0 - swing * math.cos(math.tau * at_s / period_s)):
            yield at_s
