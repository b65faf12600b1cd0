"""`beaconry up` and `beaconry serve` from outside, as an operator sees them: start, serve, crash, stop, and what is left (nothing)."""

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import psutil
import pytest

from beaconry.apps.up import default_service
from beaconry.config.loading import load_yaml
from beaconry.manifests.model_service import ModelService

DEADLINE_S = 60.0
MODEL = "llama-3.1-8b"


class Command:
    """A beaconry command that runs, its output line by line, and every process it ever started."""

    def __init__(self, *argv, cwd=None):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "beaconry", *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=cwd,
            start_new_session=True,
        )
        self.lines = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def until(self, text, after=0):
        """The first line with `text`, from line `after` on."""

        def found():
            return next((line for line in self.lines[after:] if text in line), None)

        with self._changed:
            self._changed.wait_for(lambda: found() or not self._reader.is_alive(), DEADLINE_S)
            assert found(), "\n".join(self.lines)
            return found()

    def family(self):
        me = psutil.Process(self.process.pid)
        return [me, *me.children(recursive=True)]

    def end(self, number=signal.SIGINT):
        self.process.send_signal(number)
        code = self.process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        return code


@pytest.fixture
def start():
    commands = []

    def begin(*argv, **more):
        commands.append(Command(*argv, **more))
        return commands[-1]

    yield begin
    for command in commands:
        if command.process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in reversed(command.family()):
                    process.kill()
        command.process.wait(DEADLINE_S)
        command._reader.join(DEADLINE_S)
        command.process.stdout.close()


def address_of(line):
    return next(word for word in line.split() if word.startswith("http://"))


def chat(address, content="Hello", **more):
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 4, **more}
    request = urllib.request.Request(
        f"{address}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
        return answer.status, answer.read()


def running(address):
    with urllib.request.urlopen(f"{address.removesuffix('/v1')}/metrics", timeout=DEADLINE_S) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("beaconry_requests_running{"))


def listening(processes):
    return {
        (connection.laddr.ip, connection.laddr.port)
        for process in processes
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }


def gone(process):
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until(holds, what):
    end = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def test_a_fleet_starts_serves_and_leaves_nothing_behind(start, tmp_path):
    command = start("up", "--port", "0", "--plain", cwd=tmp_path)
    address = address_of(command.until("Ready in"))
    assert command.until("curl ")
    family = command.family()
    ports = listening(family)
    assert len(ports) == 13, "four engines, each with two ports for its KV events, and the gateway"
    assert {host for host, _ in ports} == {"127.0.0.1"}
    status, body = chat(address)
    assert status == 200
    assert json.loads(body)["choices"][0]["message"]["content"]
    status, body = chat(address, stream=True)
    assert body.rstrip().endswith(b"data: [DONE]")
    assert command.end(signal.SIGINT) == 0
    assert command.until("Requests: completed 2")
    wait_until(lambda: all(gone(process) for process in family), "a process is left")
    for port in ports:
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(f"http://{port[0]}:{port[1]}/health", timeout=1)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_engine_comes_back_while_the_others_serve(start):
    command = start("up", "--port", "0", "--plain", "--engines", "2")
    address = address_of(command.until("Ready in"))
    victim = next(one for one in command.family() if "engine" in one.cmdline()[3:4])
    victim.kill()
    ended = command.until("ended: killed by SIGKILL")
    name = ended.split()[1]
    for number in range(8):
        assert chat(address, f"prompt {number}")[0] == 200
    command.until(f"{name} is ready after")
    assert command.end(signal.SIGTERM) == 0


def test_killing_up_itself_leaves_no_engine(start):
    command = start("up", "--port", "0", "--plain", "--engines", "2")
    command.until("Ready in")
    family = command.family()
    command.process.kill()
    wait_until(lambda: all(gone(process) for process in family), "a process is left")


def test_a_stop_finishes_what_runs_and_a_second_one_does_not(start, tmp_path):
    spec = tmp_path / "slow.yaml"
    spec.write_text(f"""
apiVersion: beaconry/v1alpha1
kind: ModelService
metadata: {{name: slow}}
spec:
  model: {{uri: "hf://a/b", name: {MODEL}}}
  engine: {{type: sim, speed: 0.01}}
""")
    command = start("up", str(spec), "--port", "0", "--plain")
    address = address_of(command.until("Ready in"))
    endings = []

    def stream():
        try:
            endings.append(chat(address, max_tokens=5000, ignore_eos=True, stream=True)[1])
        except (http.client.HTTPException, OSError) as fault:
            endings.append(repr(fault).encode())

    client = threading.Thread(target=stream)
    client.start()
    wait_until(lambda: running(address) == 1, "the request does not run")
    command.process.send_signal(signal.SIGINT)
    assert "1 requests finish" in command.until("Stopping")
    assert command.process.poll() is None
    assert command.end(signal.SIGINT) == 0
    client.join(DEADLINE_S)
    assert b"[DONE]" not in endings[0]


