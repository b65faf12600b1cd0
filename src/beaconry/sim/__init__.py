"""Virtual time: the same machine and engines under an event heap, deterministic. No asyncio. Read `fleet.py`."""
