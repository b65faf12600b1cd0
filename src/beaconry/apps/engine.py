"""`beaconry engine`: one simulated engine that behaves as vLLM does, in its interfaces and its timing. No model, no accelerator."""

import argparse
import asyncio
import gc
import signal

import msgspec
import uvloop
from msgspec.structs import replace

from beaconry.engine_model.kv_link import Wire, make_way
from beaconry.engine_model.presets import Preset
from beaconry.engine_model.step_time import LinearStepTime, StepTime
from beaconry.engine_model.values import EngineSettings
from beaconry.io.engine.kv_params import KvRole, KvTransferOptions
from beaconry.io.engine.options import EngineOptions, KvEventsOptions, OffloadOptions
from beaconry.io.engine.server import serve_engine
from beaconry.io.preset_file import read_preset
from beaconry.values.block_hash import ALGORITHMS
from beaconry.values.errors import OperatorError
from beaconry.wire.kv_events import Form

DEFAULT_PRESET = "llama-3.1-8b/h100"
MAX_MODEL_LEN = 131_072
"""What most current models were trained for; less where the KV memory holds less."""

_EVERYWHERE = ("", "0.0.0.0", "::")  # noqa: S104 (refused, not bound)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options. Names and defaults are vLLM's where it has them."""
    add = parser.add_argument
    add(
        "--model",
        action="append",
        metavar="NAME",
        help="name it answers to; may be repeated (default: the preset's model)",
    )
    add(
        "--preset",
        default=DEFAULT_PRESET,
        metavar="MODEL/HARDWARE|FILE",
        help="whose timing and KV memory: for example qwen3-32b/h100x2, or a file of `beaconry fit` (default: %(default)s)",
    )
    add(
        "--step-time",
        metavar="NAME=VALUE,...",
        help="instead of the preset's timing: fixed_s, per_seq_s, "
        "per_context_token_s, prefill_tps, prompt_s, per_attended_s; those left out cost nothing",
    )
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=8000, help="port to listen on, 0 for a free one (default: %(default)s)")
    add("--speed", type=float, default=1.0, help="model seconds per real second (default: %(default)s)")
    add("--seed", type=int, default=0, help="of replies and noise (default: %(default)s)")
    add("--blocks", type=int, help="KV blocks (default: what the preset's memory holds)")
    add("--block-size", type=int, help="tokens per block (default: the preset's, 16)")
    add("--max-num-seqs", type=int, help="running sequences at most (default: the preset's, 256)")
    add("--max-num-batched-tokens", type=int, help="token budget of a step (default: the preset's, 8192)")
    add("--max-model-len", type=int, help=f"tokens of prompt and reply (default: {MAX_MODEL_LEN}, or less KV memory)")
    add("--max-num-queued-reqs", type=int, default=16_384, help="waiting sequences at most (default: %(default)s)")
    add(
        "--scheduling-policy",
        choices=("fcfs", "priority"),
        default="fcfs",
        help="order of service: as requests come, or by their `priority`, the lowest first (default: %(default)s)",
    )
    add("--no-enable-prefix-caching", action="store_true", help="share no blocks")
    add(
        "--prefix-caching-hash-algo",
        choices=sorted(ALGORITHMS),
        default="fast",
        help="block hashes (default: %(default)s)",
    )
    add("--step-noise", type=float, default=0.0, help="relative deviation of step times (default: %(default)s)")
    add("--shutdown-timeout", type=float, default=20.0, metavar="SECONDS", help="how long running requests may finish after "
        "SIGTERM (default: %(default)s)")  # fmt: skip
    add(
        "--lora-modules",
        nargs="+",
        default=[],
        metavar="NAME=PATH",
        help="LoRA adapters that it answers to; they keep cached blocks apart and change nothing else",
    )
    _configure_events(parser)
    _configure_offloading(parser)
    _configure_transfer(parser)


