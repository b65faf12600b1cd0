"""Which endpoint holds which KV blocks. Not a cache, and it never asks an engine.

`exact.py` knows it from the engines' events, `approximate.py` supposes it from our own routing history. Read these two first.
"""
