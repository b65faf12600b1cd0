"""A fresh `beaconry up` for benchmarks that go through real processes and HTTP."""

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

READY_WITHIN_S = 60.0


@asynccontextmanager
async def up(spec: str) -> AsyncIterator[str]:
    """Start the fleet of a ModelService spec on a free port; gives the gateway's address. SystemExit if it does not start."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spec.yaml"
        path.write_text(spec)
        argv = (sys.executable, "-m", "beaconry", "up", str(path), "--plain", "--port", "0")
        process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        try:
            async with asyncio.timeout(READY_WITHIN_S):
                while not (line := await process.stdout.readline()).startswith(b"Ready"):
                    if not line:
                        raise SystemExit(f"the fleet did not start: {' '.join(argv)}")
            swallow = asyncio.create_task(process.stdout.read())
            yield next(word for word in line.decode().split() if word.startswith("http://"))
        finally:
            process.terminate()
            await process.wait()
        await swallow
