"""What the models that clients ask for are called at the engines: aliases, and canaries by weight.

The same key (a session, or else a request) always gets the same target, and shifting weights moves only the share that they shift. A
target is taken as it stands: names are rewritten once.
"""

import hashlib
from collections.abc import Iterable, Mapping

from beaconry.config.tenants import ModelConfig, Target


class Rewrites:
    """Names to targets. Immutable."""

    def __init__(self, models: Mapping[str, ModelConfig]) -> None:
        self._targets = {name: model.targets for name, model in models.items() if model.targets}

    def __bool__(self) -> bool:
        return bool(self._targets)

    def target(self, model: str, key: str) -> str:
        """The engines' name for what a client calls `model`."""
        targets = self._targets.get(model)
        if targets is None:
            return model
        return targets[0].model if len(targets) == 1 else _chosen(targets, f"{model}\0{key}")

    def names(self, served: Iterable[str]) -> list[str]:
        """What clients may ask for while engines serve `served`: names that lead to at least one of those."""
        there = dict.fromkeys(served)
        return [
            name
            for name in dict.fromkeys((*there, *self._targets))
            if any(target.model in there for target in self._targets.get(name, (Target(model=name),)))
        ]

    def unserved(self, served: Iterable[str]) -> list[tuple[str, str]]:
        """Names and targets that no engine serves: a slip of the operator's, or a pool that is scaled to zero."""
        there = set(served)
        return [
            (name, target.model)
            for name, targets in self._targets.items()
            for target in targets
            if target.weight and target.model not in there
        ]


def _chosen(targets: tuple[Target, ...], key: str) -> str:
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    rest = int.from_bytes(digest, "big") / 2**64 * sum(target.weight for target in targets)
    for target in targets:
        rest -= target.weight
        if rest < 0:
            return target.model
    return next(target.model for target in reversed(targets) if target.weight)  # by rounding only
