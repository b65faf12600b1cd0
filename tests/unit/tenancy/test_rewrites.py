"""Aliases and canaries: the same key the same target, and each target its share."""

from collections import Counter

import pytest

from beaconry.config.loading import load_yaml
from beaconry.config.tenants import ModelConfig, Target
from beaconry.tenancy.rewrites import Rewrites
from beaconry.values.errors import OperatorError


def rewrites(**targets: dict[str, int]) -> Rewrites:
    return Rewrites(
        {
            name: ModelConfig(targets=tuple(Target(model=model, weight=weight) for model, weight in weights.items()))
            for name, weights in targets.items()
        }
    )


def test_a_name_that_is_not_configured_stands_for_itself():
    names = rewrites(alias={"m": 1})
    assert names.target("other", "key") == "other"
    assert not Rewrites({"m": ModelConfig()})


def test_an_alias_is_rewritten_once():
    names = rewrites(a={"b": 1}, b={"c": 1})
    assert names.target("a", "key") == "b"


def test_a_canary_gets_its_share_and_a_key_its_target_always():
    names = rewrites(m={"stable": 90, "canary": 10})
    keys = [f"session-{number}" for number in range(20_000)]
    chosen = Counter(names.target("m", key) for key in keys)
    assert chosen["canary"] / len(keys) == pytest.approx(0.1, abs=0.01)
    assert all(names.target("m", key) == names.target("m", key) for key in keys[:100])


def test_shifting_weights_moves_only_the_share_that_they_shift():
    before, after = rewrites(m={"stable": 90, "canary": 10}), rewrites(m={"stable": 80, "canary": 20})
    keys = [str(number) for number in range(20_000)]
    moved = sum(before.target("m", key) != after.target("m", key) for key in keys)
    assert moved / len(keys) == pytest.approx(0.1, abs=0.01)


def test_a_target_of_weight_zero_gets_nothing():
    names = rewrites(m={"a": 0, "b": 1, "c": 0})
    assert {names.target("m", str(number)) for number in range(1000)} == {"b"}


def test_names_are_those_that_lead_to_a_model_that_is_served():
    names = rewrites(alias={"m": 1}, both={"gone": 1, "m": 1}, nowhere={"gone": 1}, m2={"gone": 1})
    assert names.names(["m", "m2"]) == ["m", "alias", "both"]
    assert Rewrites({}).names(["m"]) == ["m"]


def test_targets_that_nobody_serves_are_known():
    assert rewrites(alias={"m": 1, "gone": 1, "off": 0}).unserved(["m"]) == [("alias", "gone")]


def test_targets_that_all_have_weight_zero_are_refused():
    with pytest.raises(OperatorError, match="all targets have weight 0"):
        load_yaml("targets: [{model: m, weight: 0}]", ModelConfig, "g.yaml")
