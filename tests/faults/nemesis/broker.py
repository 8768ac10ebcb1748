"""Faults of the broker: killed, frozen, and topics that get more partitions while they are read.

There is one broker, so its coordinators move only from its death to its return.
"""

from __future__ import annotations

from confluent_kafka.admin import AdminClient, NewPartitions  # type: ignore[attr-defined]

from tests.faults.nemesis.scene import Scene
from tests.faults.plan import Fault

_INPUTS = ("membership", "methods", "sources")


def broker_killed(scene: Scene, fault: Fault) -> str | None:
    """kill -9, and started on the same data."""
    kafka = scene.arena.stack.kafka
    kafka.kill()
    scene.last(fault.duration_s)
    kafka.start()
    return f"away for {fault.duration_s:g} s and its start"


def broker_frozen(scene: Scene, fault: Fault) -> str | None:
    kafka = scene.arena.stack.kafka
    kafka.pause()
    scene.last(fault.duration_s)
    kafka.resume()
    return f"for {fault.duration_s:g} s"


def partitions_added(scene: Scene, fault: Fault) -> str | None:
    """An input topic gets one or two more; publishers use them at once."""
    topic = scene.topics[_INPUTS[fault.pick % len(_INPUTS)]]
    admin = AdminClient({"bootstrap.servers": scene.arena.stack.kafka.bootstrap_servers, "log_level": 0})
    present = len(admin.list_topics(topic, 5).topics[topic].partitions)
    wanted = present + (1 if fault.strength < 0.5 else 2)
    admin.create_partitions([NewPartitions(topic, wanted)], request_timeout=10)[topic].result()
    scene.partitions_changed()
    return f"{topic}: {present} → {wanted}"
