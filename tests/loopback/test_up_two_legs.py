"""`beaconry up` with simulated engines for prefill and for decode, as the example has them: requests in two legs through real processes."""

import contextlib
import json
import signal
import threading
import urllib.request
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.loopback.test_up import DEADLINE_S, MODEL, Command, address_of, gone, wait_until

SPEC = Path(__file__).parents[2] / "examples" / "simulated-prefill-decode.yaml"
LONG = "How does the fleet hand a prompt over? " * 300


class Fleet:
    """A running `up`, and its engines by name."""

    def __init__(self):
        self.command = Command("up", str(SPEC), "--port", "0", "--plain")
        self.address = address_of(self.command.until("Ready in"))
        self.processes = {}
        self.ports = {}
        for process in self.command.family():
            argv = process.cmdline()
            if "engine" in argv[3:4]:
                name = argv[argv.index("--kv-events-topic") + 1].split("@")[1]
                self.processes[name] = process
                self.ports[name] = int(argv[argv.index("--port") + 1])

    def engine(self, name):
        return f"http://127.0.0.1:{self.ports[name]}/v1"

    def end(self):
        family = self.command.family()
        assert self.command.end(signal.SIGINT) == 0
        wait_until(lambda: all(gone(process) for process in family), "a process is left")


@pytest.fixture
def fleet():
    one = Fleet()
    yield one
    if one.command.process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in reversed(one.command.family()):
                process.kill()
    one.command.process.wait(DEADLINE_S)
    one.command._reader.join(DEADLINE_S)
    one.command.process.stdout.close()


def post(address, path, body):
    headers = {"Content-Type": "application/json", "x-beaconry-debug": "1"}
    request = urllib.request.Request(f"{address}{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
        return answer.headers, answer.read()


def ask(address, **more):
    """The text of the answer to a long prompt, and the answer's headers."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": LONG}], "max_tokens": 8, "seed": 3, **more}
    headers, data = post(address, "/chat/completions", body)
    if not more.get("stream"):
        return json.loads(data)["choices"][0]["message"]["content"], headers
    events = [json.loads(line[6:]) for line in data.decode().split("\n\n") if line and "[DONE]" not in line]
    return "".join(event["choices"][0]["delta"]["content"] for event in events), headers


def total(address, name, **labels):
    """The sum of a metric's samples with these labels."""
    with urllib.request.urlopen(f"{address.removesuffix('/v1')}/metrics", timeout=DEADLINE_S) as answer:
        text = answer.read().decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


@pytest.mark.parametrize("stream", [False, True])
def test_a_long_prompt_is_computed_by_one_engine_and_answered_by_another_as_by_one_alone(fleet, stream):
    text, headers = ask(fleet.address, stream=stream)
    prefill, decode = headers["x-beaconry-prefill-endpoint"], headers["x-beaconry-endpoint"]
    assert (prefill.partition("-")[0], decode.partition("-")[0]) == ("prefill", "decode")
    assert headers["x-beaconry-plan"] == "uncached-prompt"
    alone = next(name for name in fleet.ports if name.startswith("prefill") and name != prefill)
    assert ask(fleet.engine(alone), stream=stream)[0] == text
    split = {"decision": "prefill-decode", "reason": "uncached-prompt"}
    assert total(fleet.address, "beaconry_disaggregation_decisions_total", **split) == 1
    source = "vllm:prompt_tokens_by_source_total"
    assert total(fleet.engine(decode), source, source="external_kv_transfer") > 2048
    assert total(fleet.engine(decode), source, source="local_compute") == 0
    assert total(fleet.engine(prefill), "vllm:kv_cache_usage_perc") == 0
    fleet.end()


@pytest.mark.parametrize("stream", [False, True])
def test_a_prefill_engine_killed_between_the_legs_costs_the_request_nothing_but_time(fleet, stream):
    decoding = [name for name in fleet.ports if name.startswith("decode")]
    for name in decoding:
        post(fleet.engine(name).removesuffix("/v1"), "/fault", {"kind": "hang"})
    answers = []
    client = threading.Thread(target=lambda: answers.append(ask(fleet.address, stream=stream)))
    client.start()

    def keeping():
        """The prefill engine that keeps KV and works on nothing."""
        return next(
            (
                name
                for name in fleet.ports
                if name not in decoding
                and total(fleet.engine(name), "vllm:kv_cache_usage_perc") > 0
                and total(fleet.engine(name), "vllm:num_requests_running") == 0
            ),
            None,
        )

    wait_until(keeping, "no prompt was computed")
    killed = keeping()
    other = next(name for name in fleet.ports if name not in (killed, *decoding))
    fleet.processes[killed].kill()
    for name in decoding:
        fault = urllib.request.Request(fleet.engine(name).removesuffix("/v1") + "/fault", method="DELETE")
        urllib.request.urlopen(fault, timeout=DEADLINE_S).close()
    client.join(DEADLINE_S)
    ((text, headers),) = answers
    assert headers["x-beaconry-plan"] == "handover-failed"
    assert text == ask(fleet.engine(other))[0]
    assert (
        total(fleet.address, "beaconry_requests_total")
        == total(fleet.address, "beaconry_requests_total", outcome="completed")
        == 1
    )
    assert total(fleet.address, "beaconry_requests_running") == 0
    for name in decoding:
        assert total(fleet.engine(name), "vllm:kv_cache_usage_perc") == 0
        assert total(fleet.engine(name), "vllm:num_requests_waiting") == 0
    assert sum(total(fleet.engine(name), "vllm:nixl_num_failed_transfers_total") for name in decoding) == 1
    fleet.command.until(f"{killed} is ready after")
    fleet.end()
