"""The real services the project runs on, for demo, tests and bench alike: Kafka, PostgreSQL, a schema registry.

`with Stack.start() as stack:` gives their addresses; they run natively, in Docker, or elsewhere (DEVSTACK). Never for
production: nothing here asks for a password.
"""

from devstack.errors import DevstackError
from devstack.parts import Kafka, Part, Postgres, Registry
from devstack.stack import Kind, Stack

__all__ = ["DevstackError", "Kafka", "Kind", "Part", "Postgres", "Registry", "Stack"]
