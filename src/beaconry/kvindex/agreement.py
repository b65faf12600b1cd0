"""Do an engine's block hashes equal ours? Found out from its own events, which carry the tokens that were hashed.

Wrong settings make an exact index silently useless: every look-up misses. So the first blocks of each engine are hashed again here. If
none agrees, the other ways of hashing are tried, and the warning says which of them the engine uses, or that none is it.

A block can be verified if it begins a prompt or follows one that was, and if all that entered its hash is known: of a LoRA adapter
events tell the name only, while its path is hashed too. Whether the block before agreed does not matter: an engine's hash names it, our
own hash of the same tokens goes on from it. So where all prompts begin alike, as with one system prompt, a stranger is found out as soon.
"""

from array import array
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Final

import msgspec
from msgspec import Struct

from beaconry.values.block_hash import ALGORITHMS, DEFAULT_SEED, MASK64, BlockHasher, Extra
from beaconry.values.kv_events import BlockStored, KvEvent, Tier

BLOCKS: Final = 512
"""Hashed again at most: 5 ms with the slowest algorithm."""
TRIED_BLOCKS: Final = 4
"""Hashed in each other way, to find the engine's."""
USUAL_SEEDS: Final = (DEFAULT_SEED, "0", "1", "42", "1234", "random")
"""Values of PYTHONHASHSEED in the documentation of engines and routers."""
_Tags = tuple[str | int | bytes, ...]


class HashSettings(Struct, frozen=True, kw_only=True):
    """How we compute an engine's block keys."""

    algorithm: str
    seed: str
    block_tokens: int

    @property
    def told(self) -> str:
        """In a few words."""
        return self.algorithm if self.algorithm == "sglang" else f"{self.algorithm} with seed {self.seed!r}"

    def hasher(self) -> BlockHasher:
        """What computes them."""
        return BlockHasher(self.block_tokens, self.algorithm, self.seed)


class Agreement(Struct, frozen=True, kw_only=True):
    """What came of the comparison."""

    blocks: int
    """Verified."""
    agreed: int
    unverifiable: int
    """Left out: their beginning was not seen, or something in their hash is not known."""
    block_tokens: int | None
    """The engine's block size; None if nothing was seen."""
    engine: HashSettings | None = None
    """How the engine hashes, where it is not as configured and was found out."""
    warning: str = ""
    """What is wrong and what to do; empty if nothing is."""

    @property
    def share(self) -> float | None:
        """Of the verified blocks, those that agreed, 0..1; None if there were none."""
        return self.agreed / self.blocks if self.blocks else None

    @property
    def exact(self) -> bool:
        """Our keys are the engine's. Otherwise its events need the dual-key map."""
        return self.blocks > 0 and self.agreed == self.blocks and not self.warning


def agreement(
    events: Iterable[KvEvent], settings: HashSettings, adapters: Mapping[str, str] | None = None
) -> Agreement:
    """Hash the events' blocks as configured and compare. `adapters`: paths of LoRA adapters by name."""
    stored = [event for event in events if isinstance(event, BlockStored) and _is_whole(event)]
    if not stored:
        return Agreement(blocks=0, agreed=0, unverifiable=0, block_tokens=None)
    size = stored[0].block_tokens
    stored = [event for event in stored if event.block_tokens == size]
    seen = HashSettings(algorithm=settings.algorithm, seed=settings.seed, block_tokens=size)
    verdicts = list(islice(_verdicts(stored, seen, adapters or {}), BLOCKS))
    agreed = verdicts.count(True)
    blocks = agreed + verdicts.count(False)
    result = Agreement(blocks=blocks, agreed=agreed, unverifiable=len(verdicts) - blocks, block_tokens=size)
    if blocks and not agreed:
        found = _engine_settings(stored, seen, adapters or {})
        return msgspec.structs.replace(result, engine=found, warning=_stranger(settings, found))
    if agreed < blocks:
        warning = (
            f"{blocks - agreed} of {blocks} blocks are hashed otherwise than configured: the path of an adapter may differ from "
            "the engine's, or engines of several kinds publish under one address; their events go through the dual-key map"
        )
        return msgspec.structs.replace(result, warning=warning)
    if blocks and size != settings.block_tokens:
        warning = (
            f"the engine's blocks have {size} tokens, ours {settings.block_tokens}: no key can match. Configure {size}, or start "
            f"the engine with --block-size {settings.block_tokens}"
        )
        return msgspec.structs.replace(result, engine=seen, warning=warning)
    return result


