"""What makes a run worthless: a result that is not the one expected."""


class WrongResult(Exception):
    """A run ended in another state than it must, or did not end in time; its figures don't count."""


def expect(what: str, found: object, expected: object) -> None:
    """Raises WrongResult where they differ."""
    if found != expected:
        raise WrongResult(f"{what}: {found!r}, expected {expected!r}")
