"""The one hierarchy of errors: what a fault means for the worker, not which library raised it.

Errors of drivers are turned into these at the border where they appear, and nothing above a border catches a driver's own.
An outage must never become an `InvalidRecord`: a record is rejected only for what it says.
"""

from enum import StrEnum


class SyncWorkerError(Exception):
    """Base of every error that the worker raises on purpose; its message says what, where and what to do."""


class RetryableError(SyncWorkerError):
    """An outage of the database, the broker or the registry: wait, say so, try again."""


class FatalError(SyncWorkerError):
    """Going on would lose or repeat something: stop, and say what to do."""


class SettingsError(SyncWorkerError):
    """Settings or arguments that cannot be used; names all of them at once."""


class RejectionReason(StrEnum):
    """Why a record is a dead letter (contract §2, header `dlq_reason`)."""

    UNDECODABLE = "undecodable"
    UNKNOWN_SCHEMA = "unknown_schema"
    INVALID_EVENT = "invalid_event"
    VERSION_CONFLICT = "version_conflict"
    REJECTED_BY_DATABASE = "rejected_by_database"


class InvalidRecord(SyncWorkerError):
    """A record that can never be applied; becomes a dead letter with this reason and detail."""

    def __init__(self, reason: RejectionReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