def test_a_terminal_shows_one_screen_with_every_engine():
    reading, writing = os.openpty()
    argv = [sys.executable, "-m", "beaconry", "up", "--port", "0", "--engines", "2"]
    environment = {**os.environ, "COLUMNS": "120", "TERM": "xterm"}
    process = subprocess.Popen(argv, stdin=writing, stdout=writing, stderr=writing, env=environment)
    os.close(writing)
    seen, asked = b"", False
    try:
        while process.poll() is None:
            assert select.select([reading], [], [], DEADLINE_S)[0], seen.decode()
            with contextlib.suppress(OSError):  # the end of a terminal is an error on Linux
                seen += os.read(reading, 65_536)
            if not asked and seen.count(b"engine-1") >= 2:  # drawn twice
                process.send_signal(signal.SIGINT)
                asked = True
    finally:
        process.kill()
        process.wait(DEADLINE_S)
        os.close(reading)
    assert process.returncode == 0
    for part in ("Ready in", "2/2 ready", "prefix hits", "no requests yet"):
        assert part in seen.decode(), part


def test_a_taken_port_is_named_with_the_way_out(start):
    with contextlib.closing(socket.socket()) as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        command = start("up", "--port", str(port), "--plain")
        assert command.process.wait(DEADLINE_S) == 1
        line = command.until(str(port))
        assert "port" in line


def test_an_engine_that_cannot_start_ends_up_with_its_last_words(start, tmp_path):
    spec = tmp_path / "broken.yaml"
    spec.write_text("""
apiVersion: beaconry/v1alpha1
kind: ModelService
metadata: {name: broken}
spec:
  model: {uri: "hf://a/b"}
  engine: {type: sim, args: [--no-such-flag]}
  pools: [{replicas: 2}]
""")
    command = start("up", str(spec), "--port", "0", "--plain")
    assert command.process.wait(DEADLINE_S) == 1
    assert "exit code 2" in command.until("did not start")
    assert command.until("unrecognized arguments: --no-such-flag")


def test_a_program_that_is_not_installed_is_named(start, tmp_path):
    spec = tmp_path / "vllm.yaml"
    spec.write_text("""
apiVersion: beaconry/v1alpha1
kind: ModelService
metadata: {name: broken}
spec:
  model: {uri: "hf://a/b"}
  engine: {type: vllm, command: [no-such-vllm, serve]}
""")
    command = start("up", str(spec), "--port", "0", "--plain")
    assert command.process.wait(DEADLINE_S) == 1
    assert command.until("cannot run no-such-vllm: No such file or directory")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["up", "/no/such.yaml"], "/no/such.yaml: cannot be read: No such file or directory"),
        (["up", "--port", "99999"], "'99999' is not a port: 1 to 65535, or 0 for a free one"),
        (["serve", "--config", "x", "--port", "-1"], "'-1' is not a port"),
        (["up", "--engines", "0"], "--engines 0: at least one is needed"),
        (["serve", "--config", "/no/such.yaml"], "/no/such.yaml: cannot be read: No such file or directory"),
    ],
)
def test_bad_options_are_refused_with_status_2(start, argv, message):
    command = start(*argv)
    assert command.process.wait(DEADLINE_S) == 2
    assert command.until(message)


def test_serve_takes_engines_from_its_file_as_it_changes(start, tmp_path):
    fleet = start("up", "--port", "0", "--plain", "--engines", "1")
    fleet.until("Ready in")
    engine = next(one for one in fleet.family() if "engine" in one.cmdline()[3:4])
    argv = engine.cmdline()
    port = argv[argv.index("--port") + 1]
    config = tmp_path / "gateway.yaml"
    config.write_text("listen: {port: 0}\n")
    gateway = start("serve", "--config", str(config))
    address = address_of(gateway.until("serving 0 endpoints"))
    with pytest.raises(urllib.error.HTTPError, match="404"):
        chat(address)
    new = tmp_path / "new.yaml"
    new.write_text(f"listen: {{port: 0}}\nendpoints:\n- {{name: e, host: 127.0.0.1, port: {port}, model: {MODEL}}}\n")
    os.replace(new, config)

    def served():
        with contextlib.suppress(urllib.error.HTTPError):
            return chat(address)[0] == 200
        return False

    wait_until(served, "the new endpoint is not used")
    config.write_text("endpoints: [{name: e, hst: 127.0.0.1, port: 1, model: m}]\n")
    gateway.until("not taken over")
    assert gateway.until('endpoints[0].hst: unknown key; did you mean "host"?')
    assert chat(address)[0] == 200
    assert gateway.end(signal.SIGTERM) == 0
    assert fleet.end() == 0


def test_the_default_fleet_is_the_first_example():
    path = os.path.join(os.path.dirname(__file__), "../../examples/simulated.yaml")
    with open(path) as file:
        assert load_yaml(file.read(), ModelService, "simulated.yaml") == default_service()
