"""Real time: sockets, files, processes and clocks under asyncio. Decides nothing; the machine in `router/` does. Read `driver.py`."""
