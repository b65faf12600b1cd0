"""Events in small portions: whoever applies thousands of blocks has to let others go on in between."""

from collections.abc import Iterable, Iterator

from msgspec import structs

from beaconry.values.kv_events import BlockStored, KvEvent


def size_of(event: KvEvent) -> int:
    """How many blocks it costs to apply an event."""
    return len(event.block_hashes) if isinstance(event, BlockStored) else 1


def in_turns(events: Iterable[KvEvent], blocks: int) -> Iterator[tuple[KvEvent, ...]]:
    """Cut events into groups of at most `blocks` blocks, so that whoever applies them can do something else in between."""
    group: list[KvEvent] = []
    room = blocks
    for event in events:
        size = len(event.block_hashes) if isinstance(event, BlockStored) else 1
        if size <= room:
            group.append(event)
            room -= size
            continue
        for part in _parts(event, blocks) if isinstance(event, BlockStored) else (event,):
            if group:
                yield tuple(group)
            group, room = [part], blocks - size_of(part)
    if group:
        yield tuple(group)


def _parts(event: BlockStored, blocks: int) -> Iterator[BlockStored]:
    """The same run in pieces of at most `blocks` blocks."""
    hashes, size = event.block_hashes, event.block_tokens
    if len(hashes) <= blocks:
        yield event
        return
    for at in range(0, len(hashes), blocks):
        yield structs.replace(
            event,
            block_hashes=hashes[at : at + blocks],
            parent_hash=hashes[at - 1] if at else event.parent_hash,
            token_ids=event.token_ids[at * size : (at + blocks) * size],
            extras=event.extras[at : at + blocks],
            salt=None if at else event.salt,
        )
