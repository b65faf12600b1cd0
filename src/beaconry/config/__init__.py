"""Every knob, strictly loaded: unknown keys are refused with path, nearest name and remedy. Read `loading.py`."""
