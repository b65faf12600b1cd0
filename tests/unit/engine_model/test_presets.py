"""Presets: names, provenance, memory, and that the published factors are what the published measurements give."""

from statistics import mean

import msgspec
import pytest

from beaconry.engine_model.calibrated import CALIBRATED
from beaconry.engine_model.presets import HARDWARE, MODELS, Provenance, variant
from beaconry.engine_model.roofline import Corrections, Model, Overheads, roofline
from beaconry.values.errors import OperatorError
from benchmarks.calibration import FILE, Measurements, cases, judge

MEASUREMENTS = msgspec.yaml.decode(FILE.read_bytes(), type=Measurements)


def test_the_factors_of_a_variant_are_what_its_measurements_give_and_predict_what_they_were_not_fitted_to():
    name = "llama-3.1-70b-fp8/h100x2"
    factors, outcomes = judge([case for case in cases(MEASUREMENTS) if case.variant.name == name])
    known = CALIBRATED[name]
    assert msgspec.structs.astuple(factors.corrections) == pytest.approx(
        msgspec.structs.astuple(known.corrections), rel=0.02
    )
    fitted = [one for one in outcomes if one.kind == "fit"]
    assert len(fitted) == known.points
    assert mean(abs(one.left_out.tpot) for one in fitted) < 0.05
    assert mean(abs(one.left_out.ttft) for one in fitted) < 0.15
    saturated = [one for one in outcomes if one.kind == "saturated"]
    assert len(saturated) == 3
    assert all(abs(one.calibrated.throughput) < 0.1 for one in saturated)


@pytest.mark.parametrize("name", sorted(CALIBRATED))
def test_what_is_called_measured_has_points_and_a_source(name):
    measured = [case for case in cases(MEASUREMENTS) if case.variant.name == name and case.kind == "fit"]
    assert len(measured) == CALIBRATED[name].points > 0
    assert CALIBRATED[name].source
    assert variant(name).provenance is Provenance.MEASURED


def test_factors_of_one_change_nothing():
    prior = variant("gpt-oss-120b/h200").prior()
    assert prior.corrected(Corrections()) == prior


@pytest.mark.parametrize("load", [(8, 10_000.0, 0, 0.0), (8, 10_000.0, 4000, 8e6), (0, 0.0, 64, 2000.0)])
@pytest.mark.parametrize("name", ["llama-3.1-8b/h100", "gpt-oss-120b/h200x4"])
def test_the_terms_of_a_step_add_up_to_its_duration(name, load):
    step = variant(name).step_time()
    assert sum(step.features(*load)) == pytest.approx(step.seconds(*load))


@pytest.mark.parametrize(
    ("name", "provenance"),
    [("qwen3-32b/h200x2", "fitted"), ("llama-3.1-8b/mi300x", "guessed"), ("gpt-oss-120b/h100x2", "measured")],
)
def test_provenance_says_how_much_is_known(name, provenance):
    assert variant(name).provenance == provenance


def test_every_model_and_every_hardware_names_its_source():
    assert all(known.source for known in (*HARDWARE, *MODELS))


def test_kv_memory_is_what_the_weights_leave():
    tokens = variant("llama-3.1-8b/h100").kv_tokens()
    assert 350_000 < tokens < 450_000  # (0.92 x 85.5 GB - 4 GB - 16 GB) / 128 KiB
    assert variant("llama-3.1-8b/h100").settings(16).num_blocks == tokens // 16
    assert variant("qwen3-32b/h100x4").kv_tokens() > 2 * variant("qwen3-32b/h100x2").kv_tokens()


@pytest.mark.parametrize(
    "name", ["gpt-5/h100", "qwen3-32b/h101", "qwen3-32b", "qwen3-32b/h100x", "gpt-oss-120b-fp8/h200"]
)
def test_an_unknown_variant_is_refused_with_what_there_is(name):
    with pytest.raises(OperatorError, match=r"qwen3-32b.*h100"):
        variant(name)


def test_a_model_too_large_for_its_hardware_is_refused():
    with pytest.raises(OperatorError, match="more or larger accelerators"):
        variant("llama-3.1-70b/h100")


@pytest.mark.parametrize("name", ["llama-3.1-8b/h100", "gpt-oss-120b/h200", "qwen3-32b/h100x4"])
def test_more_of_anything_takes_longer(name):
    step = variant(name).step_time()
    load = [8, 10_000.0, 100, 50_000.0]
    base = step.seconds(*load)
    for index in range(4):
        more = load.copy()
        more[index] *= 10
        assert step.seconds(*more) > base


def test_decode_time_is_affine_in_the_context():
    step = variant("gpt-oss-120b/h200").step_time()
    low, middle, high = (step.seconds(32, context, 0, 0.0) for context in (0.0, 50_000.0, 100_000.0))
    assert middle == pytest.approx((low + high) / 2)


def test_a_bare_roofline_is_bytes_over_bandwidth_and_operations_over_compute():
    hardware = HARDWARE[0].__class__(
        name="x", memory_bytes=1e12, bandwidth_bps=1e12, flops=1e15, flops_8bit=1e15, link_bps=1e12,
        weight_efficiency=1.0, kv_efficiency=1.0, compute_efficiency=1.0,
    )  # fmt: skip
    model = Model(name="m", params=1e9, layers=10, hidden=100, heads=8, kv_heads=4, head_dim=25)
    nothing = Overheads(step_s=0.0, layer_s=0.0, prompt_layer_s=0.0, all_reduce_s=0.0, sequence_s=0.0)
    step = roofline(model, hardware, 1, nothing)
    kv_bytes = 2 * 10 * 4 * 25 * 2
    assert step.seconds(1, 1000.0, 0, 0.0) == pytest.approx(2e9 / 1e12 + 1000 * kv_bytes / 1e12)
    assert step.seconds(0, 0.0, 10_000, 0.0) == pytest.approx(2 * 1e9 * 10_000 / 1e15)
    assert step.seconds(0, 0.0, 10_000, 5e7) == pytest.approx(0.02 + 4 * 10 * 8 * 25 * 5e7 / 1e15)


def test_few_tokens_read_few_experts():
    step = variant("gpt-oss-120b/h200").step_time()
    one, many = (step.seconds(count, 0.0, 0, 0.0) for count in (1, 128))
    assert one < 0.4 * many
