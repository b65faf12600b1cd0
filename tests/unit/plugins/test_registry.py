"""The registry: built-ins through the common door, strict names."""

import pytest

from beaconry.plugins.registry import KINDS, Registry
from beaconry.values.errors import OperatorError


def test_built_in_plugins_come_through_the_entry_points():
    registry = Registry.installed()
    assert set(registry.names("policy")) >= {
        "expected-cost", "round-robin", "random", "least-requests", "power-of-two", "prefix-only", "llm-d-weighted", "sticky",
    }  # fmt: skip
    assert {"queue-scorer", "kv-cache-utilization-scorer", "prefix-cache-scorer"} <= set(registry.names("scorer"))


def test_every_installed_plugin_can_be_loaded():
    registry = Registry.installed()
    for kind in KINDS:
        for name in registry.names(kind):
            assert callable(registry.factory(kind, name))


def test_a_name_offered_twice_is_refused():
    with pytest.raises(OperatorError, match='"scorer/mine" is offered twice'):
        Registry([("scorer/mine", lambda: object), ("scorer/mine", lambda: object)])


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(OperatorError, match='no policy is called "expected-cots"; did you mean "expected-cost"'):
        Registry.installed().factory("policy", "expected-cots")


def test_a_name_like_no_other_is_refused_with_all_known_ones():
    registry = Registry([("picker/a", lambda: object), ("picker/b", lambda: object)])
    with pytest.raises(OperatorError, match="known: a, b"):
        registry.factory("picker", "zzzz")


@pytest.mark.parametrize("key", ["mine", "gadget/mine", "scorer/"])
def test_a_plugin_is_named_by_kind_and_name(key):
    with pytest.raises(OperatorError, match="KIND/NAME"):
        Registry([(key, lambda: object)])


def test_a_plugin_that_cannot_be_imported_is_the_operators_matter():
    def load():
        raise ModuleNotFoundError("No module named 'gone'")

    with pytest.raises(OperatorError, match='scorer "mine" cannot be loaded: No module named'):
        Registry([("scorer/mine", load)]).factory("scorer", "mine")
