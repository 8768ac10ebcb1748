"""What goes wrong, kind by kind: workers, broker, database, lines, registry.

Each fault is a function `(scene, fault) -> str | None` of the name it has in tests/faults/kinds.py. It returns in words
what it did, or None where nothing came of it; then it isn't counted. It undoes what it did before it returns.
"""

from tests.faults.nemesis.director import Director, Entry
from tests.faults.nemesis.scene import Scene

__all__ = ["Director", "Entry", "Scene"]
