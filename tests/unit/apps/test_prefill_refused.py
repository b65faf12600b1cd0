"""What only simulations can run in two legs is refused where engines are real, before anything starts."""

import pytest

from beaconry.apps.assemble import Gateway, refuse_prefill
from beaconry.config.gateway import EndpointConfig, GatewayConfig
from beaconry.values.endpoint import Role
from beaconry.values.errors import OperatorError


def config(*roles: Role) -> GatewayConfig:
    endpoints = tuple(
        EndpointConfig(name=f"e{i}", host="h", port=8000 + i, model="m", role=role) for i, role in enumerate(roles)
    )
    return GatewayConfig(endpoints=endpoints)


def test_a_gateway_does_not_start_with_prefill_endpoints():
    with pytest.raises(OperatorError, match="role prefill: only `beaconry simulate` and `beaconry plan`"):
        Gateway(config(Role.PREFILL, Role.DECODE))
    refuse_prefill([Role.BOTH, Role.DECODE])
