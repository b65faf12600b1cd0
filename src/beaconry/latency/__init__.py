"""How long a placement takes: rates learnt online per variant, and a shadow of each engine that forecasts.

Read `rates.py` for the closed form; `shadow.py`, `step_fit.py`, then `forecasts.py` for the shadow.
"""
