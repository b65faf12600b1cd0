"""A vLLM-like engine as a step machine: no clock, no I/O. One model for simulated engine, simulator, predictions. Read `engine.py`."""
