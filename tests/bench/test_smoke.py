"""The guard notices a path that asks the database more often, and says which count went up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from bench import smoke
from sync_worker.events import Partition, Record
from sync_worker.loops import checkpoint


def test_a_batch_that_is_applied_in_two_transactions_is_too_much(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The process may stand still in the middle of a transaction.
    monkeypatch.setattr("sync_worker.database.sessions.IDLE_IN_TRANSACTION_TIMEOUT_S", 120)
    whole = checkpoint.commit

    def by_halves(
        session: Any, records: Sequence[Record], before: Mapping[Partition, int], *rest: Any, **named: Any
    ) -> None:
        half = len(records) // 2
        if not half:
            whole(session, records, before, *rest, **named)
            return
        whole(session, records[:half], before, *rest, **named)
        partition = records[0].partition
        whole(session, records[half:], {partition: before[partition] + half}, *rest, **named)

    monkeypatch.setattr(checkpoint, "commit", by_halves)
    assert smoke.main() == 1
    said = " ".join(capsys.readouterr().out.split())
    _, _, worse = said.partition("more than it should be:")
    assert "adds: statements" in worse
    assert "adds: round trips" in worse
    assert "decoding" not in worse
