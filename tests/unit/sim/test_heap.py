"""The clock of virtual time."""

from beaconry.sim.heap import NEVER, EventHeap


def test_things_happen_in_order_of_time_and_ties_in_order_of_entry():
    heap, seen = EventHeap(), []
    for at_s, name in ((2.0, "c"), (1.0, "a"), (2.0, "d"), (1.0, "b")):
        heap.at(at_s, seen.append, name)
    while heap.next_s < NEVER:
        heap.step()
    assert seen == ["a", "b", "c", "d"]
    assert heap.now_s == 2.0
    assert heap.happened == 4


def test_what_is_entered_for_the_past_happens_now():
    heap, seen = EventHeap(), []
    heap.at(5.0, lambda: heap.at(1.0, lambda: seen.append(heap.now_s)))
    heap.step()
    heap.step()
    assert seen == [5.0]
