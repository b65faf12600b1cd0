"""Bytes to values and back, per protocol. No sockets. Read `openai.py` first."""
