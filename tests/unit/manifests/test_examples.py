"""The example files are good ones."""

from pathlib import Path

import pytest

from beaconry.apps.assemble import make_router
from beaconry.apps.virtual_fleet import make_machines
from beaconry.config.gateway import GatewayConfig
from beaconry.config.loading import load_yaml
from beaconry.engine_model.presets import variant
from beaconry.manifests.model_service import ModelService, SimEngine
from beaconry.manifests.processes import count_ports, plan_processes
from beaconry.sim.planning import Planning, kinds, scenario_of, service_of
from beaconry.sim.scenario import Scenario
from beaconry.sim.setting import conditions_of

EXAMPLES = Path(__file__).parents[3] / "examples"
SPECS = [
    path for path in sorted(EXAMPLES.glob("*.yaml")) if not path.name.startswith(("gateway", "planning", "scenario"))
]


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_an_example_spec_loads_and_gives_a_plan(path):
    service = load_yaml(path.read_text(), ModelService, path.name)
    assert plan_processes(service, range(9000, 9000 + count_ports(service)), "python")
    for engine in (service.spec.engine, *(pool.engine for pool in service.spec.pools)):
        if isinstance(engine, SimEngine):
            assert variant(engine.preset)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("gateway*.yaml")), ids=lambda path: path.stem)
def test_an_example_gateway_configuration_loads_and_gives_a_router(path):
    config = load_yaml(path.read_text(), GatewayConfig, path.name)
    assert config.endpoints
    make_router(config).check()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("scenario*.yaml")), ids=lambda path: path.stem)
def test_an_example_scenario_loads_and_gives_a_virtual_fleet(path):
    scenario = load_yaml(path.read_text(), Scenario, path.name)
    machines = make_machines(scenario)
    assert machines.engines.keys() == machines.endpoints.keys()
    assert conditions_of(scenario, machines.endpoints).faults


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("planning*.yaml")), ids=lambda path: path.stem)
def test_an_example_planning_loads_and_gives_a_fleet_and_a_spec(path):
    planning = load_yaml(path.read_text(), Planning, path.name)
    counts = (1,) * len(kinds(planning))
    assert len(make_machines(scenario_of(planning, counts)).engines) == sum(counts)
    assert [pool.replicas for pool in service_of(planning, counts).spec.pools] == list(counts)
