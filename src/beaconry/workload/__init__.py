"""Arrivals, prompts, sessions and trace files; summaries of what came back: one maths for bench, simulator and dashboard. Read `plan.py`."""
