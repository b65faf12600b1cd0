"""Who asks, what they may take, and on what terms: API keys, limits, objectives, and the names that models go by.

Pure: files are read in `io/`, headers are taken apart in `io/door`. It does not decide when a request runs (`flowcontrol/`) or where
(`scheduling/`). Read `keys.py`, `allowances.py`, `terms.py`, then `rewrites.py`.
"""
