-- The outbox, read in numbered windows of snapshots (design §5).

-- :name lease_hold
-- By the database's clock alone. No row = somebody else leads. Only saves work: what keeps two leaders apart is Kafka's fencing.
insert into relay_lease as l (holder, since, expires_at)
values (%(holder)s, clock_timestamp(), clock_timestamp() + make_interval(secs => %(seconds)s))
on conflict (one) do update set holder = excluded.holder, expires_at = excluded.expires_at,
  since = case when l.holder = excluded.holder then l.since else excluded.since end
where l.holder = excluded.holder or l.expires_at < clock_timestamp()
returning true

-- :name lease_release
update relay_lease set expires_at = clock_timestamp() where holder = %(holder)s

-- :name system_identifier
select system_identifier::text from pg_control_system()

-- :name window_last
select number, from_snapshot::text, to_snapshot::text, system_identifier::text, published from relay_window order by number desc limit 1

-- :name window_due
-- Is anything committed that `from` doesn't hold? By two index ranges: never filtered up from xmin.
select exists (select from outbox where xid >= pg_snapshot_xmax(%(from)s::pg_snapshot))
    or exists (select from outbox where xid = any(array(select pg_snapshot_xip(%(from)s::pg_snapshot))))

-- :name window_next
-- No row = another worker leads and has numbered it. A transaction of its own, with nothing before it that could draw an xid: this statement's snapshot is taken before its xid is assigned,
-- so everything below to.xmax is below a flushed xid, also after a crash (without the row, a reused xid looked published).
insert into relay_window (number, from_snapshot, to_snapshot, system_identifier)
select %(number)s, %(from)s::pg_snapshot, pg_current_snapshot(), (select system_identifier from pg_control_system())
on conflict (number) do nothing
returning to_snapshot::text

-- :name window_published
-- After Kafka's commit. A hint for `status`; the cursor record is the truth.
update relay_window set published = true where number = %(number)s and not published

-- :name window_forget
delete from relay_window where number < %(number)s - 1

-- :name window_rows
-- In the order of ids, which per key is the order of commits. Two index ranges above from, and of those what `to` holds.
select id, course_id, user_id, version, recorded_at, before_sources, before_hand, before_suspended, sources, hand, suspended,
       cause_type::text, cause_event_id, cause_method_id, traceparent, dead_letter_id
from outbox
where (xid >= pg_snapshot_xmax(%(from)s::pg_snapshot) or xid = any(array(select pg_snapshot_xip(%(from)s::pg_snapshot))))
  and pg_visible_in_snapshot(xid, %(to)s::pg_snapshot) and id > %(last)s
order by id

-- :name window_clean
-- What the acknowledged `from` holds is published. In steps, by the index on xid; never by id, which doesn't say what is published.
with gone as (delete from outbox where ctid = any(array(
  select ctid from outbox where xid < pg_snapshot_xmax(%(from)s::pg_snapshot)
    and xid <> all(array(select pg_snapshot_xip(%(from)s::pg_snapshot))) order by xid limit %(n)s))
  returning dead_letter_id),
letters as (delete from dead_letter d using gone where d.id = gone.dead_letter_id and not d.truncated)
select count(*) from gone

-- :name dead_letters
-- A value that the topic doesn't take is not read, only its size.
select id, topic, partition, record_offset, record_timestamp_ms, key, case when octet_length(value) <= %(most)s then value end,
  header_names, header_values, reason, detail, octet_length(value)
from dead_letter where id = any(%(ids)s::bigint[])

-- :name dead_letter_truncated
update dead_letter set truncated = true where id = %(id)s

-- :name dead_letter_sizes
select id, coalesce(octet_length(key), 0) + coalesce(octet_length(value), 0) from dead_letter where id = any(%(ids)s::bigint[])

-- :name waiting
-- What is not published: not in the last snapshot that was published whole. A newest window that is not published yet begins at its `from`.
with newest as (
  select case when published then to_snapshot else from_snapshot end as seen from sync_worker.relay_window order by number desc limit 1),
acknowledged as (select coalesce((select seen from newest), '3:3:'::pg_snapshot) as seen)
select count(*), count(dead_letter_id), extract(epoch from clock_timestamp() - min(recorded_at))::float8
from sync_worker.outbox, acknowledged
where xid >= pg_snapshot_xmax(seen) or xid = any(array(select pg_snapshot_xip(seen)))

-- :name waits_more_than
-- As `waiting`, only whether it is more than so many rows: asked after every step of a backfill, it must not count a long outbox.
with newest as (
  select case when published then to_snapshot else from_snapshot end as seen from sync_worker.relay_window order by number desc limit 1),
acknowledged as (select coalesce((select seen from newest), '3:3:'::pg_snapshot) as seen)
select count(*) > %(rows)s from (
  (select from sync_worker.outbox where xid >= pg_snapshot_xmax((select seen from acknowledged)) limit %(rows)s + 1)
  union all
  (select from sync_worker.outbox where xid = any(array(select pg_snapshot_xip((select seen from acknowledged)))) limit %(rows)s + 1)) r
