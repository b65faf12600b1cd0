"""The flags of a simulated engine become its options."""

import argparse

import pytest

from beaconry.apps.engine import configure, options_of
from beaconry.values.errors import OperatorError


def options(*flags):
    parser = argparse.ArgumentParser()
    configure(parser)
    return options_of(parser.parse_args(flags))


def test_memory_of_the_host_becomes_blocks_that_load_at_the_links_speed():
    """A token of Qwen3-32B has 2 x 64 layers x 8 heads x 128 x 2 bytes = 256 KiB; two accelerators load it over two links."""
    offload = options("--preset=qwen3-32b/h100x2", "--kv-offloading-size=1", "--block-size=32").offload
    assert offload.blocks == 128
    assert offload.load_s == pytest.approx(32 * 2**18 / 50e9)


def test_without_the_flag_nothing_is_offloaded():
    assert options().offload is None


@pytest.mark.parametrize(
    "flags", [("--kv-offloading-size=0",), ("--kv-offloading-size=1", "--kv-offloading-bandwidth=0")]
)
def test_a_tier_without_room_or_speed_is_refused(flags):
    with pytest.raises(OperatorError, match="--kv-offloading-size"):
        options(*flags)


def test_adapters_have_names_and_paths():
    assert options("--lora-modules", "a=/x", "b=/y").adapters == {"a": "/x", "b": "/y"}
    with pytest.raises(OperatorError, match="write NAME=PATH"):
        options("--lora-modules", "a")
