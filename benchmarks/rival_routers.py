"""How each router with a queue or a limit of its own is started in front of the same engines.

What an operator would find in its help or manual: requests in flight at most as many as the engines run at once, and a wait as long as
the client's patience for a first token allows. None of the peers is part of this repository; `missing` says what is not installed.
"""

import json
import sys
from collections.abc import Callable, Sequence

from beaconry.tenancy.keys import hash_of
from benchmarks.rival import BANDS, ENGINES, KEYS, MODEL, OBJECTIVE, PLACES, WAIT_S, Rival, Site, system_program
from benchmarks.rival_dynamo import DYNAMO
from benchmarks.rival_litellm import LITELLM


def beaconry(*, flow: bool) -> Callable[[Site], Sequence[str]]:
    """Ours: bands with priorities and a time to live, and keys for the tenants. No capacity is told."""

    def command(site: Site) -> Sequence[str]:
        bands = [
            {"name": name, "priority": priority, "ttlS": WAIT_S, "ceiling": 1.0 if priority > 0 else 0.2}
            for name, (priority, _) in BANDS.items()
        ]
        tenants = {tenant: {"keys": [hash_of(key)]} for tenant, key in KEYS.items()}
        (site.folder / "tenants.yaml").write_text(json.dumps({"tenants": tenants}))
        config = {
            "listen": {"port": site.port},
            "flow": {"enabled": flow, "bands": bands},
            "tenants": {"file": "tenants.yaml"},
            "trustedHeaders": ["objective"],
            "objectives": {name: {"priority": priority} for name, (priority, _) in BANDS.items()},
            "endpoints": [
                {"name": f"engine-{i}", "host": "127.0.0.1", "port": port, "model": MODEL}
                for i, port in enumerate(site.engines)
            ],
        }
        (site.folder / "gateway.yaml").write_text(json.dumps(config))
        return sys.executable, "-m", "beaconry", "serve", "--config", str(site.folder / "gateway.yaml")

    return command


def token_bucket(venv: str, module: str, *limits: object) -> Callable[[Site], Sequence[str]]:
    """sglang-router and vllm-router, which share these options."""

    def command(site: Site) -> Sequence[str]:
        python = str(site.peers / venv / "bin" / "python")
        urls = [f"http://127.0.0.1:{port}" for port in site.engines]
        where = ["--host", "127.0.0.1", "--port", str(site.port), "--prometheus-port", str(site.port + 1)]
        common = ["--policy", "power_of_two", "--worker-startup-check-interval", "1", "--log-level", "error"]
        module_name = f"{module}.launch_router"
        return python, "-m", module_name, *where, "--worker-urls", *urls, *common, *(str(limit) for limit in limits)

    return command


def haproxy(*, by_priority: bool) -> Callable[[Site], Sequence[str]]:
    """A queue in front of `maxconn` places per engine, with a timeout; a priority class by header if asked for."""

    def command(site: Site) -> Sequence[str]:
        rules = [
            f"http-request set-priority-class int({-priority}) if {{ req.hdr({OBJECTIVE}) -m str {name} }}"
            for name, (priority, _) in BANDS.items()
        ]
        servers = [f"server e{i} 127.0.0.1:{port} maxconn {PLACES}" for i, port in enumerate(site.engines)]
        lines = [
            "global", "nbthread 1", "maxconn 8000",
            "defaults", "mode http", "timeout connect 5s", "timeout client 60s", "timeout server 60s",
            f"timeout queue {int(1000 * WAIT_S)}", "option http-no-delay", "option redispatch 0",
            "frontend door", f"bind 127.0.0.1:{site.port}", *(rules if by_priority else ()), "default_backend engines",
            "backend engines", "balance leastconn", *servers,
        ]  # fmt: skip
        file = site.folder / "haproxy.cfg"
        file.write_text("\n".join(lines) + "\n")
        return str(system_program("haproxy")), "-f", str(file), "-db"

    return command


