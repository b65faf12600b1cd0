"""Engine metrics pages: what is read, what is left out, and that nothing on a page raises."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from beaconry.values.endpoint import AdapterLoad, EngineType, LoadSample
from beaconry.wire.engine_metrics import LABEL_SETS, parse_load

VLLM_PAGE = b"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="tiny"} 2.0
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"} 1.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="deferred"} 1.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.25
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{_block_size_resolved="True",block_size="32",effective_attention_block_size="16",engine="0",\
hash_block_size="None",mamba_block_size="None",num_cpu_blocks="None",num_gpu_blocks="4096",num_gpu_blocks_override="None"} 1.0
vllm:request_prompt_tokens_bucket{engine="0",le="1.0",model_name="tiny"} 0.0
"""


def load(text: bytes, engine: EngineType = EngineType.VLLM) -> LoadSample:
    return parse_load(text, engine, 7.0)


@pytest.mark.parametrize("engine", [EngineType.VLLM, EngineType.SIM])
def test_a_vllm_page_gives_every_field(engine):
    assert load(VLLM_PAGE, engine) == LoadSample(
        at_s=7.0, running=3, waiting=2, deferred=1, kv_usage=0.25, kv_blocks=4096, block_tokens=32
    )


def test_older_vllm_has_another_name_for_kv_usage():
    assert load(b'vllm:gpu_cache_usage_perc{model_name="m"} 0.5\n').kv_usage == 0.5


def test_data_parallel_ranks_are_summed_and_their_usage_averaged():
    page = b"".join(
        b'vllm:num_requests_running{engine="%d"} %d.0\nvllm:kv_cache_usage_perc{engine="%d"} 0.%d\n'
        b'vllm:cache_config_info{block_size="16",engine="%d",num_gpu_blocks="1000"} 1.0\n' % (i, i + 1, i, 2 * i, i)
        for i in range(4)
    )
    assert load(page) == LoadSample(at_s=7.0, running=10, kv_usage=pytest.approx(0.3), kv_blocks=4000, block_tokens=16)


def test_sglang_pages_name_the_page_geometry_as_gauges_or_as_labels():
    head = (
        b'sglang:num_running_reqs{model_name="m",tp_rank="0"} 4.0\nsglang:num_running_reqs_offline_batch{tp_rank="0"} 9.0\n'
        b'sglang:num_queue_reqs{model_name="m",tp_rank="0"} 1.0\nsglang:token_usage{model_name="m",tp_rank="0"} 0.12\n'
    )
    expected = LoadSample(at_s=7.0, running=4, waiting=1, kv_usage=0.12, kv_blocks=900, block_tokens=64)
    gauges = b"sglang:page_size 64.0\nsglang:num_pages 900.0\n"
    labels = b'sglang:cache_config_info{num_pages="900",page_size="64"} 1.0\n'
    assert load(head + gauges, EngineType.SGLANG) == load(head + labels, EngineType.SGLANG) == expected


def test_a_tensorrt_llm_page():
    page = (
        b'trtllm_num_requests_running{engine_type="trtllm",model_name="m"} 5.0\n'
        b'trtllm_num_requests_waiting{engine_type="trtllm",model_name="m"} 6.0\n'
        b"trtllm_kv_cache_utilization 0.62\ntrtllm_kv_cache_tokens_per_block 32.0\ntrtllm_kv_cache_max_blocks 2048.0\n"
    )
    expected = LoadSample(at_s=7.0, running=5, waiting=6, kv_usage=0.62, kv_blocks=2048, block_tokens=32)
    assert load(page, EngineType.TRTLLM) == expected


def test_a_llama_cpp_page_has_no_labels():
    page = b"# TYPE llamacpp:requests_processing gauge\nllamacpp:requests_processing 2\nllamacpp:requests_deferred 0\n"
    assert load(page, EngineType.LLAMACPP) == LoadSample(at_s=7.0, running=2, waiting=0)


def test_another_engines_page_says_nothing():
    assert load(VLLM_PAGE, EngineType.SGLANG) == LoadSample(at_s=7.0)


