"""The life of one request, and of all of them together: one synchronous machine. Facts go in with their time, effects come out.

It does no I/O and sees no token: the drivers in `io/` and `sim/` carry the bytes. Read `facts.py`, `effects.py`, then `router.py`.
"""
