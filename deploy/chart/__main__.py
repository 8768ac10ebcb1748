"""`python -m deploy.chart`: fetch the tools and judge chart, manifests and alerts; `write` renders the manifests anew."""

import os
import subprocess
import sys

from deploy.chart.rendering import write
from deploy.chart.tools import ToolMissing, fetch


def main(arguments: list[str]) -> int:
    """The exit code."""
    try:
        tools = fetch()
    except ToolMissing as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments == ["write"]:
        write(tools.helm)
        return 0
    found = {"HELM": tools.helm, "KUBE_SCORE": tools.kube_score, "PROMTOOL": tools.promtool}
    environment = os.environ | {f"CHART_{name}": str(path) for name, path in found.items()}
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-n0",
            "-q",
            "-rA",
            "tests/deploy",
            "-mnot image",
            *arguments,
        ],
        env=environment,
        check=False,
    ).returncode


sys.exit(main(sys.argv[1:]))
