"""Who is let in: with keys configured, only who has one; without, everybody."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beaconry.config.tenants import ModelConfig, Objective, Target, TenantConfig, TenantsFile, TrustedHeader
from beaconry.tenancy.keys import hash_of
from beaconry.tenancy.reception import Reception
from beaconry.tenancy.terms import PLAIN
from beaconry.values.errors import CallerError, OperatorError


def reception(*keys: str, trusted=(), **tenant) -> Reception:
    made = Reception()
    made.configure({}, {}, trusted)
    if keys:
        made.take_keys(file(*keys, **tenant), "t.yaml")
    return made


def file(*keys: str, **tenant) -> TenantsFile:
    return TenantsFile(tenants={"acme": TenantConfig(keys=tuple(map(hash_of, keys)), **tenant)})


def bearer(value: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"x"), (b"authorization", value)]


def test_without_tenants_everybody_is_served_on_plain_terms():
    one = reception()
    caller = one.caller(bearer(b"Bearer whatever"))
    assert not one.asks_for_keys
    assert caller.may_ask_for("anything")
    assert one.terms(caller, bearer(b"Bearer whatever"), "m") is PLAIN


@pytest.mark.parametrize("scheme", [b"Bearer ", b"bearer ", b"BEARER   "])
def test_a_key_makes_its_tenant(scheme):
    one = reception("key", models=("m",), weight=2.0, trusted=(TrustedHeader.SLO,))
    caller = one.caller(bearer(scheme + b"key"))
    assert (caller.tenant, caller.weight, caller.trusted) == ("acme", 2.0, {TrustedHeader.SLO})
    assert caller.may_ask_for("m")
    assert not caller.may_ask_for("n")
    assert one.terms(caller, [], "m").account == "acme"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        bearer(b""),
        bearer(b"Bearer"),
        bearer(b"Bearer  "),
        bearer(b"key"),
        bearer(b"Basic key"),
        bearer(b"Bearer key") + bearer(b"Bearer key"),
        [(b"x-api-key", b"key")],
    ],
)
def test_no_key_or_an_ambiguous_one_is_401(headers):
    with pytest.raises(CallerError, match="no API key was given") as error:
        reception("key").caller(headers)
    assert (error.value.status, error.value.code) == (401, "missing_api_key")


@given(st.binary(max_size=60))
def test_nothing_but_the_key_is_the_key_and_errors_do_not_repeat_it(value):
    one = reception("key")
    try:
        caller = one.caller(bearer(b"Bearer " + value))
    except CallerError as error:
        assert error.status == 401
        assert value.strip() != b"key"
        if len(value.strip()) > 5:
            assert value.strip().decode("latin-1") not in error.message
    else:
        assert value.strip() == b"key"
        assert caller.tenant == "acme"


def test_keys_are_exchanged_at_once_and_a_bad_file_changes_nothing():
    one = reception("old")
    one.take_keys(file("new"), "t.yaml")
    assert one.caller(bearer(b"Bearer new")).tenant == "acme"
    with pytest.raises(CallerError):
        one.caller(bearer(b"Bearer old"))
    with pytest.raises(OperatorError, match="stands under acme already"):
        one.take_keys(file("next", "next"), "t.yaml")
    assert one.caller(bearer(b"Bearer new")).tenant == "acme"


def test_a_file_without_tenants_lets_nobody_in():
    one = Reception()
    one.take_keys(TenantsFile(), "t.yaml")
    with pytest.raises(CallerError):
        one.caller(bearer(b"Bearer key"))


def test_a_models_defaults_hold_without_keys_too():
    one = Reception()
    one.configure({"m": ModelConfig(defaults=Objective(slo_ttft_s=2.0))}, {}, ())
    caller = one.caller([])
    assert one.terms(caller, [], "m").slo_ttft_s == 2.0
    assert one.terms(caller, [], "n") == PLAIN


def test_names_objectives_and_trust_are_exchanged_for_known_keys_too():
    one = reception("key", models=("alias",))
    head = [*bearer(b"Bearer key"), (b"x-llm-d-inference-objective", b"urgent")]
    assert one.terms(one.caller(head), head, "alias").priority == 0
    models = {"alias": ModelConfig(targets=(Target(model="m"),))}
    one.configure(models, {"urgent": Objective(priority=5)}, (TrustedHeader.OBJECTIVE,))
    assert one.rewrites.target("alias", "key") == "m"
    assert one.terms(one.caller(head), head, "alias").priority == 5
    one.configure({}, {}, ())
    assert not one.rewrites
    assert one.terms(one.caller(head), head, "alias").priority == 0
