"""Who is at the command, for what goes on record (table `intervention`)."""

import getpass
import os
import socket


def operator() -> str:
    """user@host. In a container the user may be a number that nobody gave a name."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
