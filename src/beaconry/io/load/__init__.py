"""The load client: open-loop, one connection a request in flight, latency counted from the planned time. Read `client.py`."""
