"""The configuration of a peer's Zenoh session."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from msfusion.errors import UserError, optional
from msfusion.peers.certificates import AUTHORITY, certificate, check_own, key, names_in
from msfusion.peers.settings import Link

ROUTER = "router"
"""Name on the certificate of a router."""

_BLOCK = 60_000_000  # microseconds: a slow link is waited for; by default it is closed after 5 s

_LOG = "error,zenoh_link_tls::unicast=warn"
"""Zenoh's own words: at ``warn`` it says there who is refused and why, and nothing else."""


def zenoh() -> Any:
    """The engine; raises UserError where it is not installed."""
    return optional("zenoh", "eclipse-zenoh, which carries values between peers", "msfusion[peers]")


def opened(config: str) -> Any:
    """A session; raises UserError where there can be none, as at a port in use."""
    engine = zenoh()
    engine.init_log_from_env_or(_LOG)
    try:
        return engine.open(engine.Config.from_json5(config))
    except engine.ZError as error:
        raise UserError(_unopened(json.loads(config), str(error))) from error


def _unopened(config: dict[str, Any], why: str) -> str:
    listens = config["listen"]["endpoints"]
    remedy = "give --listen an address of this machine and a port that is free"
    if not listens:
        remedy = "give --connect the address of a router that is up"
    told = re.sub(r" at \S+\.rs:\d+\.?", "", why).rstrip(". ")  # where in Zenoh's own source
    tls = config["transport"]["link"].get("tls")
    also = f", and look at the certificates in {Path(tls['root_ca_certificate']).parent}" if tls else ""
    return (
        f"expected a session at {', '.join(listens or config['connect']['endpoints'])}, got from Zenoh "
        f"{told!r}; {remedy}{also}"
    )


def configuration(link: Link, name: str, group: str, lease: float, *, router: bool = False) -> str:
    """JSON of a session's configuration; raises UserError where a certificate is missing or of no use."""
    kind = "tcp" if link.certificates is None else "tls"
    mode: Literal["peer", "client", "router"] = "router" if router else "client" if link.outbound else "peer"
    config: dict[str, Any] = {
        "mode": mode,
        "connect": {
            "endpoints": [f"{kind}/{address}" for address in link.connect],
            "timeout_ms": -1,
            "exit_on_failure": False,
            "retry": {"period_init_ms": 250, "period_max_ms": 2000, "period_increase_factor": 2},
        },
        "listen": {"endpoints": [] if link.outbound else [f"{kind}/{address}" for address in link.listen]},
        "scouting": {"multicast": {"enabled": False}, "gossip": {"enabled": True}},
        "transport": {
            "shared_memory": {"enabled": False},
            "link": {
                "tx": {
                    "lease": int(lease * 1000),
                    "queue": {"congestion_control": {"block": {"wait_before_close": _BLOCK}}},
                }
            },
        },
    }
    if link.certificates is not None:
        config["transport"]["link"]["tls"] = _tls(link.certificates, name)
        config["access_control"] = _access(group, names_in(link.certificates))
    return json.dumps(config)


def _tls(folder: Path, name: str) -> dict[str, Any]:
    """Both sides show a certificate of the group's authority. It names a participant, not a machine, so the
    address is not compared with it."""
    own, secret = str(certificate(folder, name)), str(key(folder, name))
    check_own(folder, name)
    return {
        "root_ca_certificate": str(folder / AUTHORITY),
        "enable_mtls": True,
        "verify_name_on_connect": False,
        "listen_certificate": own,
        "listen_private_key": secret,
        "connect_certificate": own,
        "connect_private_key": secret,
        "close_link_on_expiration": True,
    }


def _access(group: str, names: Sequence[str]) -> dict[str, Any]:
    """Only names on the list may say or hear anything, and that of this group alone."""
    return {
        "enabled": True,
        "default_permission": "deny",
        "rules": [
            {
                "id": "group",
                "permission": "allow",
                "flows": ["ingress", "egress"],
                "messages": [
                    "put",
                    "query",
                    "reply",
                    "declare_subscriber",
                    "declare_queryable",
                    "declare_liveliness_subscriber",
                    "liveliness_query",
                    "liveliness_token",
                ],
                "key_exprs": [f"msfusion/{group}/**"],
            }
        ],
        "subjects": [{"id": "members", "cert_common_names": [*names]}],
        "policies": [{"rules": ["group"], "subjects": ["members"]}],
    }
