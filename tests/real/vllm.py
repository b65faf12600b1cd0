"""vLLM on the CPU, two engines of a tiny model: who can run it, and the spec that starts them."""

import os
import shutil
import subprocess

import pytest

from tests.real.tiny_model import make

START_WITHIN_S = 300.0
BLOCK = 32
"""What vLLM's attention on the CPU can do: multiples of 32."""
BLOCKS = 96
"""Few, so that they are evicted."""

SPEC = """
apiVersion: beaconry/v1alpha1
kind: ModelService
metadata: {{name: tiny}}
spec:
  model: {{uri: "file://{model}", name: tiny}}
  engine:
    type: vllm
    command: [{python}, -m, vllm.entrypoints.openai.api_server]
    args: [--load-format=dummy, --enforce-eager, --dtype=bfloat16, --block-size={block}, --num-gpu-blocks-override={blocks},
           --kv-cache-memory-bytes=64M, --max-model-len=2048, --max-num-batched-tokens=2048, --max-num-seqs=8]
    env: {{HF_HUB_OFFLINE: "1", VLLM_NO_USAGE_STATS: "1", VLLM_HOST_IP: 127.0.0.1, VLLM_ENABLE_V1_MULTIPROCESSING: "0",
           VLLM_CPU_OMP_THREADS_BIND: nobind, OMP_NUM_THREADS: "1"}}
  pools: [{{replicas: 2}}]
  router: {{access: {{debugHeaders: true}}}}
"""


def vllm_python():
    """An interpreter with vLLM; skips the test if there is none."""
    named = os.environ.get("BEACONRY_VLLM_PYTHON")
    python = named or shutil.which("python3")
    question = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    if python is None or subprocess.run([python, "-c", question], check=False).returncode:
        pytest.skip(f"{python} has no vLLM: run `make real`, or set BEACONRY_VLLM_PYTHON")
    return python


def spec(directory):
    """The spec of two engines; makes the model in `directory`. Skips the test where there is no vLLM."""
    return SPEC.format(python=vllm_python(), model=make(directory), block=BLOCK, blocks=BLOCKS)
