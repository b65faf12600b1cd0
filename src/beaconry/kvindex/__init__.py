"""Which endpoint holds which KV blocks, as far as the router can know. Not a cache, and it never asks an engine. Read `approximate.py`."""
