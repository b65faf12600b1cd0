"""What `beaconry up` makes of its options."""

import argparse

import pytest

from beaconry.apps.up import configure, default_service, service_of
from beaconry.manifests.processes import count_engines
from beaconry.values.errors import OperatorError

TWO_POOLS = """
apiVersion: beaconry/v1alpha1
kind: ModelService
metadata: {name: demo}
spec:
  model: {uri: "hf://a/b"}
  pools: [{name: one}, {name: two}]
"""


def options(*argv):
    parser = argparse.ArgumentParser()
    configure(parser)
    return parser.parse_args(argv)


def test_without_options_four_engines_serve_on_loopback_port_8080():
    args = options()
    assert (args.spec, args.host, args.port, args.engines, args.plain) == (None, "127.0.0.1", 8080, None, False)
    assert service_of(args.spec, args.engines) == default_service()
    assert count_engines(default_service()) == 4


def test_engines_sets_the_replicas_of_the_only_pool():
    assert count_engines(service_of(None, 7)) == 7


def test_engines_is_refused_where_it_is_ambiguous_or_none(tmp_path):
    path = tmp_path / "two.yaml"
    path.write_text(TWO_POOLS)
    assert count_engines(service_of(str(path), None)) == 2
    with pytest.raises(OperatorError, match=r"two.yaml has 2 pools; set replicas there"):
        service_of(str(path), 3)
    with pytest.raises(OperatorError, match="--engines 0: at least one is needed"):
        service_of(None, 0)


def test_a_bad_spec_is_refused_with_its_line(tmp_path):
    path = tmp_path / "typo.yaml"
    path.write_text(TWO_POOLS.replace("pools", "poools"))
    with pytest.raises(OperatorError, match=r'typo.yaml:7: spec.poools: unknown key; did you mean "pools"'):
        service_of(str(path), None)


def test_the_tenants_file_is_found_beside_the_spec(tmp_path):
    path = tmp_path / "fleet.yaml"
    path.write_text(TWO_POOLS + "  router: {tenants: {file: tenants.yaml}}\n")
    assert service_of(str(path), None).spec.router.tenants.file == str(tmp_path / "tenants.yaml")
