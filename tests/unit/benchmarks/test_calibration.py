"""Which published points a fit may use, and that a fit finds what the points were made with."""

from statistics import mean

import pytest
from msgspec.structs import replace

from beaconry.engine_model.presets import variant
from beaconry.engine_model.roofline import Corrections
from benchmarks.calibration import Case, Factors, Source, calibrate, kind_of

SOURCE = Source(title="made up", from_="here", protocol="closed loop", shortest=0.8, ttft=True)


@pytest.mark.parametrize(
    ("point", "kind"),
    [
        ((1024, 512, 4, 100.0, 10.0), "fit"),
        ((1024, 512, 8, 160.0, 11.0), "fit"),
        ((1024, 512, 16, 900.0, 14.0), "saturated"),
        ((8192, 512, 16, 500.0, 20.0), "doubtful"),
        ((8192, 512, 32, 700.0, 18.0), "fit"),
    ],
)
def test_a_point_is_judged_by_its_neighbours_of_the_same_lengths(point, kind):
    points = (
        (1024, 512, 4, 100.0, 10.0),
        (1024, 512, 8, 160.0, 11.0),
        (1024, 512, 16, 900.0, 14.0),
        (8192, 512, 16, 500.0, 20.0),
        (8192, 512, 32, 700.0, 18.0),
    )
    assert kind_of(point, points) == kind


def test_points_made_with_other_factors_give_these_factors_back():
    known = variant("llama-3.1-8b/h100")
    true = Factors(corrections=Corrections(overhead=1.3, compute=1.2, kv=1.2), request_s=0.004)
    empty = Case(variant=known, source=SOURCE, point=(1, 1, 1, None, 1.0), kind="fit")
    cases = []
    for prompt, output, clients in ((1024, 128, 4), (1024, 128, 32), (4096, 128, 8), (4096, 64, 32)):
        asked = replace(empty, point=(prompt, output, clients, None, 1.0))
        seen = asked.simulate(true)
        ttft_s = mean(one.first_s - one.arrived_s for one in seen) + true.request_s
        tpot_s = mean((one.end_s - one.first_s) / (one.output_tokens - 1) for one in seen)
        cases.append(replace(empty, point=(prompt, output, clients, 1e3 * ttft_s, 1e3 * tpot_s)))
    found, without = calibrate(cases)
    assert found.corrections.compute == pytest.approx(true.corrections.compute, rel=0.05)
    assert found.corrections.overhead == pytest.approx(true.corrections.overhead, rel=0.15)
    assert len(without) == len(cases)
