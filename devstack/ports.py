"""Picks TCP ports for services that must keep theirs while they are down.

It must never hand out a port of the system's ephemeral range.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

HOST = "127.0.0.1"
_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 15000


def free_port() -> int:
    """A free port on the loopback address, below the ephemeral range.

    A client that keeps knocking at an ephemeral port with nobody behind it can be given that very port as its own
    source and so connect to itself; a service that was killed could then never come back to its port.
    """
    highest = 32000
    if _EPHEMERAL_RANGE.exists():
        first_ephemeral = int(_EPHEMERAL_RANGE.read_text().split()[0])
        if first_ephemeral > _LOWEST + 1000:
            highest = first_ephemeral - 1
    # Not the seeded generator of `random`: tests that seed it, side by side, would all ask for the same ports.
    candidates = random.SystemRandom().sample(range(_LOWEST, highest), 200)
    for port in candidates:
        with socket.socket() as probe:
            # As the services set it: a port whose last connections are in TIME_WAIT counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port found on {HOST} among {len(candidates)} between {_LOWEST} and {highest}")


def kept_ports(home: Path, count: int) -> list[int]:
    """The ports chosen for this directory the first time: clients may know them."""
    file = home / "ports"
    if file.exists():
        return [int(port) for port in file.read_text(encoding="utf-8").split()]
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    file.write_text(" ".join(map(str, ports)), encoding="utf-8")
    return list(ports)
