"""A step time fitted to a short run of a real vLLM on the CPU predicts another run: other prompts, lengths and rate.

It needs an interpreter that has vLLM (see `test_vllm.py`), and most of one core: foreign load is in the measured latencies and not in
the predicted ones, so a machine that is busy gets several attempts.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from beaconry.io.children.supervisor import free_ports
from tests.real.tiny_model import make
from tests.real.vllm import START_WITHIN_S, vllm_python

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]
WITHIN = 0.15
ATTEMPTS = 3
SHAPE = {
    "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 64, "vocab_size": 128, "bos_token_id": 10, "eos_token_id": 10,
}  # fmt: skip
"""Large enough for steps to be work rather than overhead; one token per ASCII character, so that each token is a piece of text."""
LIMITS = {"--block-size": "32", "--max-num-seqs": "16", "--max-num-batched-tokens": "2048"}
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_HOST_IP": "127.0.0.1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
}  # fmt: skip


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """The address of a vLLM."""
    python = vllm_python()
    model = make(tmp_path_factory.mktemp("vllm") / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | SHAPE))
    port = free_ports(1, "127.0.0.1", random.Random())[0]
    limits = [part for pair in LIMITS.items() for part in pair]
    argv = [
        python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", "tiny", "--port", str(port),
        "--host", "127.0.0.1", "--load-format=dummy", "--enforce-eager", "--dtype=bfloat16", "--max-model-len=2048",
        "--kv-cache-memory-bytes=256M", "--no-enable-prefix-caching", *limits,
    ]  # fmt: skip
    with subprocess.Popen(
        argv, env=os.environ | ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            give_up_s = time.monotonic() + START_WITHIN_S
            while not healthy(port):
                assert process.poll() is None, f"vLLM ended: {' '.join(argv)}"
                assert time.monotonic() < give_up_s, "vLLM did not start"
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30.0)


def healthy(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1.0) as reply:
            return reply.status == 200
    except OSError:
        return False


@pytest.mark.timeout(900)
def test_another_run_is_predicted(engine, tmp_path):
    limits = [part for pair in LIMITS.items() for part in pair]
    tried = []
    for attempt in range(ATTEMPTS):
        file = tmp_path / f"{attempt}.json"
        command = [
            sys.executable, "-m", "benchmarks.real_engine", "--url", engine, "--model", "tiny", "--chars-per-token", "1",
            "--blocks", "2048", "--requests", "70", "--seed", str(10 * attempt), "--json", str(file), *limits,
        ]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        print(done.stdout)
        tried.append({row["figure"]: round(row["error"], 3) for row in json.loads(file.read_text())["predicted"]})
        if max(map(abs, tried[-1].values())) < WITHIN:
            return
    pytest.fail(f"never within {WITHIN:.0%}: {tried}")
