"""Virtual time: the fleet on an event heap. Not a model of its own: router and engines are the real ones. Read `fleet.py`."""