@pytest.mark.parametrize(
    "rest",
    [
        b" NaN", b" +Inf", b" -1.0", b" 1e300", b" x", b"", b" ", b"{", b'{a="b"}', b'{a="b"', b" 1 2 3", b"{} \xff", b" 1.0 x",
        b"1", b"_total 1.0",
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_none_and_the_rest_is_read(rest):
    sample = load(b"vllm:num_requests_running" + rest + b"\nvllm:num_requests_waiting 1.0\n")
    assert sample == LoadSample(at_s=7.0, waiting=1)


@pytest.mark.parametrize("value", [b"1.01", b"-0.1", b"NaN", b"35"])
def test_a_usage_beyond_zero_to_one_is_none_rather_than_full(value):
    assert load(b"vllm:kv_cache_usage_perc " + value + b"\n").kv_usage is None


def test_one_unreadable_rank_makes_the_field_none():
    assert load(b'vllm:num_requests_running{engine="0"} 5\nvllm:num_requests_running{engine="1"} NaN\n').running is None


def test_a_last_line_without_its_end_is_not_believed():
    assert load(b"vllm:num_requests_waiting 1.0\nvllm:num_requests_running 1").running is None
    assert load(b"vllm:num_requests_waiting 1.0\nvllm:num_requests_running 1").waiting == 1


@pytest.mark.parametrize("info", [b'num_gpu_blocks="None",block_size="None"', b'block_size="0"', b""])
def test_geometry_that_an_engine_does_not_know_yet_is_none(info):
    sample = load(b"vllm:cache_config_info{" + info + b"} 1.0\n")
    assert (sample.kv_blocks, sample.block_tokens) == (None, None)


def test_labels_may_hold_braces_spaces_and_timestamps_may_follow():
    assert load(b'vllm:num_requests_running{model_name="a } {b\\" c"}\t4.0 1712345678901\r\n').running == 4


def test_a_page_of_nothing_but_one_family_is_read_to_a_bound():
    assert load(b"vllm:num_requests_running 1\n" * (2 * LABEL_SETS)).running == LABEL_SETS


fragments = st.sampled_from([
    b"vllm:num_requests_running", b"vllm:kv_cache_usage_perc", b"vllm:cache_config_info", b'block_size="',
    b"{", b"}", b'"', b"=", b",", b" ", b"\n", b"\r", b"\\", b"\x00", b"NaN", b"1e999", b"-1", b"7",
])  # fmt: skip


@given(st.binary() | st.lists(fragments | st.binary(max_size=3)).map(b"".join), st.sampled_from(EngineType))
def test_no_page_raises(page, engine):
    sample = parse_load(page, engine, 1.0)
    assert sample.kv_usage is None or 0.0 <= sample.kv_usage <= 1.0
    for count in (sample.running, sample.waiting, sample.kv_blocks):
        assert count is None or count >= 0
    assert sample.block_tokens is None or sample.block_tokens > 0


def naive(text: str) -> LoadSample:
    """By a full parse of the page."""
    values: dict[str, list[float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            values.setdefault(sample.name, []).append(sample.value)
    running, usage = values.get("vllm:num_requests_running"), values.get("vllm:kv_cache_usage_perc")
    waiting = values.get("vllm:num_requests_waiting")
    return LoadSample(
        at_s=1.0,
        running=None if running is None or math.isnan(sum(running)) else int(sum(running)),
        waiting=None if waiting is None or math.isnan(sum(waiting)) else int(sum(waiting)),
        kv_usage=None if usage is None or not all(0 <= u <= 1 for u in usage) else sum(usage) / len(usage),
    )


names = st.sampled_from(
    ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:num_requests_waiting_by_reason", "vllm:kv_cache_usage_perc"]
)  # fmt: skip
labels = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp"))).map(
    lambda text: text.replace("\\", "\\\\").replace('"', '\\"')
)
numbers = st.one_of(st.integers(0, 1000).map(float), st.floats(0, 1), st.just(math.nan))


@given(st.lists(st.tuples(names, labels, numbers), max_size=12))
def test_a_well_formed_page_is_read_as_a_full_parser_reads_it(rows):
    text = "".join(
        f'{name}{{engine="{i}",model_name="{label}"}} {value}\n' for i, (name, label, value) in enumerate(rows)
    )
    assert parse_load(text.encode(), EngineType.VLLM, 1.0) == naive(text)


LORA = 'vllm:lora_requests_info{max_lora="%s",running_lora_adapters="%s",waiting_lora_adapters="%s"} %s\n'


def test_of_adapters_the_latest_series_counts_wherever_it_stands():
    page = "".join(LORA % row for row in (("2", "a", "", "1.5e9"), ("2", "a,b", "c", "1.7e9"), ("2", "", "", "1.6e9")))
    assert load(page.encode()).adapters == AdapterLoad(running=frozenset({"a", "b"}), waiting=frozenset({"c"}), slots=2)


@pytest.mark.parametrize("slots", ["", "many", "9" * 30])
def test_a_number_of_slots_that_is_none_is_unknown(slots):
    assert load((LORA % (slots, "a", "", "1")).encode()).adapters.slots is None


def test_an_engine_without_adapters_tells_of_none():
    assert load(VLLM_PAGE).adapters is None
    assert load((LORA % ("1", "a", "", "NaN")).encode()).adapters is None
