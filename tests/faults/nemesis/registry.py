"""Faults of the schema registry: away, slow, and answering 500."""

from __future__ import annotations

from tests.faults.nemesis.scene import Scene
from tests.faults.plan import Fault
from tests.faults.proxy import Proxy, Weather

_ANSWER = b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


def registry_away(scene: Scene, fault: Fault) -> str | None:
    return _weather(scene, fault, Weather(refusing=True))


def registry_slow(scene: Scene, fault: Fault) -> str | None:
    return _weather(scene, fault, Weather(delay_s=0.2 + 3 * fault.strength))


def registry_failing(scene: Scene, fault: Fault) -> str | None:
    return _weather(scene, fault, Weather(answer=_ANSWER))


def _weather(scene: Scene, fault: Fault, weather: Weather) -> str | None:
    """Counted where a worker asked meanwhile. Connections that are kept open are cut, so that it has to ask anew."""
    proxy: Proxy | None = scene.arena.registry
    if proxy is None:
        return None
    with proxy.under(weather) as effect:
        proxy.cut_all()
        scene.last(fault.duration_s)
    return f"{effect.touched} times in {fault.duration_s:g} s" if effect.touched else None
