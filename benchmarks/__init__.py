"""One module per question, run as `python -m benchmarks.NAME [--smoke] [--json FILE]`."""
