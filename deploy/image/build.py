"""Builds the image from deploy/Dockerfile; where its base can't be pulled, from one made here of Debian's packages.

The Dockerfile is the same for both. Where packages come from is taken from the host's pip as a secret of the build: it
must never get into a file that stays, a layer or a label.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from deploy.image.engine import ImageError, client, engine
from sync_worker import __version__

REPOSITORY = Path(__file__).parents[2]
IMAGE = "sync-worker:local"
LOCAL_BASE = "sync-worker-base:bookworm"
_SUITE = "bookworm"  # Its interpreter is 3.11.
_PACKAGES = "python3,python3-venv,ca-certificates,tzdata"
_CA_IN_BUILD = "/run/secrets/ca.pem"
_OF_HOST = ("index-url", "extra-index-url", "trusted-host", "timeout", "proxy")


def build() -> None:
    """Make sync-worker:local. BASE_IMAGE and BASE_DIGEST choose a base that the engine can pull."""
    base = os.environ.get("BASE_IMAGE") or _local_base()
    with tempfile.TemporaryDirectory(prefix="image-") as folder:
        configuration, authorities = _pip(Path(folder))
        arguments = {
            "BASE_IMAGE": base,
            "BASE_DIGEST": os.environ.get("BASE_DIGEST", ""),
            "VERSION": __version__,
            "REVISION": _revision(),
            # Docker's own: for the build's commands alone, and in no layer.
            **{name: os.environ[name] for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY") if name in os.environ},
        }
        _run(
            client(), "build", "--network=host", "--file", "deploy/Dockerfile", "--tag", IMAGE,
            *(part for name, value in arguments.items() for part in ("--build-arg", f"{name}={value}")),
            "--secret", f"id=pip.conf,src={configuration}", "--secret", f"id=ca.pem,src={authorities}", ".",
        )  # fmt: skip


def _local_base() -> str:
    """An image of Debian's own interpreter, made once for each engine."""
    docker = client()
    if subprocess.run([docker, "image", "inspect", LOCAL_BASE], capture_output=True, check=False).returncode == 0:
        return LOCAL_BASE
    if shutil.which("debootstrap") is None or os.geteuid() != 0:
        raise ImageError(
            "a base image is made by debootstrap, as root: install it, or set BASE_IMAGE to one to be pulled"
        )
    with tempfile.TemporaryDirectory(prefix="base-") as folder:
        _run("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _SUITE, folder, quiet=True)
        # dpkg's own records are kept: the image's contents are named by them.
        with subprocess.Popen(
            [
                "tar",
                "--create",
                "--numeric-owner",
                "--exclude=./var/cache/apt/*",
                "--exclude=./var/lib/apt/*",
                "-C",
                folder,
                ".",
            ],
            stdout=subprocess.PIPE,
        ) as tar:
            imported = subprocess.run([docker, "import", "-", LOCAL_BASE], stdin=tar.stdout, check=False)
        if tar.returncode or imported.returncode:
            raise ImageError("the base image could not be imported (see above)")
    return LOCAL_BASE


def _pip(folder: Path) -> tuple[Path, Path]:
    """What the host's pip is told, as a file for the build, and the authorities that it trusts."""
    said = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    given = {}
    for line in said.splitlines():
        name, _, value = line.partition("=")
        given[name.rpartition(".")[2]] = value.strip("'\"").replace("\\n", " ")
    authorities = folder / "ca.pem"
    shutil.copyfile(given.get("cert") or _authorities(), authorities)
    lines = [f"{name} = {given[name]}" for name in _OF_HOST if name in given]
    configuration = folder / "pip.conf"
    configuration.write_text("\n".join(["[global]", f"cert = {_CA_IN_BUILD}", *lines, ""]), encoding="utf-8")
    return configuration, authorities


def _authorities() -> str:
    from certifi import where  # noqa: PLC0415 - only where pip is told of no other

    return where()


def _revision() -> str:
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return git.stdout.strip() or "unknown"


def _run(*command: str, quiet: bool = False) -> None:
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "DOCKER_BUILDKIT": "1"},
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.STDOUT if quiet else None,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ImageError(f"{command[0]} {command[1]} ended with {done.returncode}\n{(done.stdout or '')[-3000:]}")


def main(arguments: list[str]) -> int:
    """`build`, or `test` with the arguments of pytest: it builds first, as what is tested is what is here."""
    try:
        with engine():
            build()
            if arguments[:1] != ["test"]:
                return 0
            tests = [sys.executable, "-m", "pytest", "-n0", "-mimage", "tests/deploy", *arguments[1:]]
            environment = {**os.environ, "DEVSTACK": "native", "SYNC_WORKER_IMAGE": IMAGE}
            return subprocess.run(tests, cwd=REPOSITORY, env=environment, check=False).returncode
    except ImageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
