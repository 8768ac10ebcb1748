"""The one error of the demo. Its message is for people: what was expected, and what came instead."""


class DemoError(RuntimeError):
    """The demo can't go on, or saw something else than the story says."""
