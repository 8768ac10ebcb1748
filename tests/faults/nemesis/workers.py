"""Faults of workers: killed, frozen past their session, told to stop under load, more and fewer of them, clocks that jump."""

from __future__ import annotations

from tests.faults.nemesis.scene import TERMINATION_S, Scene
from tests.faults.plan import Fault


def worker_killed(scene: Scene, fault: Fault) -> str | None:
    """kill -9; another one starts after a while."""
    with scene.fleet.victim(fault.pick) as worker:
        if worker is None:
            return None
        worker.kill()
    scene.last(fault.duration_s)
    return f"{worker.name}; then {scene.fleet.start().name}"


def worker_frozen(scene: Scene, fault: Fault) -> str | None:
    """SIGSTOP for longer than its session in the group and its idle transactions may last, then SIGCONT: a zombie."""
    with scene.fleet.victim(fault.pick) as worker:
        if worker is None:
            return None
        worker.freeze()
        scene.last(fault.duration_s)
        worker.thaw()
    return f"{worker.name} for {fault.duration_s:g} s"


def leader_frozen(scene: Scene, fault: Fault) -> str | None:
    """The worker that publishes, for longer than its lease: it wakes up in the middle of what its successor has published."""
    with scene.session() as session:
        row = session.execute("select holder from relay_lease where expires_at > clock_timestamp()").fetchone()
    if row is None:
        return None
    _, pid, _ = row[0].split(":")
    with scene.fleet.victim(fault.pick, pid=int(pid)) as worker:
        if worker is None:
            return None
        worker.freeze()
        scene.last(fault.duration_s)
        worker.thaw()
    return f"{worker.name} for {fault.duration_s:g} s"


def worker_terminated(scene: Scene, fault: Fault) -> str | None:
    """SIGTERM under load; its end is judged by the checkers. Another one starts after a while."""
    with scene.fleet.victim(fault.pick) as worker:
        if worker is None:
            return None
        worker.terminate(TERMINATION_S)
    scene.last(fault.duration_s)
    return f"{worker.name} ended after {worker.seconds:.1f} s; then {scene.fleet.start().name}"


def worker_added(scene: Scene, fault: Fault) -> str | None:
    """One more for a while, which then is told to stop."""
    worker = scene.fleet.start()
    with worker.busy:
        scene.last(fault.duration_s)
        if not worker.running:
            return None
        worker.terminate(TERMINATION_S)
    return f"{worker.name} for {fault.duration_s:g} s"


def worker_taken_away(scene: Scene, fault: Fault) -> str | None:
    """One fewer for a while."""
    if len(scene.fleet.running) < 2:
        return None
    with scene.fleet.victim(fault.pick) as worker:
        if worker is None:
            return None
        worker.terminate(TERMINATION_S)
    scene.last(fault.duration_s)
    return f"{worker.name}; {fault.duration_s:g} s later {scene.fleet.start().name}"


def worker_clock_jumped(scene: Scene, fault: Fault) -> str | None:
    """Its wall clock jumps by up to twelve hours, either way, and back."""
    with scene.fleet.victim(fault.pick) as worker:
        if worker is None:
            return None
        minutes = round((fault.strength - 0.5) * 24 * 60)
        worker.set_clock(f"{minutes:+d}m")
        scene.last(max(1.2, fault.duration_s))  # it looks once a second
        alive = worker.running
        worker.set_clock("+0")
    return f"{worker.name} by {minutes:+d} minutes" if alive else None