def nginx(site: Site) -> Sequence[str]:
    """`max_conns` per engine; the free version has no queue behind it."""
    servers = " ".join(f"server 127.0.0.1:{port} max_fails=0 max_conns={PLACES};" for port in site.engines)
    places = " ".join(f"{kind}_temp_path {site.folder}/{kind};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
    file = site.folder / "nginx.conf"
    file.write_text(f"""
daemon off; master_process off; pid {site.folder}/pid; error_log {site.folder}/error crit;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_body_temp_path {site.folder}/bodies; {places}
  upstream engines {{ zone engines 64k; least_conn; {servers} }}
  server {{
    listen 127.0.0.1:{site.port} backlog=4096;
    location / {{ proxy_pass http://engines; proxy_http_version 1.1; proxy_buffering off; }}
  }}
}}
""")
    return str(system_program("nginx")), "-c", str(file), "-p", str(site.folder), "-e", str(site.folder / "error")


def envoy(site: Site) -> Sequence[str]:
    """Circuit breakers: so many connections per engine, one request on each, and half as many requests that wait for one (a second's
    worth; nothing limits how long)."""
    chain = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    router = "envoy.extensions.filters.http.router.v3.Router"
    door = {
        "@type": f"type.googleapis.com/{chain}",
        "stat_prefix": "door",
        "route_config": {
            "virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": [
                    {"match": {"prefix": "/"}, "route": {"cluster": "engines", "timeout": "60s"}}]}
            ]
        },
        "http_filters": [{"name": "router", "typed_config": {"@type": f"type.googleapis.com/{router}"}}],
    }  # fmt: skip
    engines = [{"endpoint": {"address": _address(port)}} for port in site.engines]
    most = {"max_connections": _ALL, "max_requests": 2 * _ALL, "max_pending_requests": _ALL // 2}
    cluster = {
        "name": "engines", "type": "STATIC", "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": {"thresholds": [most], "per_host_thresholds": [{"max_connections": PLACES}]},
        "load_assignment": {"cluster_name": "engines", "endpoints": [{"lb_endpoints": engines}]},
    }  # fmt: skip
    listener = {
        "name": "door",
        "address": _address(site.port),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": door}]}],
    }
    file = site.folder / "envoy.json"
    file.write_text(json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}))
    binary = str(site.peers / _ENVOY)
    return binary, "-c", str(file), "--concurrency", "1", "-l", "error", "--disable-hot-restart"


def _address(port: int) -> dict[str, object]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


_ENVOY = "venv-envoy/bin/envoy"
_ALL = ENGINES * PLACES
_QUEUE = ("--queue-size", _ALL, "--queue-timeout-secs", int(WAIT_S))
_SGLANG, _VLLM = ("venv-sglang", "sglang_router"), ("venv-vllmr", "vllm_router")
_LIMITED = ("--max-concurrent-requests", _ALL, *_QUEUE)
RIVALS = (
    Rival("Beaconry", "", beaconry(flow=True)),
    Rival("Beaconry, flow control off", "", beaconry(flow=False)),
    Rival("sglang-router, no limit", "venv-sglang/bin/python", token_bucket(*_SGLANG)),
    Rival("sglang-router, limit and queue", "venv-sglang/bin/python", token_bucket(*_SGLANG, *_LIMITED)),
    Rival(
        "sglang-router, and a rate of 1/s",
        "venv-sglang/bin/python",
        token_bucket(*_SGLANG, *_LIMITED, "--rate-limit-tokens-per-second", 1),
    ),
    Rival("vllm-router, no limit", "venv-vllmr/bin/python", token_bucket(*_VLLM)),
    Rival("vllm-router, limit and queue", "venv-vllmr/bin/python", token_bucket(*_VLLM, *_LIMITED)),
    Rival(
        "vllm-router, and a rate of 1/s",
        "venv-vllmr/bin/python",
        token_bucket(*_VLLM, *_LIMITED, "--rate-limit-tokens-per-second", 1),
    ),
    Rival("haproxy, maxconn and queue", "haproxy", haproxy(by_priority=False)),
    Rival("haproxy, and priority classes", "haproxy", haproxy(by_priority=True)),
    Rival("nginx, max_conns", "nginx", nginx),
    Rival("Envoy, circuit breakers", _ENVOY, envoy),
    *LITELLM,
    *DYNAMO,
)
