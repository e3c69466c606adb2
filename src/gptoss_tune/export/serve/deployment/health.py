"""Probes of a server: what is asked, and how long it may load before it counts as dead.

Images are not known to hold curl; each holds Python. A probe from inside the container reaches a
server that listens on the loopback address alone, which an orchestrator's own request does not.
"""

from __future__ import annotations

import math

LIVE_PERIOD_S = 15
FAILURES = 4
_BYTES_PER_S = 200e6  # of a network disk, the slowest that a model is usually read from
_START_S = 600  # compiling kernels and recording CUDA graphs


def probe_command(port: int, path: str, key: str | None = None) -> list[str]:
    """Return the command that succeeds when ``path`` answers with a status below 400.

    No proxy is asked, whatever ``http_proxy`` says.

    Args:
        port: Where the server listens on the loopback address.
        path: What is asked for.
        key: The variable of the key, for a path that answers with one alone.
    """
    url = f"'http://127.0.0.1:{port}{path}'"
    asked = f"{url}, headers={{'Authorization': 'Bearer ' + os.environ['{key}']}}" if key else url
    return [
        "python3",
        "-c",
        f"import os, urllib.request as u; u.build_opener(u.ProxyHandler({{}})).open("
        f"u.Request({asked}), timeout=5)",
    ]


def loading_s(weights: int) -> int:
    """Return the seconds that a server may take before it answers, in whole minutes.

    Ten minutes to compile, and the weights read at 200 MB/s: no measurement, a bound after which
    waiting longer is pointless.
    """
    return 60 * math.ceil((_START_S + weights / _BYTES_PER_S) / 60)
