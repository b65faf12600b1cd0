"""The example of tenants is a good one."""

from pathlib import Path

from beaconry.config.gateway import GatewayConfig
from beaconry.config.loading import load_yaml
from beaconry.config.tenants import TenantsFile
from beaconry.tenancy.reception import Reception

EXAMPLE = Path(__file__).parents[3] / "examples" / "tenants" / "gateway.yaml"


def test_the_gateway_finds_its_tenants_and_they_find_their_models():
    config = load_yaml(EXAMPLE.read_text(), GatewayConfig, EXAMPLE.name)
    path = Path(config.tenants.beside(EXAMPLE).file)
    tenants = load_yaml(path.read_text(), TenantsFile, path.name)
    reception = Reception()
    reception.configure(config.models, config.objectives, config.trusted_headers)
    reception.take_keys(tenants, path.name)
    assert reception.asks_for_keys
    names = reception.rewrites.names(endpoint.model for endpoint in config.endpoints)
    assert "assistant" in names
    for tenant in tenants.tenants.values():
        assert set(tenant.models or names) <= set(names)
