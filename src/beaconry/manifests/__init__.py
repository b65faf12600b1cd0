"""A ModelService spec to engine processes: argv, environment and ports. It starts nothing. Read `model_service.py`."""
