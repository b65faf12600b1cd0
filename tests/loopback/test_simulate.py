"""`beaconry simulate` as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

SCENARIO = """\
apiVersion: beaconry/v1alpha1
kind: Scenario
metadata: {name: tiny}
service:
  model: {uri: "hf://meta-llama/Llama-3.1-8B-Instruct", name: m}
  engine: {type: sim, preset: llama-3.1-8b/h100}
  pools: [{name: engine, replicas: 2}]
slo: {ttftS: 1}
policies: [expected-cost, round-robin]
seeds: 2
workloads:
- {type: trace, file: trace.jsonl}
- {type: rag, arrivals: {rate: 5}, requests: 20}
"""
TRACE = "".join(
    json.dumps({"timestamp": 500 * i, "input_length": 1300, "output_length": 20, "hash_ids": [0, i % 2 + 1, i + 10]})
    + "\n"
    for i in range(10)
)


def simulate(folder: Path, *arguments: str, text: str = SCENARIO) -> subprocess.CompletedProcess[str]:
    (folder / "scenario.yaml").write_text(text)
    (folder / "trace.jsonl").write_text(TRACE)
    command = [sys.executable, "-m", "beaconry", "simulate", str(folder / "scenario.yaml"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=folder)


def test_a_grid_is_printed_and_written_as_json_and_as_one_page(tmp_path: Path):
    done = simulate(tmp_path, "--json", "out.json", "--html", "out.html", "--jobs", "2")
    assert done.returncode == 0, done.stderr
    assert "expected-cost" in done.stdout
    assert "llama-3.1-8b/h100 (measured)" in done.stdout
    report = json.loads((tmp_path / "out.json").read_text())
    cells = [(cell["cell"]["policy"], cell["cell"]["seed"]) for cell in report["cells"]]
    assert cells == [("expected-cost", 1), ("expected-cost", 2), ("round-robin", 1), ("round-robin", 2)]
    assert all(cell["summary"]["succeeded"] == 30 for cell in report["cells"])
    page = (tmp_path / "out.html").read_text()
    assert "Engines that serve" in page
    assert "<link" not in page
    assert "src=" not in page


def test_a_placement_is_explained(tmp_path: Path):
    done = simulate(tmp_path, "--explain", "3")
    assert done.returncode == 0, done.stderr
    assert "request 3 at " in done.stdout
    assert "won: " in done.stdout.replace("\n", " ")
    assert simulate(tmp_path, "--explain", "300").returncode == 1


def test_mistakes_end_with_status_2_and_what_to_do(tmp_path: Path):
    for change, error in (
        (("trace.jsonl", "trace.json"), "trace.json: cannot read"),
        (("round-robin", "round-robbin"), 'did you mean "round-robin"?'),
        (("h100", "h1000"), "no variant"),
        (("sim, preset: llama-3.1-8b/h100", "vllm"), "fleet.presets: {engine: MODEL/HARDWARE}"),
        (("seeds: 2", "seed: 2"), 'did you mean "seeds"?'),
    ):
        done = simulate(tmp_path, text=SCENARIO.replace(*change))
        assert done.returncode == 2, done.stdout
        assert error in done.stderr
        assert "Traceback" not in done.stderr


def test_recorded_traffic_is_replayed_under_another_policy(tmp_path: Path):
    lines: list[object] = [
        {"kind": "recording", "version": 1, "started": 0.0, "policy": "round-robin"},
        {"kind": "model", "model": "m", "block_tokens": 64},
        {"kind": "model", "model": "other", "block_tokens": 64},
        {"kind": "request", "at_s": 0.5, "model": "other", "prompt_tokens": 9, "output_tokens": 1},
    ]
    for i in range(40):
        run = [[0, 20], [20 + i, 1]]
        lines.append(
            {"kind": "request", "at_s": i / 4, "model": "m", "prompt_tokens": 1360, "output_tokens": 5, "runs": run}
        )
    (tmp_path / "monday.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    before, _, _ = SCENARIO.partition("workloads:")
    text = before + "workloads:\n- {type: trace, file: monday.jsonl, model: m}\n"
    done = simulate(tmp_path, "--json", "out.json", text=text)
    assert done.returncode == 0, done.stderr
    cells = json.loads((tmp_path / "out.json").read_text())["cells"]
    first = [cell["summary"] for cell in cells if cell["cell"]["seed"] == 1]
    assert [one["requests"] for one in first] == [40, 40]
    assert first[0]["hit_rate"] > first[1]["hit_rate"] > 0.5  # one engine reads the shared prefix, or both do
    refused = simulate(tmp_path, text=text.replace(", model: m}", "}"))
    assert refused.returncode == 2
    assert "choose one (`--trace-model`" in refused.stderr
