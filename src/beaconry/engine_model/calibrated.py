"""What public measurements say of single variants: factors on the terms of their rooflines, with the errors left.

Fitted by `python -m benchmarks.calibration --python`, which prints this table; `benchmarks/measurements.yaml` has the points and their
sources. The errors are those of points that were left out of the fit that is compared with them.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from msgspec import Struct

from beaconry.engine_model.roofline import Corrections


class Calibration(Struct, frozen=True, kw_only=True):
    """One variant against its measurements."""

    corrections: Corrections
    request_s: float
    """Per request, outside of steps: HTTP, tokenization, hand-over to the engine."""
    points: int
    itl_error: float
    """Mean absolute error of inter-token times, relative."""
    ttft_error: float | None
    """The same of times to first token; None if none is comparable."""
    source: str


CALIBRATED: Final[Mapping[str, Calibration]] = MappingProxyType(
    {
        "llama-3.1-70b-fp8/h100x2": Calibration(
            corrections=Corrections(overhead=1.02, prompt=1.24, sequences=1.32, weights=0.999, compute=1.12, kv=1.25),
            request_s=0.0066,
            points=9,
            itl_error=0.018,
            ttft_error=0.066,
            source="InferenceMAX: nvidia/Llama-3.3-70B-Instruct-FP8, vLLM, 2025-10-29",
        ),
        "llama-3.1-70b-fp8/h100x4": Calibration(
            corrections=Corrections(overhead=1.02, prompt=1.29, sequences=1.94, weights=0.999, compute=1.15, kv=1.17),
            request_s=0.00067,
            points=10,
            itl_error=0.024,
            ttft_error=0.028,
            source="InferenceMAX: nvidia/Llama-3.3-70B-Instruct-FP8, vLLM, 2025-10-29",
        ),
        "llama-3.1-70b-fp8/h100x8": Calibration(
            corrections=Corrections(overhead=1.11, prompt=1.74, sequences=2.05, weights=1, compute=1.12, kv=1.12),
            request_s=0.0037,
            points=10,
            itl_error=0.035,
            ttft_error=0.029,
            source="InferenceMAX: nvidia/Llama-3.3-70B-Instruct-FP8, vLLM, 2025-10-29",
        ),
        "llama-3.1-70b-fp8/h200": Calibration(
            corrections=Corrections(overhead=1.24, prompt=1.45, sequences=2.51, weights=1.09, compute=1.06, kv=2.13),
            request_s=0.007,
            points=10,
            itl_error=0.053,
            ttft_error=0.027,
            source="InferenceMAX: nvidia/Llama-3.3-70B-Instruct-FP8, vLLM, 2025-10-29",
        ),
        "llama-3.1-70b-fp8/h200x2": Calibration(
            corrections=Corrections(overhead=1.02, prompt=0.99, sequences=1.88, weights=1, compute=1.18, kv=1.46),
            request_s=0,
            points=10,
            itl_error=0.04,
            ttft_error=0.03,
            source="InferenceMAX: nvidia/Llama-3.3-70B-Instruct-FP8, vLLM, 2025-10-29",
        ),
        "llama-3.1-70b-fp8/h200x4": Calibration(
            corrections=Corrections(overhead=0.999, prompt=1.13, sequences=1.83, weights=0.999, compute=1.26, kv=1.34),
            request_s=0.001,
            points=10,
            itl_error=0.043,
            ttft_error=0.042,
            source="InferenceMAX: nvidia/Llama-3.3-70B-Instruct-FP8, vLLM, 2025-10-29",
        ),
        "llama-3.1-70b-fp8/h200x8": Calibration(
            corrections=Corrections(overhead=1.07, prompt=1.73, sequences=1.26, weights=1, compute=1.17, kv=1.1),
            request_s=0.0093,
            points=10,
            itl_error=0.037,
            ttft_error=0.042,
            source="InferenceMAX: nvidia/Llama-3.3-70B-Instruct-FP8, vLLM, 2025-10-29",
        ),
        "llama-3.1-70b-fp8/b200": Calibration(
            corrections=Corrections(overhead=1.55, prompt=1.11, sequences=0.844, weights=1.14, compute=1.36, kv=0.845),
            request_s=0.006,
            points=9,
            itl_error=0.011,
            ttft_error=0.041,
            source="InferenceMAX: nvidia/Llama-3.3-70B-Instruct-FP8, vLLM, 2025-10-29",
        ),
        "llama-3.1-70b-fp8/b200x2": Calibration(
            corrections=Corrections(
                overhead=0.989, prompt=1.69, sequences=0.782, weights=0.993, compute=1.51, kv=0.888
            ),
            request_s=0.01,
            points=10,
            itl_error=0.011,
            ttft_error=0.054,
            source="InferenceMAX: nvidia/Llama-3.3-70B-Instruct-FP8, vLLM, 2025-10-29",
        ),
        "llama-3.1-70b-fp8/b200x4": Calibration(
            corrections=Corrections(overhead=0.954, prompt=3.92, sequences=1.27, weights=0.985, compute=1.42, kv=0.756),
            request_s=0.024,
            points=10,
            itl_error=0.026,
            ttft_error=0.081,
            source="InferenceMAX: nvidia/Llama-3.3-70B-Instruct-FP8, vLLM, 2025-10-29",
        ),
        "llama-3.1-70b-fp8/b200x8": Calibration(
            corrections=Corrections(overhead=0.887, prompt=4.53, sequences=1.44, weights=0.99, compute=1.53, kv=0.91),
            request_s=0.028,
            points=10,
            itl_error=0.021,
            ttft_error=0.092,
            source="InferenceMAX: nvidia/Llama-3.3-70B-Instruct-FP8, vLLM, 2025-10-29",
        ),
        "gpt-oss-120b/h100x2": Calibration(
            corrections=Corrections(overhead=1.11, prompt=2.43, sequences=1.11, weights=0.923, compute=2.18, kv=0.71),
            request_s=0.02,
            points=10,
            itl_error=0.013,
            ttft_error=0.099,
            source="InferenceMAX: openai/gpt-oss-120b, vLLM 0.15.1 (B200) and 0.18.0 (H100, H200), 2026-02-25 and 2026-03-27",
        ),
        "gpt-oss-120b/h100x4": Calibration(
            corrections=Corrections(overhead=1, prompt=2.39, sequences=0.727, weights=0.929, compute=2.3, kv=0.734),
            request_s=0.013,
            points=9,
            itl_error=0.015,
            ttft_error=0.13,
            source="InferenceMAX: openai/gpt-oss-120b, vLLM 0.15.1 (B200) and 0.18.0 (H100, H200), 2026-02-25 and 2026-03-27",
        ),
        "gpt-oss-120b/h100x8": Calibration(
            corrections=Corrections(overhead=0.905, prompt=2.91, sequences=3.32, weights=0.73, compute=2.35, kv=0.954),
            request_s=0.0077,
            points=8,
            itl_error=0.096,
            ttft_error=0.22,
            source="InferenceMAX: openai/gpt-oss-120b, vLLM 0.15.1 (B200) and 0.18.0 (H100, H200), 2026-02-25 and 2026-03-27",
        ),
        "gpt-oss-120b/h200": Calibration(
            corrections=Corrections(overhead=1.8, prompt=1.88, sequences=1.13, weights=1.03, compute=2.07, kv=0.979),
            request_s=0.018,
            points=6,
            itl_error=0.029,
            ttft_error=0.082,
            source="InferenceMAX: openai/gpt-oss-120b, vLLM 0.15.1 (B200) and 0.18.0 (H100, H200), 2026-02-25 and 2026-03-27",
        ),
        "gpt-oss-120b/h200x2": Calibration(
            corrections=Corrections(overhead=1.09, prompt=2.78, sequences=1.86, weights=1.13, compute=2.17, kv=0.688),
            request_s=0.021,
            points=10,
            itl_error=0.02,
            ttft_error=0.12,
            source="InferenceMAX: openai/gpt-oss-120b, vLLM 0.15.1 (B200) and 0.18.0 (H100, H200), 2026-02-25 and 2026-03-27",
        ),
        "gpt-oss-120b/h200x4": Calibration(
            corrections=Corrections(overhead=1.01, prompt=2.69, sequences=1.36, weights=1.01, compute=2.26, kv=0.791),
            request_s=0.014,
            points=10,
            itl_error=0.015,
            ttft_error=0.13,
            source="InferenceMAX: openai/gpt-oss-120b, vLLM 0.15.1 (B200) and 0.18.0 (H100, H200), 2026-02-25 and 2026-03-27",
        ),
        "gpt-oss-120b/h200x8": Calibration(
            corrections=Corrections(overhead=0.996, prompt=2.65, sequences=0.795, weights=1, compute=2.29, kv=0.929),
            request_s=0.013,
            points=9,
            itl_error=0.012,
            ttft_error=0.13,
            source="InferenceMAX: openai/gpt-oss-120b, vLLM 0.15.1 (B200) and 0.18.0 (H100, H200), 2026-02-25 and 2026-03-27",
        ),
        "gpt-oss-120b/b200": Calibration(
            corrections=Corrections(overhead=1.1, prompt=2.73, sequences=1.1, weights=0.824, compute=0.996, kv=0.159),
            request_s=0.024,
            points=12,
            itl_error=0.021,
            ttft_error=0.085,
            source="InferenceMAX: openai/gpt-oss-120b, vLLM 0.15.1 (B200) and 0.18.0 (H100, H200), 2026-02-25 and 2026-03-27",
        ),
        "gpt-oss-120b/b200x2": Calibration(
            corrections=Corrections(overhead=0.93, prompt=2.73, sequences=0.487, weights=0.764, compute=1.12, kv=0.226),
            request_s=0.019,
            points=12,
            itl_error=0.06,
            ttft_error=0.1,
            source="InferenceMAX: openai/gpt-oss-120b, vLLM 0.15.1 (B200) and 0.18.0 (H100, H200), 2026-02-25 and 2026-03-27",
        ),
        "gpt-oss-120b/b200x4": Calibration(
            corrections=Corrections(overhead=0.854, prompt=2.35, sequences=0.02, weights=0.959, compute=1.53, kv=0.564),
            request_s=0.013,
            points=10,
            itl_error=0.045,
            ttft_error=0.11,
            source="InferenceMAX: openai/gpt-oss-120b, vLLM 0.15.1 (B200) and 0.18.0 (H100, H200), 2026-02-25 and 2026-03-27",
        ),
        "gpt-oss-120b/b200x8": Calibration(
            corrections=Corrections(overhead=0.838, prompt=1.97, sequences=1.85, weights=1.03, compute=1.52, kv=0.993),
            request_s=0.012,
            points=3,
            itl_error=0.047,
            ttft_error=0.24,
            source="InferenceMAX: openai/gpt-oss-120b, vLLM 0.15.1 (B200) and 0.18.0 (H100, H200), 2026-02-25 and 2026-03-27",
        ),
        "qwen3-32b/h100x2": Calibration(
            corrections=Corrections(overhead=1.01, prompt=0.433, sequences=3.5, weights=1.01, compute=0.98, kv=1.06),
            request_s=0.005,
            points=26,
            itl_error=0.028,
            ttft_error=None,
            source="AIConfigurator: Qwen/Qwen3-32B, vLLM 0.12",
        ),
        "qwen3-32b/h100x4": Calibration(
            corrections=Corrections(overhead=1.01, prompt=0.0877, sequences=3.66, weights=1.01, compute=1.02, kv=1.03),
            request_s=0.005,
            points=30,
            itl_error=0.022,
            ttft_error=None,
            source="AIConfigurator: Qwen/Qwen3-32B, vLLM 0.12",
        ),
        "qwen3-32b/h100x8": Calibration(
            corrections=Corrections(overhead=1.03, prompt=0.02, sequences=3.91, weights=1.01, compute=1.07, kv=0.853),
            request_s=0.005,
            points=30,
            itl_error=0.023,
            ttft_error=None,
            source="AIConfigurator: Qwen/Qwen3-32B, vLLM 0.12",
        ),
        "llama-3.1-8b/h100": Calibration(
            corrections=Corrections(
                overhead=0.776, prompt=0.98, sequences=0.51, weights=0.954, compute=0.957, kv=0.953
            ),
            request_s=0.005,
            points=3,
            itl_error=0.029,
            ttft_error=None,
            source="yobitelcomm InferenceBench, vLLM 0.21: Llama-3.1-8B FP16 on one H100; "
            "workload variant autoscaler, tutorial: 8B on one H100",
        ),
    }
)
