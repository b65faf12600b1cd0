"""When: which request is sent on next, while more wait than the engines can use.

Priority bands, in each band a fair queue by tenant, in each tenant's flow an order. Pure and driven by events: whoever owns it asks for
the next request when something has changed. It does not know engines, and does not choose them. Read `control.py` first.
"""