def _configure_offloading(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the CPU tier; the first one is vLLM's."""
    add = parser.add_argument_group("KV offloading", "Copies of cached blocks in the host's memory.").add_argument
    add("--kv-offloading-size", type=float, metavar="GIB", help="memory for them (default: none)")
    add(
        "--kv-offloading-bandwidth",
        type=float,
        default=25.0,
        metavar="GB/S",
        help="at which they are loaded, per accelerator (default: %(default)s, a PCIe 4.0 link)",
    )


def _configure_transfer(parser: argparse.ArgumentParser) -> None:
    """Declare the options of prompts handed over, which are keys of vLLM's --kv-transfer-config and of a scenario's `network`."""
    add = parser.add_argument_group(
        "KV transfer", "Prompts computed on one engine and decoded on another, as by vLLM's NIXL connector."
    ).add_argument
    add("--kv-role", choices=[role.value for role in KvRole], help="what it does for other engines (default: nothing)")
    add(
        "--kv-link",
        choices=[wire.value for wire in Wire],
        default=Wire.INFINIBAND.value,
        help="what KV goes over (default: %(default)s)",
    )
    add("--kv-gb-per-s", type=float, metavar="GB/S", help="per accelerator and direction, instead of the link's own")
    add(
        "--kv-latency-s",
        type=float,
        metavar="SECONDS",
        help="of a transfer, beside its bytes, instead of the link's own",
    )
    add(
        "--kv-lease-s",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="real ones, for which KV is kept that nobody has asked for (default: %(default)s)",
    )
    add(
        "--kv-load-failure-policy",
        choices=("fail", "recompute"),
        default="fail",
        help="what becomes of a request whose KV cannot be fetched (default: %(default)s)",
    )
    add("--kv-host", metavar="HOST", help="where other engines reach it (default: what --host says)")


def _configure_events(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the KV events, which are the keys of vLLM's --kv-events-config."""
    add = parser.add_argument_group("KV events", "What the prefix cache holds, told over ZeroMQ.").add_argument
    add("--kv-events-port", type=int, metavar="PORT", help="publish them here, 0 for a free port (default: not at all)")
    add("--kv-replay-port", type=int, metavar="PORT", help="repeat past ones here on request (default: not at all)")
    add("--kv-events-topic", default="", metavar="TOPIC", help="of the messages (default: empty)")
    add(
        "--kv-events-form",
        choices=[form.value for form in Form],
        default=Form.MAPS.value,
        help="how events are written: as by vLLM since 0.30, or before (default: %(default)s)",
    )
    add(
        "--kv-events-buffer-steps",
        type=int,
        default=10_000,
        metavar="STEPS",
        help="steps remembered for the replay (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop. 0: stopped; raises OperatorError for options that cannot be had."""
    options = options_of(args)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(options, args.host, args.port, args.shutdown_timeout))
    return 0


async def _serve(options: EngineOptions, host: str, port: int, grace_s: float) -> None:
    """Run one engine from start to drain; a second signal cuts the drain short."""
    loop = asyncio.get_running_loop()
    asked, hurried = asyncio.Event(), asyncio.Event()

    def stop() -> None:
        (hurried if asked.is_set() else asked).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    engine, server = await serve_engine(options, host, port)
    gc.freeze()  # imports and settings live for ever: spare the collector its walks over them
    print(f"ready http://{host}:{server.port}", flush=True)
    await asked.wait()
    deadline_s = loop.time() + grace_s
    drained = asyncio.ensure_future(engine.generation.drain(grace_s))
    cut = asyncio.ensure_future(hurried.wait())
    await asyncio.wait((drained, cut), return_when=asyncio.FIRST_COMPLETED)
    drained.cancel()
    cut.cancel()
    if not hurried.is_set():
        await server.drain(deadline_s)
    await server.abort_all()
    await engine.close()


def options_of(args: argparse.Namespace) -> EngineOptions:
    """What the command line asks for. OperatorError for what cannot be had."""
    preset = read_preset(args.preset)
    settings = _settings(args, preset.settings)
    return EngineOptions(
        models=tuple(args.model or (preset.model,)),
        settings=settings,
        step_time=preset.step_time if args.step_time is None else _step_time(args.step_time),
        request_s=preset.request_s if args.step_time is None else 0.0,
        max_model_len=args.max_model_len or min(MAX_MODEL_LEN, settings.num_blocks * settings.block_tokens),
        speed=args.speed,
        adapters=_adapters(args.lora_modules),
        seed=args.seed,
        hash_algorithm=args.prefix_caching_hash_algo,
        max_queued=args.max_num_queued_reqs,
        kv_events=_kv_events(args),
        offload=_offload(args, preset, settings.block_tokens),
        kv_transfer=None if args.kv_role is None else _kv_transfer(args, preset),
    )


def _settings(args: argparse.Namespace, settings: EngineSettings) -> EngineSettings:
    """The preset's settings, with what the command line says instead."""
    if args.block_size is not None:
        blocks = settings.num_blocks * settings.block_tokens // args.block_size
        settings = replace(settings, num_blocks=blocks, block_tokens=args.block_size)
    given = {
        "num_blocks": args.blocks,
        "max_num_seqs": args.max_num_seqs,
        "max_num_batched_tokens": args.max_num_batched_tokens,
    }
    return replace(
        settings,
        prefix_caching=not args.no_enable_prefix_caching,
        by_priority=args.scheduling_policy == "priority",
        step_noise=args.step_noise,
        **{name: value for name, value in given.items() if value is not None},
    )


def _offload(args: argparse.Namespace, preset: Preset, block_tokens: int) -> OffloadOptions | None:
    if args.kv_offloading_size is None:
        return None
    if preset.kv_bytes_per_token is None:
        raise OperatorError(
            f"--kv-offloading-size: {preset.name} does not say how large KV is; add kvBytesPerToken to it"
        )
    block_bytes = preset.kv_bytes_per_token * block_tokens
    blocks = int(args.kv_offloading_size * 2**30 / block_bytes)
    if blocks < 1 or args.kv_offloading_bandwidth <= 0.0:
        raise OperatorError(
            f"--kv-offloading-size {args.kv_offloading_size:g} at {args.kv_offloading_bandwidth:g} GB/s: a block has "
            f"{block_bytes:g} bytes, and the bandwidth must be above 0"
        )
    bytes_per_s = 1e9 * args.kv_offloading_bandwidth * preset.accelerators
    return OffloadOptions(blocks=blocks, load_s=block_bytes / bytes_per_s)


def _kv_transfer(args: argparse.Namespace, preset: Preset) -> KvTransferOptions:
    if preset.kv_bytes_per_token is None:
        raise OperatorError(f"--kv-role: {preset.name} does not say how large KV is; add kvBytesPerToken to it")
    for flag, value in (("--kv-gb-per-s", args.kv_gb_per_s), ("--kv-lease-s", args.kv_lease_s)):
        if value is not None and value <= 0.0:
            raise OperatorError(f"{flag} is {value:g}: it must be above 0")
    if args.kv_latency_s is not None and args.kv_latency_s < 0.0:
        raise OperatorError(f"--kv-latency-s is {args.kv_latency_s:g}: it must not be below 0")
    host = args.kv_host or args.host
    if host in _EVERYWHERE and args.kv_role != KvRole.CONSUMER:
        raise OperatorError(f"--kv-role {args.kv_role}: {host} is no address that others reach it at; add --kv-host")
    return KvTransferOptions(
        role=KvRole(args.kv_role),
        way=make_way(
            Wire(args.kv_link),
            preset.kv_bytes_per_token,
            preset.accelerators,
            gb_per_s=args.kv_gb_per_s,
            latency_s=args.kv_latency_s,
        ),
        host=host,
        tensor=preset.accelerators,
        lease_s=args.kv_lease_s,
        recompute=args.kv_load_failure_policy == "recompute",
    )


def _adapters(modules: list[str]) -> dict[str, str]:
    adapters = dict(module.partition("=")[::2] for module in modules)
    if not all(name and path for name, path in adapters.items()):
        raise OperatorError(f"--lora-modules {' '.join(modules)}: write NAME=PATH for each adapter")
    return adapters


def _kv_events(args: argparse.Namespace) -> KvEventsOptions | None:
    if args.kv_events_port is None:
        if args.kv_replay_port is not None:
            raise OperatorError("--kv-replay-port: nothing is published to be repeated; add --kv-events-port")
        return None
    if args.kv_events_buffer_steps < 1:
        raise OperatorError(f"--kv-events-buffer-steps is {args.kv_events_buffer_steps}: it must be at least 1")
    return KvEventsOptions(
        port=args.kv_events_port,
        replay_port=args.kv_replay_port,
        topic=args.kv_events_topic,
        form=Form(args.kv_events_form),
        buffer_steps=args.kv_events_buffer_steps,
    )


def _step_time(text: str) -> StepTime:
    pairs = dict(item.partition("=")[::2] for item in text.split(","))
    unknown = pairs.keys() - set(LinearStepTime.__struct_fields__)
    if unknown:
        raise OperatorError(f"--step-time: no {min(unknown)!r}; it has {', '.join(LinearStepTime.__struct_fields__)}")
    try:
        return msgspec.convert({"fixed_s": "0", **pairs}, LinearStepTime, strict=False)
    except msgspec.ValidationError as error:
        raise OperatorError(f"--step-time {text}: {error}") from error
