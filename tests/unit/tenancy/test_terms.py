"""On what terms a request is served: what a client may say of itself, and what holds where it says nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beaconry.config.tenants import Objective, TenantConfig, TrustedHeader
from beaconry.tenancy.terms import PLAIN, Caller, caller_of, terms_of
from beaconry.values.errors import CallerError

OBJECTIVES = {"chat": Objective(priority=10, slo_ttft_s=0.5), "batch": Objective(priority=-1, ttl_s=600.0)}
ALL = tuple(TrustedHeader)
HEADERS = [
    (b"x-llm-d-inference-fairness-id", b"alice"),
    (b"x-llm-d-inference-objective", b"chat"),
    (b"x-beaconry-program", b"agent-7"),
    (b"x-llm-d-slo-ttft-ms", b"250"),
    (b"x-llm-d-slo-tpot-ms", b"12.5"),
]


def acme(*trusted, **fields) -> Caller:
    return caller_of("acme", TenantConfig(**fields), trusted)


def test_without_trust_headers_change_nothing():
    assert terms_of(Caller(), HEADERS, None, OBJECTIVES) == PLAIN
    assert terms_of(acme(), HEADERS, None, OBJECTIVES) == terms_of(acme(), [], None, {})


def test_trusted_headers_say_everything():
    terms = terms_of(Caller(trusted=frozenset(ALL)), HEADERS, None, OBJECTIVES)
    assert (terms.tenant, terms.account, terms.priority, terms.program) == ("alice", None, 10, "agent-7")
    assert (terms.slo_ttft_s, terms.slo_itl_s) == (0.25, 0.0125)


@pytest.mark.parametrize("trusted", ALL)
def test_each_kind_is_trusted_for_itself_only(trusted):
    terms = terms_of(Caller(trusted=frozenset({trusted})), HEADERS, None, OBJECTIVES)
    assert (terms.tenant == "alice") == (trusted is TrustedHeader.FLOW)
    assert (terms.priority == 10) == (trusted is TrustedHeader.OBJECTIVE)
    assert (terms.program == "agent-7") == (trusted is TrustedHeader.PROGRAM)
    assert (terms.slo_itl_s == 0.0125) == (trusted is TrustedHeader.SLO)


def test_old_names_mean_the_same_and_the_first_of_two_counts():
    headers = [
        (b"x-slo-ttft-ms", b"100"),
        (b"x-llm-d-slo-ttft-ms", b"900"),
        (b"x-gateway-inference-fairness-id", b"bob"),
    ]
    terms = terms_of(Caller(trusted=frozenset(ALL)), headers, None, {})
    assert (terms.slo_ttft_s, terms.tenant) == (0.1, "bob")


def test_a_flow_within_a_tenant_cannot_become_another_tenant():
    terms = terms_of(acme(TrustedHeader.FLOW), [(b"x-llm-d-inference-fairness-id", b"other")], None, {})
    assert (terms.tenant, terms.account) == ("acme/other", "acme")


def test_a_program_belongs_to_its_tenant_so_that_nobody_can_use_up_anothers_turns():
    terms = terms_of(acme(TrustedHeader.PROGRAM), [(b"x-beaconry-program", b"agent-7")], None, {})
    assert (terms.program, terms.tenant) == ("acme/agent-7", "acme")


def test_what_is_not_said_is_taken_from_objective_then_tenant_then_model():
    caller = acme(TrustedHeader.OBJECTIVE, weight=3.0, defaults=Objective(priority=2, ttl_s=20.0, slo_itl_s=0.02))
    model = Objective(priority=1, ttl_s=1.0, slo_ttft_s=9.0)
    terms = terms_of(caller, [(b"x-llm-d-inference-objective", b"batch")], model, OBJECTIVES)
    assert (terms.weight, terms.priority, terms.ttl_s, terms.slo_ttft_s, terms.slo_itl_s) == (3.0, -1, 600.0, 9.0, 0.02)
    terms = terms_of(caller, [], model, OBJECTIVES)
    assert (terms.priority, terms.ttl_s) == (2, 20.0)


def test_a_priority_of_zero_is_a_priority():
    terms = terms_of(acme(defaults=Objective(priority=0)), [], Objective(priority=5), {})
    assert terms.priority == 0


@pytest.mark.parametrize("value", [b"", b"0", b"-5", b"nan", b"inf", b"soon", b"1e999", b"1e-322", b"\xff"])
def test_an_objective_that_is_no_time_is_refused_by_its_name_only_where_it_is_trusted(value):
    headers = [(b"x-llm-d-slo-ttft-ms", value)]
    assert terms_of(Caller(), headers, None, {}) == PLAIN
    trusting = Caller(trusted=frozenset({TrustedHeader.SLO}))
    if not value:
        assert terms_of(trusting, headers, None, {}) == PLAIN
        return
    with pytest.raises(CallerError, match=r"x-llm-d-slo-ttft-ms must be a number of milliseconds, at least 0\.001"):
        terms_of(trusting, headers, None, {})


def test_an_unknown_objective_is_refused_with_the_nearest_name():
    with pytest.raises(CallerError, match=r'no objective "cat"\. Did you mean "chat"\?') as error:
        terms_of(Caller(trusted=frozenset(ALL)), [(b"x-llm-d-inference-objective", b"cat")], None, OBJECTIVES)
    assert (error.value.status, error.value.code) == (400, "unknown_objective")


@given(st.binary(min_size=1, max_size=200))
def test_a_name_in_a_header_is_short_printable_and_kept_as_it_is(value):
    caller = Caller(trusted=frozenset({TrustedHeader.FLOW}))
    try:
        terms = terms_of(caller, [(b"x-llm-d-inference-fairness-id", value)], None, {})
    except CallerError as error:
        assert len(value) > 128 or not value.isascii() or not value.decode().isprintable()
        assert error.code == "invalid_header"
    else:
        assert terms.tenant.encode() == value
