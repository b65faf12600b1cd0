"""Many plain decode steps at once: every sequence gets a token in each of them, and nothing else happens.

They cost what happens in them (blocks that fill up), not their number. Single steps are the oracle in the tests.
"""

from beaconry.engine_model.block_pool import BlockPool
from beaconry.engine_model.calendar import DecodeCalendar


def count_steps(calendar: DecodeCalendar, pool: BlockPool, most: int) -> int:
    """Return how many steps, that in progress included and at most `most`, have blocks enough and end nobody but in the last one.

    The calendar must not be empty, and the blocks of the step in progress must be held already.
    """
    limit = min(most, calendar.steps_to_next_end())
    members = len(calendar)
    rounds = pool.free // members  # each member takes a block every `block_tokens` steps
    safe = 1 + rounds * pool.block_tokens
    if safe >= limit:
        return limit
    free = pool.free - rounds * members
    for steps in range(safe, limit):
        free -= len(calendar.without_room(steps))
        if free < 0:
            return steps
    return limit


def pass_steps(calendar: DecodeCalendar, pool: BlockPool, steps: int) -> None:
    """End that many steps, and hold and publish what the one after them needs, which is then in progress."""
    if not steps:
        return
    grown = 0
    for members, times in calendar.without_room_within(steps):
        grown += times * len(members)
        for sequence in members:
            sequence.private_blocks += times
    pool.allocate(grown)
    filled = [sequence for members, _ in calendar.filling_within(steps) for sequence in members]
    calendar.skip(steps)
    for sequence in filled:
        pool.publish(sequence, (calendar.computed(sequence) + 1) // pool.block_tokens)
