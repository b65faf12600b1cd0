"""`beaconry fit`: from a result file to a preset file that simulated engines take."""

import pytest

from beaconry.cli import main
from beaconry.engine_model.step_time import LinearStepTime
from beaconry.io.preset_file import read_preset
from beaconry.values.errors import OperatorError
from beaconry.workload.result import Result, Timing, encode_result
from beaconry.workload.summary import summarise
from tests.unit.engine_model.test_fitting import LINEAR, REQUEST_S, watch


def result(requests, *, cached=0, endpoint=""):
    timings = tuple(
        Timing(
            endpoint=endpoint, sent_s=one.sent_s, first_s=one.first_s, end_s=one.end_s, prompt_tokens=one.prompt_tokens,
            cached_tokens=cached, output_tokens=one.output_tokens,
        )
        for one in requests
    )  # fmt: skip
    return Result(
        label="run",
        target="http://engine",
        model="my-model",
        started_at="",
        workload={},
        summary=summarise([]),
        timings=timings,
    )


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.json"
    path.write_bytes(encode_result(result(watch(LINEAR, seed=1, rate=2.0))))
    return path


def test_a_fitted_preset_is_read_wherever_presets_are(file, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "mine.yaml"
    assert main(["fit", str(file), "--out", str(out), "--blocks", "5000", "--max-num-seqs", "64"]) == 0
    said = capsys.readouterr().out
    assert "What a step costs" in said
    assert "replayed" in said
    preset = read_preset(str(out))
    assert preset.model == "my-model"
    assert preset.provenance == "measured"
    assert "run.json" in preset.source
    assert preset.settings.num_blocks == 5000
    assert preset.settings.max_num_seqs == 64
    assert isinstance(preset.step_time, LinearStepTime)
    assert preset.step_time.fixed_s == pytest.approx(LINEAR.fixed_s, rel=0.05)
    assert preset.request_s == pytest.approx(REQUEST_S, abs=0.005)
    assert main(["presets", str(out)]) == 0
    assert "measured" in capsys.readouterr().out


def test_unknown_memory_and_cached_prompts_are_warned_of(tmp_path, capsys):
    path = tmp_path / "run.json"
    path.write_bytes(encode_result(result(watch(LINEAR, seed=1, rate=2.0, prompts=(1000, 2000)), cached=500)))
    assert main(["fit", str(path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "give --blocks" in said
    assert "of the prompt tokens were cached" in said


def test_a_result_without_single_requests_is_refused(tmp_path, capsys):
    path = tmp_path / "old.json"
    path.write_bytes(encode_result(result([])))
    assert main(["fit", str(path)]) == 2
    assert "run the bench again" in capsys.readouterr().err


def test_a_preset_file_with_a_typo_is_refused_with_its_place(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "apiVersion: beaconry/v1alpha1\nkind: EnginePreset\nmodel: m\nstepTime: {fixdS: 0.01}\nblocks: 100\n"
    )
    with pytest.raises(OperatorError, match=r"fixdS.*fixedS"):
        read_preset(str(path))
