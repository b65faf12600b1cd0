"""Where a request goes: filters, then cost terms or weighted scores, then a pick, with a trace. Blind to the index. Read `scheduler.py`."""
