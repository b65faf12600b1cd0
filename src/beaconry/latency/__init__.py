"""How long a placement takes: rates learnt online per variant, and predictions from them. Read `rates.py`."""
