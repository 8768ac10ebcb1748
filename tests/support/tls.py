"""Certificates for tests: an authority, what it issues, and one that nobody trusts. Made anew for each run, by trustme."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

KEY_PASSWORD = "k3y-p4ssw0rd-of-the-client"


class Authority:
    """One authority; its files are in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._ca = trustme.CA()
        self.certificate = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.certificate))

    def issue(self, name: str, *identities: str, common_name: str | None = None, expired: bool = False) -> Certificate:
        """A certificate for addresses or names, or for whom `common_name` says."""
        times = {}
        if expired:
            now = datetime.now(UTC)
            times = {"not_before": now - timedelta(days=3), "not_after": now - timedelta(days=2)}
        leaf = self._ca.issue_cert(*identities, common_name=common_name, **times)  # type: ignore[arg-type]
        return Certificate(self._folder / name, leaf)


class Certificate:
    """A certificate and its key as PEM files: apart, together as Kafka reads them, and the key encrypted."""

    def __init__(self, stem: Path, leaf: trustme.LeafCert) -> None:
        key = load_pem_private_key(leaf.private_key_pem.bytes(), None)
        plain = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(KEY_PASSWORD.encode()))
        chain = b"".join(each.bytes() for each in leaf.cert_chain_pems)
        self.chain = _written(stem, "crt", chain)
        self.key = _written(stem, "key", plain)
        self.locked_key = _written(stem, "locked.key", locked)
        self.both = _written(stem, "pem", plain + chain)


def _written(stem: Path, suffix: str, content: bytes) -> Path:
    path = stem.with_name(f"{stem.name}.{suffix}")
    path.write_bytes(content)
    path.chmod(0o600)
    return path
