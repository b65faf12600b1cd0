"""An engine's metrics page to a LoadSample: only the few families that routing needs, found by name, without parsing the rest.

A page of a busy vLLM has 100 KB, and hundreds of pages come per second, so the page is searched and not split. Whatever cannot be
read (absent, NaN, garbage, out of range, cut off) leaves its field None; nothing on a page raises. Several label sets of one family
are data-parallel ranks behind one address: counts are summed, usage is averaged. One unreadable rank makes the field None, because
a sum over the others would look like an idle engine.

Sources: vLLM's `v1/metrics/loggers.py`, SGLang's `metrics_collector.py`, trtllm-serve, llama.cpp's `server.cpp`, llm-d's engine mapping.
"""

import math
import re
from collections.abc import Iterator

from msgspec import Struct

from beaconry.values.endpoint import AdapterLoad, EngineType, LoadSample

LABEL_SETS = 1024
"""Read per family: more ranks than any engine has, few enough for a page that consists of nothing else."""
_COUNT_LIMIT = 2.0**53
_DIGITS = 10
_LABEL = re.compile(rb'(\w+)="([^"]*)"')
_AFTER_NAME = (b"{", b" ", b"\t")
_VALUE_LINE = re.compile(rb"(?:\{.*\})?[ \t]+(\S+)(?:[ \t]+-?\d+)?[ \t\r]*")

Sources = tuple[tuple[bytes, bytes], ...]
"""Families in order of preference, each with the label that holds the value; an empty label means the sample's own value."""


class _Families(Struct, frozen=True, kw_only=True):
    """Where one engine says what."""

    running: Sources
    waiting: Sources
    kv_usage: Sources = ()
    kv_blocks: Sources = ()
    block_tokens: Sources = ()
    adapters: bytes = b""
    """A family with labels as in vLLM's."""
    waiting_by_reason: bytes = b""
    """Likewise."""


_VLLM = _Families(
    running=((b"vllm:num_requests_running", b""),),
    waiting=((b"vllm:num_requests_waiting", b""),),
    kv_usage=((b"vllm:kv_cache_usage_perc", b""), (b"vllm:gpu_cache_usage_perc", b"")),
    kv_blocks=((b"vllm:cache_config_info", b"num_gpu_blocks"),),
    block_tokens=((b"vllm:cache_config_info", b"block_size"),),
    adapters=b"vllm:lora_requests_info",
    waiting_by_reason=b"vllm:num_requests_waiting_by_reason",
)
_FAMILIES = {
    EngineType.VLLM: _VLLM,
    EngineType.SIM: _VLLM,
    EngineType.SGLANG: _Families(
        running=((b"sglang:num_running_reqs", b""),),
        waiting=((b"sglang:num_queue_reqs", b""),),
        kv_usage=((b"sglang:token_usage", b""),),
        kv_blocks=((b"sglang:num_pages", b""), (b"sglang:cache_config_info", b"num_pages")),
        block_tokens=((b"sglang:page_size", b""), (b"sglang:cache_config_info", b"page_size")),
    ),
    EngineType.TRTLLM: _Families(
        running=((b"trtllm_num_requests_running", b""),),
        waiting=((b"trtllm_num_requests_waiting", b""),),
        kv_usage=((b"trtllm_kv_cache_utilization", b""),),
        kv_blocks=((b"trtllm_kv_cache_max_blocks", b""),),
        block_tokens=((b"trtllm_kv_cache_tokens_per_block", b""),),
    ),
    EngineType.LLAMACPP: _Families(
        running=((b"llamacpp:requests_processing", b""),),
        waiting=((b"llamacpp:requests_deferred", b""),),
        kv_usage=((b"llamacpp:kv_cache_usage_ratio", b""),),  # older releases only
    ),
}


def parse_load(text: bytes, engine: EngineType, at_s: float) -> LoadSample:
    """Read a page in the Prometheus text format that was received at `at_s`. Never raises: what is not there is None."""
    page = (
        b"\n" + text[: text.rfind(b"\n") + 1]
    )  # so that each line begins after a line feed; one without its end is cut off
    families = _FAMILIES[engine]
    return LoadSample(
        at_s=at_s,
        running=_count(_values(page, families.running)),
        waiting=_count(_values(page, families.waiting)),
        deferred=_deferred(page, families.waiting_by_reason) if families.waiting_by_reason else None,
        kv_usage=_share(_values(page, families.kv_usage)),
        kv_blocks=_count(_values(page, families.kv_blocks)),
        block_tokens=_count(_values(page, families.block_tokens)[:1]) or None,  # the same for all ranks
        adapters=_adapters(page, families.adapters) if families.adapters else None,
    )


def _deferred(page: bytes, family: bytes) -> int | None:
    """How many requests wait for something else than room."""
    lines = [line for line in _lines(page, family) if b'reason="deferred"' in line]
    return _count([_number(_VALUE_LINE.fullmatch(line)) for line in lines])


def _adapters(page: bytes, family: bytes) -> AdapterLoad | None:
    """The latest of the family's series: each has names as labels and its time as value, and old ones stay on the page."""
    latest: dict[bytes, bytes] | None = None
    at = -math.inf
    for line in _lines(page, family):
        told_at = _number(_VALUE_LINE.fullmatch(line))
        if told_at > at:
            latest, at = dict(_LABEL.findall(line)), told_at
    if latest is None:
        return None
    slots = latest.get(b"max_lora", b"")
    return AdapterLoad(
        running=_names(latest.get(b"running_lora_adapters", b"")),
        waiting=_names(latest.get(b"waiting_lora_adapters", b"")),
        slots=int(slots) if slots.isdigit() and len(slots) < _DIGITS else None,
    )


def _names(joined: bytes) -> frozenset[str]:
    return frozenset(name for name in joined.decode("utf-8", "replace").split(",") if name)


def _values(page: bytes, sources: Sources) -> list[float]:
    """One value per label set of the first family that is there; NaN for one that cannot be read."""
    for family, label in sources:
        read = re.compile(rb'[{,]%b="([^"]*)"' % label).search if label else _VALUE_LINE.fullmatch
        values = [_number(read(line)) for line in _lines(page, family)]
        if values:
            return values
    return []


def _lines(page: bytes, family: bytes) -> Iterator[bytes]:
    """What follows the family's name on each of its lines: `{labels} value [timestamp]`."""
    needle = b"\n" + family
    at = page.find(needle)
    for _ in range(LABEL_SETS):
        if at < 0:
            return
        end = page.find(b"\n", at + 1)
        line = page[at + len(needle) : end]
        if line.startswith(_AFTER_NAME):  # else the name of a longer family
            yield line
        at = page.find(needle, end)


def _number(match: re.Match[bytes] | None) -> float:
    try:
        return float(match[1]) if match else math.nan
    except ValueError:
        return math.nan


def _count(values: list[float]) -> int | None:
    total = sum(values)
    if not values or min(values) < 0 or not total < _COUNT_LIMIT:
        return None
    return int(total)


def _share(values: list[float]) -> float | None:
    if not values or not all(0.0 <= value <= 1.0 for value in values):
        return None
    return sum(values) / len(values)
