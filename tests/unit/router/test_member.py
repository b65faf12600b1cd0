"""One endpoint's health: how long it is left alone for."""

from beaconry.config.gateway import Health
from beaconry.router.member import Member
from tests.unit.router.made import endpoint


def test_an_endpoint_that_fails_for_days_is_still_probed_once_per_longest_ejection():
    member = Member(endpoint("a"), Health(eject_after=1, eject_base_s=1.0, eject_max_s=60.0))
    now_s = 0.0
    for _ in range(3000):  # two days, during which its health checks succeed
        assert member.admits(now_s)
        member.failed_leg(now_s)
        assert not member.admits(now_s)
        now_s = member.ejected_until_s
    assert now_s > 2900 * 60.0
