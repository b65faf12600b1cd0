"""The static endpoint list: what changes when the file does, and what does not when it is bad."""

import asyncio
import contextlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beaconry.io.endpoint_file import EndpointFile, changes, endpoints_of, read_gateway_config
from beaconry.router.facts import EndpointGone, EndpointSeen
from beaconry.values.endpoint import Endpoint
from beaconry.values.errors import OperatorError

DEADLINE_S = 20.0
ONE = "endpoints:\n- {name: a, host: h, port: 1, model: m}\n"
TWO = ONE + "- {name: b, host: h, port: 2, model: m}\n"


def endpoint(name, **more):
    return Endpoint(name=name, host="h", port=1, model="m", **more)


def test_changes_name_new_changed_and_missing_endpoints_additions_first():
    old = [endpoint("a"), endpoint("b"), endpoint("c")]
    new = [endpoint("b"), endpoint("c", draining=True), endpoint("d")]
    assert changes(old, new) == [
        EndpointSeen(endpoint("c", draining=True)),
        EndpointSeen(endpoint("d")),
        EndpointGone("a"),
    ]


lists = st.lists(
    st.builds(endpoint, st.sampled_from("abcd"), draining=st.booleans()), unique_by=lambda one: one.name, max_size=4
)


@given(lists, lists)
def test_applying_the_changes_to_the_old_list_gives_the_new_one(old, new):
    state = {one.name: one for one in old}
    for fact in changes(old, new):
        if isinstance(fact, EndpointGone):
            del state[fact.name]
        else:
            state[fact.endpoint.name] = fact.endpoint
    assert state == {one.name: one for one in new}
    assert changes(new, new) == []


class Follower:
    """An EndpointFile at work on a file, and what it has said."""

    def __init__(self, path):
        self.told, self.refused, self.versions = [], [], []
        self._news = asyncio.Event()
        self.file = EndpointFile(
            path,
            read_gateway_config(path),
            tell=self._note(self.told),
            reconfigure=self._note(self.versions),
            refused=self._note(self.refused),
            poll_s=0.005,
        )

    def _note(self, into):
        def note(item):
            into.append(item)
            self._news.set()

        return note

    async def __aenter__(self):
        self._task = asyncio.create_task(self.file.follow())
        return self

    async def __aexit__(self, *exc):
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def until(self, holds):
        async with asyncio.timeout(DEADLINE_S):
            while not holds():
                self._news.clear()
                await self._news.wait()


def follow(tmp_path, work, text=ONE):
    path = tmp_path / "gateway.yaml"
    path.write_text(text)

    async def main():
        async with Follower(path) as follower:
            await work(path, follower)

    asyncio.run(main())


def replace(path, text):
    """The way editors, ConfigMaps and careful scripts write: a new file under the old name."""
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)


@pytest.mark.parametrize("write", [replace, lambda path, text: path.write_text(text)], ids=["replaced", "overwritten"])
def test_an_endpoint_added_and_removed_in_the_file_is_told(tmp_path, write):
    async def work(path, follower):
        write(path, TWO)
        await follower.until(lambda: len(follower.told) == 1)
        assert follower.told[0].endpoint.name == "b"
        write(path, ONE)
        await follower.until(lambda: len(follower.told) == 2)
        assert follower.told[1] == EndpointGone("b")
        assert follower.refused == []

    follow(tmp_path, work)


def test_a_bad_version_is_refused_once_and_the_old_stays_in_force(tmp_path):
    async def work(path, follower):
        replace(path, ONE.replace("port: 1", "prt: 1"))
        await follower.until(lambda: follower.refused)
        await asyncio.sleep(0.05)
        assert len(follower.refused) == 1
        assert 'gateway.yaml:2: endpoints[0].prt: unknown key; did you mean "port"?' in str(follower.refused[0])
        assert follower.told == []
        replace(path, TWO)
        await follower.until(lambda: follower.told)
        assert [fact.endpoint.name for fact in follower.told] == ["b"]

    follow(tmp_path, work)


def test_a_file_that_vanishes_changes_nothing(tmp_path):
    async def work(path, follower):
        path.unlink()
        await asyncio.sleep(0.05)
        assert (follower.told, follower.refused) == ([], [])
        path.write_text(TWO)
        await follower.until(lambda: follower.told)

    follow(tmp_path, work)


def test_other_settings_wait_for_the_next_start_and_say_so(tmp_path):
    async def work(path, follower):
        replace(path, TWO + "policy: random\n")
        await follower.until(lambda: follower.refused and follower.told)
        assert "policy: takes effect at the next start; the rest is taken now" in str(follower.refused[0])

    follow(tmp_path, work)


def test_names_objectives_and_trust_are_taken_over_at_once(tmp_path):
    async def work(path, follower):
        replace(path, TWO + "models: {alias: {targets: [{model: m}]}}\nobjectives: {urgent: {priority: 3}}\n")
        await follower.until(lambda: follower.told)
        assert follower.versions[-1].objectives["urgent"].priority == 3
        assert "alias" in follower.versions[-1].models
        assert follower.refused == []

    follow(tmp_path, work)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            ONE + "- {name: a, host: x, port: 1, model: m}\n",
            "endpoints\\[1\\] has the name of endpoints\\[0\\] \\(a\\)",
        ),
        (
            ONE + "- {name: b, host: h, port: 1, model: m}\n",
            "endpoints\\[1\\] has address and model of endpoints\\[0\\]",
        ),
    ],
)
def test_an_endpoint_listed_twice_is_refused(tmp_path, text, message):
    path = tmp_path / "gateway.yaml"
    path.write_text(text)
    with pytest.raises(OperatorError, match=message):
        read_gateway_config(path)


def test_one_address_may_serve_several_models(tmp_path):
    path = tmp_path / "gateway.yaml"
    path.write_text(ONE + "- {name: b, host: h, port: 1, model: lora}\n")
    assert [one.model for one in endpoints_of(read_gateway_config(path))] == ["m", "lora"]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(OperatorError, match=r"none\.yaml: cannot be read: No such file"):
        read_gateway_config(tmp_path / "none.yaml")
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"policy: x\n# \xe4")
    with pytest.raises(OperatorError, match=r"latin\.yaml:2: is not UTF-8"):
        read_gateway_config(path)
    path.write_bytes(b"#" * 2_000_000)
    with pytest.raises(OperatorError, match="larger than 1048576 bytes"):
        read_gateway_config(path)
