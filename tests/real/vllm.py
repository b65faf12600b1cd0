"""vLLM on the CPU, two engines of a tiny model: who can run it, and the spec that starts them."""

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from contextlib import asynccontextmanager, contextmanager

import pytest

from beaconry.config.loading import load_yaml
from beaconry.io.children.supervisor import ProcessCrashed, ProcessReady, Supervisor, free_ports
from beaconry.manifests.model_service import ModelService
from beaconry.manifests.processes import count_ports, plan_processes
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
           --kv-cache-memory-bytes=64M, --max-model-len=2048, --max-num-batched-tokens=2048, --max-num-seqs=8{flags}]
    env: {{HF_HUB_OFFLINE: "1", VLLM_NO_USAGE_STATS: "1", VLLM_HOST_IP: 127.0.0.1, VLLM_ENABLE_V1_MULTIPROCESSING: "0",
           VLLM_CPU_OMP_THREADS_BIND: nobind, OMP_NUM_THREADS: "1"{variables}}}
  pools: {pools}
  router: {{access: {{debugHeaders: true}}{router}}}
"""


def vllm_python():
    """An interpreter with vLLM; skips the test if there is none."""
    named = os.environ.get("BEACONRY_VLLM_PYTHON")
    python = named or shutil.which("python3")
    question = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    if python is None or subprocess.run([python, "-c", question], check=False).returncode:
        pytest.skip(f"{python} has no vLLM: run `make real`, or set BEACONRY_VLLM_PYTHON")
    return python


def spec(directory, *, pools="[{replicas: 2}]", flags=(), variables="", router="", **changes):
    """The spec of tiny engines; makes the model in `directory`, with these changes. Skips the test where there is no vLLM.

    pools: as YAML; variables, router: further entries of engines' environment and of `spec.router`, each with a comma before it.
    """
    return SPEC.format(
        python=vllm_python(),
        model=make(directory, **changes),
        block=BLOCK,
        blocks=BLOCKS,
        pools=pools,
        variables=variables,
        router=router,
        flags="".join(f", {flag}" for flag in flags),
    )


@contextmanager
def serving(directory, text):
    """Run `beaconry up` with a spec; yields the gateway's address."""
    path = directory / "tiny.yaml"
    path.write_text(text)
    process = subprocess.Popen(
        [sys.executable, "-m", "beaconry", "up", str(path), "--port", "0", "--plain"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    alarm = threading.Timer(START_WITHIN_S, process.kill)
    alarm.start()
    lines = []
    reading = threading.Thread(target=lambda: lines.extend(process.stdout))
    try:
        for ready in process.stdout:
            lines.append(ready)
            if ready.startswith("Ready in"):
                break
        else:
            pytest.fail("".join(lines))
        alarm.cancel()
        reading.start()
        yield next(word for word in ready.split() if word.startswith("http://")).removesuffix("/v1")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60.0) == 0
    finally:
        alarm.cancel()
        process.kill()  # its engines end with it
        process.wait(10.0)
        if reading.is_alive():
            reading.join(10.0)
        process.stdout.close()


@asynccontextmanager
async def engine(text):
    """The one engine of a spec, without a gateway; yields its process as planned."""
    service = load_yaml(text, ModelService, "tiny.yaml")
    ports = free_ports(count_ports(service), "127.0.0.1", random.Random())
    (process,) = plan_processes(service, ports, "python")
    begun = asyncio.Event()
    crashes = []

    def seen(event):
        crashes.extend([event] if isinstance(event, ProcessCrashed) else [])
        if isinstance(event, ProcessReady | ProcessCrashed):
            begun.set()

    supervisor = Supervisor((process,), environment=os.environ, on_event=seen)
    keeping = asyncio.create_task(supervisor.run())
    try:
        await asyncio.wait_for(begun.wait(), START_WITHIN_S)
        assert not crashes, crashes
        yield process
    finally:
        supervisor.stop(10.0)
        await keeping


def ask(gateway, path, body):
    """Returns (view, expected cached tokens, reported ones, answer)."""
    headers = {"Content-Type": "application/json", "x-beaconry-debug": "1"}
    data = json.dumps({"model": "tiny", "temperature": 0, "ignore_eos": True} | body).encode()
    with urllib.request.urlopen(urllib.request.Request(gateway + path, data, headers), timeout=60.0) as reply:
        told, answer = reply.headers, json.loads(reply.read())
    reported = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return told["x-beaconry-view"], int(told["x-beaconry-matched-tokens"]), reported, answer["choices"][0]


def page(gateway):
    """The lines of the gateway's metrics."""
    with urllib.request.urlopen(f"{gateway}/metrics", timeout=60.0) as reply:
        return reply.read().decode().splitlines()
