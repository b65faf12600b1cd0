"""Extension kinds and the registry that holds them. Read `kinds.py`, then `registry.py`. It knows no plugin by name."""
