"""The one error of the development stack.

Its message is for people: what failed, and where to look. It must never carry a password.
"""

from __future__ import annotations


class DevstackError(RuntimeError):
    """Something about the stack failed; the message says what, with the end of the log where there is one."""
