"""What the system talks about: frozen values that every other floor may use. No behaviour, no I/O. Read `request.py` first."""
