"""`python -m beaconry`."""

from beaconry.cli import main

raise SystemExit(main())
