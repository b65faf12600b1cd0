"""Arrivals, prompts, sessions, traces; summaries of what came back: one maths for bench, simulator and dashboard. Start at `plan.py`."""
