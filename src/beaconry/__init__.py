"""Beaconry: serve a fleet of LLM inference engines as one model server. Start reading at `router/router.py`."""

__version__ = "0.1.0"
