"""The simulated engine in real time: vLLM's HTTP interface around `engine_model`. Read `server.py`, then `loop.py`."""
