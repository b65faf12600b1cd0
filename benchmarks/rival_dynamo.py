"""How NVIDIA Dynamo's frontend is started, with its router's and its workers' limits.

It takes no HTTP engines, only workers of its own kind: one for each engine, which forwards (`dynamo_worker.py`). Discovery through
files, requests over TCP.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from beaconry.workload.prompts import WORDS
from benchmarks.rival import (
    BANDS,
    BATCHED_TOKENS,
    BLOCKS,
    ENGINES,
    FULL_RATE,
    MODEL,
    PLACES,
    WAIT_S,
    Headers,
    Rival,
    Site,
)

PYTHON = "venv-dynamo/bin/python"
_WORKER = Path(__file__).with_name("dynamo_worker.py")


def frontend(*options: object, classes: Sequence[dict[str, object]] = ()) -> Callable[[Site], Sequence[str]]:
    """The frontend with its router by KV load, with these options and queues."""

    def command(site: Site) -> Sequence[str]:
        where = ("--http-host", "127.0.0.1", "--http-port", str(site.port), *_PLANES)
        router = ("--router-mode", "kv", "--kv-cache-block-size", "16", "--no-router-kv-events")
        told = [*map(str, options)]
        if classes:
            bucket = [{"min_tokens": 0, "bucket": "any"}]
            policy = {"default_policy_family": "unknown", "uncached_isl_buckets": bucket, "policy_classes": classes}
            (site.folder / "policy.yaml").write_text(json.dumps(policy))
            told += ["--router-policy-config", str(site.folder / "policy.yaml")]
        start = ("--router-min-initial-workers", str(len(site.engines)))
        return *_environment(site), str(site.peers / PYTHON), "-m", "dynamo.frontend", *where, *router, *start, *told

    return command


def workers(**environment: int) -> Callable[[Site], Sequence[Sequence[str]]]:
    """A worker for each engine, with these variables in its environment."""

    def commands(site: Site) -> Sequence[Sequence[str]]:
        model = model_folder(site.folder / "model")
        python = (*_environment(site, **environment), str(site.peers / PYTHON), str(_WORKER))
        return [
            [*python, str(engine), MODEL, model, str(PLACES), str(BLOCKS), str(BATCHED_TOKENS)]
            for engine in site.engines
        ]

    return commands


def policy_class(band: str) -> Headers:
    """Which of its router's queues."""
    return (("x-dynamo-meta-policy-class", band),)


def _environment(site: Site, **more: int) -> Sequence[str]:
    (site.folder / "found").mkdir(exist_ok=True)
    hosts = ("DYN_TCP_RPC_HOST", "DYN_TCP_RESPONSE_STREAM_HOST", "DYN_EVENT_PLANE_HOST")
    told = {"DYN_FILE_KV": site.folder / "found", "DYN_LOG": "error", "HF_HUB_OFFLINE": 1, **more}
    return "env", *(f"{name}=127.0.0.1" for name in hosts), *(f"{name}={value}" for name, value in told.items())


def model_folder(folder: Path) -> str:
    """A model folder without weights: a tokenizer for which each of the prompts' words is a token."""
    folder.mkdir()
    special = ["<unk>", "<s>", "</s>"]
    vocabulary = {word: number for number, word in enumerate([*special, *(f"▁{word.strip()}" for word in WORDS)])}
    names = [{"id": i, "content": text, "special": True, "normalized": False} for i, text in enumerate(special)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [name | flags for name in names],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, space]},
        "decoder": space,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }  # fmt: skip
    template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    files = {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
            "model_max_length": 32768, "chat_template": template,
        },
        "config.json": {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": len(vocabulary),
            "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": 32768, "bos_token_id": 1, "eos_token_id": 2,
        },
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2},
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return str(folder)


_PLANES = ("--discovery-backend", "file", "--request-plane", "tcp", "--event-plane", "zmq")
_QUEUE = int(WAIT_S * FULL_RATE / ENGINES)
"""Requests per worker that are served while one may wait."""
_BUSY_TOKENS = 600
"""Prompt tokens of two or three requests without a first token: an engine with more has no place for another. Found by trial."""
_WAITING = {"interactive": _QUEUE, "standard": 10, "batch": 1}
"""Requests per worker in each band's queue; the lower ones found by trial."""
_QUANTUM = {"interactive": 100_000, "standard": 1000, "batch": 50}
"""Tokens of each band's turn: the top one need not wait for the others."""


def _class(name: str, waiting: int, quantum: int, **family: str) -> dict[str, object]:
    limits = {"prefill_busy_threshold": 400, "request_queue_limit_per_worker": waiting}
    return {"name": name, "queue_policy": "fcfs", "quantum": quantum, **limits, **family}


_CLASSES = [_class(band, _WAITING[band], _QUANTUM[band]) for band in BANDS]
_OTHER = _class("other", 1, 1, policy_family="unknown", cache_bucket="any")
DYNAMO = (
    Rival("Dynamo, no limit", PYTHON, frontend(), workers()),
    Rival(
        "Dynamo, engine limit and queue",
        PYTHON,
        frontend(),
        workers(DYN_ENGINE_REQUEST_LIMIT=PLACES, DYN_DYNAMO_REQUEST_QUEUE_LIMIT=_QUEUE),
    ),
    Rival("Dynamo, busy threshold", PYTHON, frontend("--active-prefill-tokens-threshold", _BUSY_TOKENS), workers()),
    Rival("Dynamo, queues by band", PYTHON, frontend(classes=[*_CLASSES, _OTHER]), workers(), policy_class),
)
