"""How litellm's proxy is started, with the limits it has.

It refuses what a deployment or a key has no place for and has no queue. Without a database, keys and their limits come from a function of
the operator's.
"""

import json
from collections.abc import Callable, Sequence
from textwrap import dedent

from benchmarks.rival import ENGINES, KEYS, MODEL, PLACES, Rival, Site


def litellm(deployment: dict[str, int], key: dict[str, int]) -> Callable[[Site], Sequence[str]]:
    """The proxy with these limits of each deployment and of each key."""

    def command(site: Site) -> Sequence[str]:
        (site.folder / "keys.py").write_text(
            dedent(f"""\
                from litellm.proxy._types import UserAPIKeyAuth

                async def known(request, api_key):
                    if api_key not in {tuple(KEYS.values())}:
                        raise ValueError("unknown key")
                    return UserAPIKeyAuth(api_key=api_key, **{key})
            """)
        )
        model = {"model": f"hosted_vllm/{MODEL}", "api_key": "none", **deployment}
        config = {
            "model_list": [
                {"model_name": MODEL, "litellm_params": {"api_base": f"http://127.0.0.1:{port}/v1", **model}}
                for port in site.engines
            ],
            "router_settings": {"routing_strategy": "least-busy"},
            "litellm_settings": {"telemetry": False},
            "general_settings": {"custom_auth": "keys.known"},
        }
        (site.folder / "litellm.yaml").write_text(json.dumps(config))
        settings = ("LITELLM_LOG=CRITICAL", "LITELLM_LOCAL_MODEL_COST_MAP=True", f"LITELLM_MASTER_KEY=sk-{MODEL}")
        where = ("--host", "127.0.0.1", "--port", str(site.port), "--num_workers", "1")
        return "env", *settings, str(site.peers / PROGRAM), "--config", str(site.folder / "litellm.yaml"), *where

    return command


PROGRAM = "venv-litellm/bin/litellm"
_EACH = {"max_parallel_requests": PLACES}
_SHARE = {"max_parallel_requests": ENGINES * PLACES // len(KEYS)}
LITELLM = (
    Rival("litellm, no limit", PROGRAM, litellm({}, {}), fills_core=True),
    Rival("litellm, limit per engine", PROGRAM, litellm(_EACH, {}), fills_core=True),
    Rival("litellm, and a third for each key", PROGRAM, litellm(_EACH, _SHARE), fills_core=True),
)