def _is_whole(event: BlockStored) -> bool:
    """Its tokens are there, all of them (see `dense`), and what else entered the hash: vLLM leaves that out of other tiers' events."""
    size = event.block_tokens
    return (
        event.dense
        and event.tier is Tier.GPU
        and size > 0
        and 0 < len(event.token_ids) == len(event.block_hashes) * size
    )


def _verdicts(stored: list[BlockStored], settings: HashSettings, adapters: Mapping[str, str]) -> Iterable[bool | None]:
    """For each block whether it agrees; None if that cannot be known."""
    hasher = settings.hasher()
    size = settings.block_tokens
    ours: dict[int, int] = {}
    """Our whole hashes of the blocks met so far, by what events carry of the engine's."""
    for event in stored:
        parent = None if event.parent_hash is None else ours.get(event.parent_hash & MASK64)
        begins = event.parent_hash is None
        for index, announced in enumerate(event.block_hashes):
            extra = tags_of(event, index, adapters)
            if (parent is None and not begins) or extra is UNKNOWN:
                begins, parent = False, None
                yield None
                continue
            tokens = array("I", event.token_ids[index * size : (index + 1) * size])
            parent = hasher.link(parent, tokens, extra or None)
            begins = False
            ours[announced & MASK64] = parent
            yield parent & MASK64 == announced & MASK64


UNKNOWN: Final = (("unknown",),)
"""In the place of a block's extra keys that cannot be told."""


def tags_of(event: BlockStored, index: int, adapters: Mapping[str, str]) -> Extra:
    """What entered the hash beside the tokens, tagged again: events have it bare."""
    begins = index == 0 and event.parent_hash is None
    told = event.extras[index] if event.extras else b""
    if not told:
        bare: list[object] = [] if event.lora is None else [event.lora]
        if begins and event.salt:
            bare.append(event.salt)
    else:
        try:
            bare = msgspec.msgpack.decode(told, type=list[object])
        except msgspec.DecodeError:
            return UNKNOWN
    tags: list[_Tags] = []
    for place, key in enumerate(bare):
        match key:
            case str() if key == event.lora and place == 0:
                if key not in adapters:
                    return UNKNOWN
                tags.append(("lora", key, adapters[key]))
            case [str() as identifier, int() as offset]:
                tags.append(("mm", identifier, offset))
            case str() if begins:
                tags.append(("cache_salt", key))
            case bytes():
                tags.append(("prompt_embeds", key))
            case _:
                return UNKNOWN
    return tuple(tags)


def _engine_settings(
    stored: list[BlockStored], configured: HashSettings, adapters: Mapping[str, str]
) -> HashSettings | None:
    """The way of hashing that the engine uses; None if it is none of the usual."""
    beginnings = [event for event in stored if event.parent_hash is None]
    for algorithm in ALGORITHMS:
        for seed in dict.fromkeys((configured.seed, *USUAL_SEEDS)):
            trial = HashSettings(algorithm=algorithm, seed=seed, block_tokens=configured.block_tokens)
            if True in islice(_verdicts(beginnings, trial, adapters), TRIED_BLOCKS):
                return trial
    return None


def _stranger(configured: HashSettings, found: HashSettings | None) -> str:
    """The warning for an engine none of whose hashes is ours."""
    ours = configured.told
    until = "Until then its events go through the dual-key map."
    if found is None:
        return (
            f"none of the engine's block hashes is ours ({ours}), nor any other usual one: it seems to seed itself at random "
            "(xxhash without PYTHONHASHSEED), or with a value unknown here. Set PYTHONHASHSEED to the same value for all engines "
            f"and in the configuration, and use --prefix-caching-hash-algo sha256_cbor. {until}"
        )
    if found.algorithm != configured.algorithm and found.seed != configured.seed:
        wrong = "algorithm and seed differ"
    elif found.algorithm != configured.algorithm:
        wrong = "the algorithm differs"
    else:
        wrong = "the seed differs: PYTHONHASHSEED of the engine is not the configured one"
    return (
        f"none of the engine's block hashes is ours ({ours}): {wrong}. The engine uses {found.told}: configure that, or "
        f"restart the engine with ours. {until}"
    )
