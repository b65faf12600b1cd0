"""What a simulated engine adds up for its metrics, with vLLM's buckets. Times are real seconds, as a client sees them, whatever the speed.

Plain numbers: a step costs two additions here, however many sequences it has.
"""

from bisect import bisect_left
from collections.abc import Sequence as Sized
from typing import Final

from beaconry.engine_model.sequence import Sequence
from beaconry.engine_model.values import StepResult

TTFT_S: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0
)  # fmt: skip
ITL_S: Final = (
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
)
REQUEST_S: Final = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0
)  # fmt: skip
FETCH_S: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 5.0)
FETCH_BYTES: Final = tuple(2 ** (10 + power) for power in range(1, 25, 2))
STEP_TOKENS: Final = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
CHOICES: Final = (1, 2, 5, 10, 20)
PREEMPTIONS: Final = (0, 1, 2, 5, 10)
FINISH_REASONS: Final = ("stop", "length", "abort", "error", "repetition")


class Histogram:
    """Counts per bucket; `counts[i]` are values up to `buckets[i]` and above the one before, the last those beyond all."""

    __slots__ = ("buckets", "counts", "sum")

    def __init__(self, buckets: Sized[float]) -> None:
        self.buckets = buckets
        self.counts = [0] * (len(buckets) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, `times` over."""
        self.counts[bisect_left(self.buckets, value)] += times
        self.sum += value * times


def token_buckets(limit: int) -> tuple[int, ...]:
    """Return 1, 2, 5, 10, 20, 50, ... up to `limit`."""
    return tuple(m * 10**e for e in range(len(str(limit))) for m in (1, 2, 5) if m * 10**e <= limit)


class Handovers:
    """What goes wrong and right with KV from and to other engines. Times are real seconds."""

    def __init__(self) -> None:
        self.failed = 0
        """Fetches that came to nothing."""
        self.failed_notices = 0
        """Holders that did not hear that KV is not wanted any more."""
        self.expired = 0
        """Sequences whose KV nobody fetched within its lease."""
        self.late_releases = 0
        """Readers that let go of what was not kept any more."""
        self.histograms = {
            "nixl_xfer_time_seconds": Histogram(FETCH_S[1:]),
            "nixl_post_time_seconds": Histogram(FETCH_S),
            "nixl_bytes_transferred": Histogram(FETCH_BYTES),
        }

    def observe(self, seconds: float, posted_s: float, size: float) -> None:
        """Count a fetch of `size` bytes: how long they took, once asked for, and how long it took to ask."""
        self.histograms["nixl_xfer_time_seconds"].observe(seconds)
        self.histograms["nixl_post_time_seconds"].observe(posted_s)
        self.histograms["nixl_bytes_transferred"].observe(size)


class Observations:
    """What the server adds up, beside the engine's own statistics."""

    def __init__(self, max_model_len: int, speed: float) -> None:
        tokens = token_buckets(max_model_len)
        self._speed = speed
        self.finished = dict.fromkeys(FINISH_REASONS, 0)
        """Sequences by finish reason."""
        self.rejected = 0
        """Requests refused because too many wait."""
        self.histograms = {
            "request_prompt_tokens": Histogram(tokens),
            "request_generation_tokens": Histogram(tokens),
            "request_max_num_generation_tokens": Histogram(tokens),
            "request_params_max_tokens": Histogram(tokens),
            "request_prefill_kv_computed_tokens": Histogram(tokens),
            "request_params_n": Histogram(CHOICES),
            "request_num_preemptions": Histogram(PREEMPTIONS),
            "iteration_tokens_total": Histogram(STEP_TOKENS),
            "time_to_first_token_seconds": Histogram(TTFT_S),
            "inter_token_latency_seconds": Histogram(ITL_S),
            "request_time_per_output_token_seconds": Histogram(ITL_S),
            "e2e_request_latency_seconds": Histogram(REQUEST_S),
            "request_queue_time_seconds": Histogram(REQUEST_S),
            "request_inference_time_seconds": Histogram(REQUEST_S),
            "request_prefill_time_seconds": Histogram(REQUEST_S),
            "request_decode_time_seconds": Histogram(REQUEST_S),
        }

    def observe_step(self, result: StepResult, duration_s: float) -> None:
        """Count a step. Its duration is the inter-token latency of all who decoded in it."""
        self.histograms["iteration_tokens_total"].observe(result.prefill_tokens + result.output_tokens)
        decoded = result.output_tokens - len(result.started)
        if decoded > 0:
            self.histograms["inter_token_latency_seconds"].observe(duration_s / self._speed, decoded)
        for sequence in result.started:
            ttft_s = (sequence.first_token_s or 0.0) - sequence.arrived_s
            self.histograms["time_to_first_token_seconds"].observe(max(0.0, ttft_s / self._speed))

    def observe_end(self, sequence: Sequence, finish_reason: str) -> None:
        """Count a sequence that has finished."""
        self.finished[finish_reason] += 1
        arrived_s, finished_s = sequence.arrived_s, sequence.finished_s or 0.0
        first_s, admitted_s = sequence.first_token_s or finished_s, sequence.admitted_s or finished_s
        values: dict[str, float] = {
            "e2e_request_latency_seconds": (finished_s - arrived_s) / self._speed,
            "request_queue_time_seconds": (admitted_s - arrived_s) / self._speed,
            "request_inference_time_seconds": (finished_s - admitted_s) / self._speed,
            "request_prefill_time_seconds": (first_s - admitted_s) / self._speed,
            "request_decode_time_seconds": (finished_s - first_s) / self._speed,
            "request_prompt_tokens": sequence.prompt_tokens,
            "request_generation_tokens": sequence.generated,
            "request_max_num_generation_tokens": sequence.generated,
            "request_prefill_kv_computed_tokens": sequence.prompt_tokens - (sequence.cached_tokens or 0),
            "request_num_preemptions": sequence.preemptions,
        }
        if sequence.generated > 1:
            values["request_time_per_output_token_seconds"] = (
                (finished_s - first_s) / (sequence.generated - 1) / self._speed
            )
        for name, value in values.items():
            self.histograms[name].observe(max(0.0, value))  # a late timer may admit a sequence before it came

    def observe_request(self, n: int, max_tokens: int | None) -> None:
        """Count the parameters of a request."""
        self.histograms["request_params_n"].observe(n)
        if max_tokens is not None:
            self.histograms["request_params_max_tokens"].observe(max_tokens)
