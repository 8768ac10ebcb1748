"""Faults of the database: crashes, frozen, sessions ended, a full disk, transactions of others that hold what they hold."""

from __future__ import annotations

import psycopg
from psycopg import sql

from tests.faults.nemesis.scene import Scene
from tests.faults.plan import Fault

_OURS = "datname = current_database() and application_name like 'sync-worker %%'"
_NO_ROOM = "No space left on device"
# What an LMS or a maintenance job locks, by the row that most happens to.
_HOT_ROWS = (
    "select from enrollment order by version desc, course_id, user_id offset %s limit 1 for update",
    "select from membership order by version desc, segment_id, user_id offset %s limit 1 for update",
    "select from enrollment where ctid = any(array(select ctid from enrollment order by version desc offset %s limit 20)) for update",
    "select from position order by next_offset desc, topic, partition offset %s limit 1 for update",
)


def database_crashed(scene: Scene, fault: Fault) -> str | None:
    """An immediate shutdown: no checkpoint, recovery at the start."""
    postgres = scene.arena.stack.postgres
    if not postgres.running:
        return None
    postgres.stop(mode="immediate")
    scene.last(fault.duration_s)
    postgres.start()
    return f"away for {fault.duration_s:g} s and its recovery"


def database_killed(scene: Scene, fault: Fault) -> str | None:
    """kill -9 to all its processes at once."""
    postgres = scene.arena.stack.postgres
    if not postgres.running:
        return None
    postgres.kill()
    scene.last(fault.duration_s)
    postgres.start()
    return f"away for {fault.duration_s:g} s and its recovery"


def database_frozen(scene: Scene, fault: Fault) -> str | None:
    postgres = scene.arena.stack.postgres
    if not postgres.running:
        return None
    postgres.pause()
    scene.last(fault.duration_s)
    postgres.resume()
    return f"for {fault.duration_s:g} s"


def sessions_terminated(scene: Scene, fault: Fault) -> str | None:
    """Every session of the workers, or those of one purpose, whatever they are doing."""
    purposes = ("%", "% apply", "% relay", "% backfill", "%")
    with scene.session(autocommit=True) as session:
        statement = sql.SQL(
            f"select count(pg_terminate_backend(pid)) from pg_stat_activity where {_OURS} and application_name like %s"
        )
        (ended,) = session.execute(statement, (purposes[fault.pick % len(purposes)],)).fetchone() or (0,)
    return f"{ended} of {purposes[fault.pick % len(purposes)]!r}" if ended else None


def disk_full(scene: Scene, fault: Fault) -> str | None:
    """Not a byte is left for the database, whose log is made to need a new segment: it may panic, and not come up before there is room."""
    disk, postgres = scene.arena.disk, scene.arena.stack.postgres
    if disk is None:
        return None
    seen = postgres.log_path.stat().st_size
    try:
        taken = disk.fill()
        if fault.strength > 0.6:
            _switch_log(scene)
        scene.last(fault.duration_s)
    finally:
        disk.clear()
    with postgres.log_path.open("rb") as log:
        log.seek(seen)
        refused = log.read().decode("utf-8", "replace").count(_NO_ROOM)
    down = "; the server ended" if not postgres.running else ""
    if down:
        postgres.start()
    return f"{taken >> 20} MB taken for {fault.duration_s:g} s, {refused} writes refused{down}" if refused else None


def _switch_log(scene: Scene) -> None:
    try:
        with scene.session(autocommit=True) as session:
            for _ in range(20):
                session.execute("select pg_logical_emit_message(false, 'nemesis', 'x'), pg_switch_wal()")
    except psycopg.Error:
        pass  # that is what was wanted


def snapshot_held(scene: Scene, fault: Fault) -> str | None:
    """A dump, or a forgotten transaction with an xid of its own: nothing is cleaned up, and the relay's snapshots are long."""
    with scene.session() as session:
        session.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        session.execute("select count(*) from enrollment")
        if fault.pick % 2:
            session.execute("select pg_current_xact_id()")
        scene.last(fault.duration_s)
        session.rollback()
    return f"for {fault.duration_s:g} s{' with an xid' if fault.pick % 2 else ''}"


def row_locked(scene: Scene, fault: Fault) -> str | None:
    """A row that much happens to, locked for a while."""
    statement = _HOT_ROWS[fault.pick % len(_HOT_ROWS)]
    with scene.session() as session:
        locked = session.execute(statement.encode(), (fault.pick // 7 % 3,)).rowcount
        if locked:
            scene.last(fault.duration_s)
        session.rollback()
    return f"{locked} of {statement.split()[2]} for {fault.duration_s:g} s" if locked else None


def rows_locked_crosswise(scene: Scene, fault: Fault) -> str | None:
    """Two rows in the order that workers never take: a deadlock, where one of them comes between."""
    with scene.session() as session:
        rows = session.execute(
            "select course_id, user_id from enrollment order by version desc, course_id desc, user_id desc limit 6"
        ).fetchall()
        session.rollback()
        rows = sorted(rows, reverse=True)
        if len(rows) < 2:
            return None
        deadlocks = 0
        locked = 0
        try:
            for row in rows:
                session.execute("select from enrollment where course_id = %s and user_id = %s for update", row)
                locked += 1
                scene.last(fault.duration_s / len(rows))
        except psycopg.errors.DeadlockDetected:
            deadlocks = 1
        session.rollback()
    return f"{locked} rows{', a deadlock' if deadlocks else ''}" if locked > 1 or deadlocks else None
