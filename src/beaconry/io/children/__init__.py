"""Child processes: started, watched, restarted with back-off, and never outliving their parent. Read `supervisor.py`."""
