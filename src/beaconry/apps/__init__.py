"""One file per verb of the command line. `assemble.py` is the only place that wires objects together."""
