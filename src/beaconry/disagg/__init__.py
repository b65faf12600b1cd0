"""In how many legs: whether a request's prompt is computed on one engine and answered by another. Pure. Read `plan.py`."""
