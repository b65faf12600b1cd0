"""The tenants file: what it takes, and what it says to what it does not."""

from pathlib import PurePath

import pytest

from beaconry.config.loading import load_yaml
from beaconry.config.tenants import Tenants, TenantsFile, TrustedHeader
from beaconry.values.errors import OperatorError

HASH = "sha256:" + "0a" * 32


def file(tenant: str) -> TenantsFile:
    return load_yaml(f"tenants:\n  acme: {tenant}\n", TenantsFile, "t.yaml")


def test_a_tenant_needs_nothing_and_then_may_do_everything_but_come_in():
    tenant = file("{}").tenants["acme"]
    assert (tenant.keys, tenant.models, tenant.weight) == ((), None, 1.0)
    assert set(tenant.limits.__struct_fields__) == {
        "requests_per_s", "burst_requests", "input_tokens_per_minute", "output_tokens_per_minute", "concurrency",
    }  # fmt: skip
    assert all(getattr(tenant.limits, field) is None for field in tenant.limits.__struct_fields__)


def test_everything_can_be_said():
    tenant = file(
        f"{{keys: ['{HASH}'], models: [m], defaults: {{priority: -1, ttlS: 5, sloTtftS: 1, sloItlS: 0.1}}, "
        "limits: {requestsPerS: 0.5}, trustedHeaders: [flow, slo], weight: 2}"
    ).tenants["acme"]
    assert tenant.defaults.priority == -1
    assert tenant.trusted_headers == (TrustedHeader.FLOW, TrustedHeader.SLO)


@pytest.mark.parametrize(
    ("tenant", "message"),
    [
        ("{keys: [secret]}", 'acme.keys[0]: expected "sha256:" and 64 hex digits, as `beaconry key` prints'),
        ("{kees: []}", 'acme.kees: unknown key; did you mean "keys"?'),
        ("{weight: 0}", "acme.weight: expected a number > 0"),
        ("{limits: {concurrency: 0}}", "acme.limits.concurrency: expected a whole number >= 1"),
        ("{limits: {burstRequests: 5}}", "acme.limits: burstRequests limits nothing without requestsPerS"),
        ("{limits: {requestsPerS: -1}}", "acme.limits.requestsPerS: expected a number > 0"),
        ("{trustedHeaders: [prio]}", 'acme.trustedHeaders[0]: "prio" is no choice'),
        ("{defaults: {slo: 1}}", "acme.defaults.slo: unknown key"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(tenant, message):
    with pytest.raises(OperatorError) as error:
        file(tenant)
    assert f"t.yaml:2: tenants.{message}" in str(error.value)


@pytest.mark.parametrize("key", ["bk-secret", "{a: bk-secret}", "12345678", "[bk-secret]"])
def test_a_key_that_stands_where_its_hash_belongs_is_not_shown(key):
    with pytest.raises(OperatorError, match=r"keys\[0\]: expected .sha256:. and 64 hex digits") as error:
        file(f"{{keys: [{key}]}}")
    assert "secret" not in str(error.value)
    assert "1234" not in str(error.value)


@pytest.mark.parametrize("name", ["a b", "", "-a", "a/b", "x" * 65, "é"])
def test_a_name_that_does_not_fit_into_labels_is_refused(name):
    with pytest.raises(OperatorError, match="a name of letters, digits"):
        load_yaml(f"tenants: {{{name!r}: {{}}}}\n", TenantsFile, "t.yaml")


def test_files_are_found_beside_the_one_that_names_them():
    given = Tenants(file="t.yaml", engine_key_file="/etc/key")
    assert given.beside(PurePath("/srv/gateway.yaml")) == Tenants(file="/srv/t.yaml", engine_key_file="/etc/key")
    assert Tenants().beside(PurePath("/srv/gateway.yaml")) == Tenants()
