"""What a closed-loop load generator does to an engine, in virtual time.

As vLLM's `benchmark_serving.py` with `--max-concurrency`: so many clients, all of whom send at once at the start and then whenever their
last reply is complete; lengths are drawn uniformly from a share of the nominal length up to it. The herd of the start is part of the mean.
"""

from collections.abc import Iterator
from random import Random

from msgspec import Struct

from beaconry.engine_model.exposure import Exposure, Rig, SumOfTerms
from beaconry.engine_model.sequence import Sequence
from beaconry.engine_model.values import EngineSettings

WAVES = 10
"""Requests per client."""


class Loop(Struct, frozen=True, kw_only=True):
    """The load."""

    prompt_tokens: int
    output_tokens: int
    clients: int
    shortest: float = 0.8
    """Shortest length, as a share of the nominal one; 1 is a fixed length."""
    seed: int = 0

    def sequences(self) -> Iterator[Sequence]:
        """What is sent, in order."""
        rng = Random(self.seed)
        for number in range(self.clients * WAVES):
            prompt, output = (
                rng.randint(int(self.shortest * nominal), nominal)
                for nominal in (self.prompt_tokens, self.output_tokens)
            )
            yield Sequence(str(number), prompt, output)


def run(loop: Loop, settings: EngineSettings, step_time: SumOfTerms) -> list[Exposure]:
    """Every request's times and what they were made of, in order of their ends."""
    coming = loop.sequences()
    exposures: list[Exposure] = []

    def send_next() -> None:
        sequence = next(coming, None)
        if sequence is not None:
            rig.submit(sequence)

    def ended(exposure: Exposure) -> None:
        exposures.append(exposure)
        send_next()

    rig = Rig(settings, step_time, ended)
    for _ in range(loop.clients):
        send_next()
    rig.finish()
    return exposures
