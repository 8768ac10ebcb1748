"""Faults of the lines between workers and database, and workers and broker: slow, narrow, stalled, half-open, refused, cut."""

from __future__ import annotations

from tests.faults.nemesis.scene import Scene
from tests.faults.plan import Fault
from tests.faults.proxy import Proxy, Weather


def database_slow(scene: Scene, fault: Fault) -> str | None:
    return _weather(scene, fault, scene.arena.database, Weather(delay_s=0.002 + 0.1 * fault.strength**2))


def database_narrow(scene: Scene, fault: Fault) -> str | None:
    return _weather(scene, fault, scene.arena.database, Weather(bytes_per_s=20_000 + 400_000 * fault.strength))


def database_stalled(scene: Scene, fault: Fault) -> str | None:
    return _weather(scene, fault, scene.arena.database, Weather(stalled=True))


def database_half_open(scene: Scene, fault: Fault) -> str | None:
    return _weather(scene, fault, scene.arena.database, Weather(swallowing=True))


def database_refused(scene: Scene, fault: Fault) -> str | None:
    return _refused(scene, fault, scene.arena.database)


def database_cut(scene: Scene, fault: Fault) -> str | None:
    """Connections reset in the middle of what they say, after a random number of bytes."""
    return _weather(scene, fault, scene.arena.database, Weather(cut_after=1 + int(20_000 * fault.strength**3), cuts=4))


def commit_cut_before(scene: Scene, fault: Fault) -> str | None:
    """The server never sees the COMMIT: it did not happen, and the client can't know."""
    return _weather(scene, fault, scene.arena.database, Weather(cut_commit="before", cuts=3))


def commit_cut_after(scene: Scene, fault: Fault) -> str | None:
    """The server has the COMMIT, its answer is lost: it happened, and the client can't know."""
    return _weather(scene, fault, scene.arena.database, Weather(cut_commit="after", cuts=3))


def broker_slow(scene: Scene, fault: Fault) -> str | None:
    return _weather(scene, fault, scene.arena.broker, Weather(delay_s=0.005 + 0.3 * fault.strength**2))


def broker_narrow(scene: Scene, fault: Fault) -> str | None:
    return _weather(scene, fault, scene.arena.broker, Weather(bytes_per_s=20_000 + 400_000 * fault.strength))


def broker_stalled(scene: Scene, fault: Fault) -> str | None:
    return _weather(scene, fault, scene.arena.broker, Weather(stalled=True))


def broker_half_open(scene: Scene, fault: Fault) -> str | None:
    return _weather(scene, fault, scene.arena.broker, Weather(swallowing=True))


def broker_refused(scene: Scene, fault: Fault) -> str | None:
    return _refused(scene, fault, scene.arena.broker)


def broker_cut(scene: Scene, fault: Fault) -> str | None:
    """Connections reset in the middle of what they say, after a random number of bytes."""
    return _weather(scene, fault, scene.arena.broker, Weather(cut_after=1 + int(20_000 * fault.strength**3), cuts=4))


def _refused(scene: Scene, fault: Fault, proxy: Proxy) -> str | None:
    """All connections reset, and no new ones let in."""
    with proxy.under(Weather(refusing=True)) as effect:
        cut = proxy.cut_all()
        scene.last(fault.duration_s)
    return f"{cut} cut, {effect.touched} refused in {fault.duration_s:g} s" if cut or effect.touched else None


def _weather(scene: Scene, fault: Fault, proxy: Proxy, weather: Weather) -> str | None:
    with proxy.under(weather) as effect:
        scene.last(fault.duration_s)
    changed = [
        f"{name}={getattr(weather, name)}"
        for name in weather.__slots__
        if getattr(weather, name) not in {0, "", b"", 1_000_000}
    ]
    return f"{effect.touched} times {', '.join(changed)} in {fault.duration_s:g} s" if effect.touched else None
