-- `relay adopt` (docs/adr/0007): what the topic tells of every key beside what the database holds, and how the next event of a key is made
-- to follow its last. Words: *told* is what the topic's last event says; *waiting* are rows of the outbox that it doesn't hold yet.

-- :name adopt_tables
-- Of this session alone, so that a killed adoption leaves nothing. adopt_chunk takes records in, the last of each key.
create temp table adopt_topic (
  course_id uuid,
  user_id uuid,
  partition int not null,
  version bigint not null,     -- 0: a tombstone, the key was erased
  own bool not null,           -- published by this consumer group
  sources jsonb not null,
  hand uuid[] not null,
  suspended bool not null,
  primary key (course_id, user_id));
create temp table adopt_chunk (like adopt_topic)

-- :name adopt_copy
copy adopt_chunk (course_id, user_id, partition, version, own, sources, hand, suspended) from stdin

-- :name adopt_merge
-- The later record stands; within a partition that is the later chunk's. Where partitions were added to the topic, a key may have older
-- records in another one, and the higher version is the later.
insert into adopt_topic as t select * from adopt_chunk
on conflict (course_id, user_id) do update set partition = excluded.partition, version = excluded.version, own = excluded.own,
  sources = excluded.sources, hand = excluded.hand, suspended = excluded.suspended
where excluded.partition = t.partition or excluded.version > t.version

-- :name adopt_chunk_clear
truncate adopt_chunk

-- :name adopt_analyze
analyze adopt_topic

-- :name adopt_lock
-- Until the end of the transaction the LMS may read enrollments, and whoever would write one waits. First of all locks, and as strong as this
-- (a weaker one lets FOR UPDATE through, which then holds a row that we want): nobody can hold what we need and wait for us.
lock table enrollment in exclusive mode

-- :name adopt_plan
-- What becomes of each key on which the two sides differ, or of which something waits:
--   same     nothing: what waited was told already
--   waiting  the outbox goes on exactly where the topic ends: it stays, with its causes
--   renumber the same can be seen, under another version: the row takes the topic's, so that the next event has no gap before it
--   publish  something else can be seen: an event above the topic's version, from what was told to what is
--   repeat   the database is ahead of the topic without the events between (the topic was lost): an event above the database's version,
--            since consumers may have seen up to that; where the topic knows nothing of the key, from what is to what is
-- A key that was erased (a tombstone, told or waiting) begins again at 1. Of another group's keys those that the database doesn't know are
-- left out. The rule isn't asked: what a row is, stands.
create temp table adopt_plan on commit drop as
with erasing as (
  select course_id, user_id, max(id) as tombstone from outbox where course_id is not null and version is null group by course_id, user_id
), waiting as (
  select distinct course_id, user_id from outbox where course_id is not null
), sides as (
  select course_id, user_id, b.tombstone,
         case when b.tombstone is null then t.version > 0 end is true as known,
         b.tombstone is not null or t.version is not distinct from 0 as erased,
         case when b.tombstone is not null and t.version is distinct from 0 then b.tombstone end as keep_tombstone,
         case when b.tombstone is null then coalesce(t.version, 0) else 0 end as told,
         case when b.tombstone is null then coalesce(t.sources, '{}') else '{}' end as told_sources,
         case when b.tombstone is null then coalesce(t.hand, '{}') else '{}' end as told_hand,
         case when b.tombstone is null then coalesce(t.suspended, false) else false end as told_suspended,
         coalesce(e.version, 0) as has, coalesce(e.sources, '{}') as sources, coalesce(e.hand, '{}') as hand,
         coalesce(e.suspended, false) as suspended
  from adopt_topic t full join enrollment e using (course_id, user_id)
  full join waiting w using (course_id, user_id) left join erasing b using (course_id, user_id)
  where (w.course_id is not null or coalesce(t.version, 0) <> coalesce(e.version, 0)
         or (t.sources, t.hand, t.suspended) is distinct from (e.sources, e.hand, e.suspended))
    and (e.course_id is not null or t.own is not false or w.course_id is not null)
), later as (
  select course_id, user_id, min(o.version) as lowest, max(o.version) as highest, count(*) as rows, min(o.id) as first_id
  from outbox o join sides s using (course_id, user_id)
  where o.version > s.told and o.id > coalesce(s.tombstone, 0) group by course_id, user_id
), compared as (
  select s.*, l.lowest, l.rows = s.has - s.told and l.lowest = s.told + 1 and l.highest = s.has as covered,
         l.rows = s.has - l.lowest + 1 and l.highest = s.has as reaches,
         -- Is the same to be seen? Groups, the dearest part, are made only where all else is the same.
         case when enrolls(s.sources) <> enrolls(s.told_sources) then false
              when not enrolls(s.sources) then true
              when s.sources <> s.told_sources or s.suspended <> s.told_suspended then false
              else s.hand = s.told_hand or groups_of(s.sources, s.hand) = groups_of(s.told_sources, s.told_hand) end as same,
         -- Does what waits begin at what was told?
         case when l.lowest is null then false
              when coalesce(enrolls(f.before_sources), false) <> enrolls(s.told_sources) then false
              when not enrolls(s.told_sources) then true
              when f.before_sources <> s.told_sources or f.before_suspended <> s.told_suspended then false
              else groups_of(f.before_sources, f.before_hand) = groups_of(s.told_sources, s.told_hand) end as follows
  from sides s left join later l using (course_id, user_id) left join outbox f on f.id = l.first_id
), judged as (
  select *, case
    when covered and follows then 'waiting'
    when reaches and lowest > 1 and not known and not erased then 'waiting'
    when has > told and covered is not true then 'repeat'
    when not same then 'publish'
    when has <> told then 'renumber'
    else 'same' end as verdict
  from compared
)
select course_id, user_id, verdict, told, keep_tombstone, coalesce(tombstone, 0) as after_id, sources, hand, suspended,
       case verdict when 'renumber' then told when 'publish' then told + 1 when 'repeat' then case when erased then 1 else has + 1 end end as version,
       case when untold then sources else told_sources end as before_sources,
       case when untold then hand else told_hand end as before_hand,
       case when untold then suspended else told_suspended end as before_suspended
from judged, lateral (select verdict = 'repeat' and not known and not erased as untold) u

-- :name adopt_counts
select (select count(*) from adopt_plan where verdict = 'waiting') as waiting,
       (select count(*) from adopt_plan where verdict = 'renumber') as renumbered,
       (select count(*) from adopt_plan where verdict = 'publish') as published,
       (select count(*) from adopt_plan where verdict = 'repeat') as repeated,
       (select count(*) from adopt_topic t where not own and version > 0 and not exists (
          select from enrollment e where e.course_id = t.course_id and e.user_id = t.user_id)) as foreign_keys,
       (select count(*) from outbox o where course_id is not null and not exists (
          select from adopt_plan p where p.course_id = o.course_id and p.user_id = o.user_id
            and (o.id = p.keep_tombstone or p.verdict = 'waiting' and o.version > p.told and o.id > p.after_id))) as dropped

-- :name adopt_number
-- A key that the topic knows and the database doesn't gets a row, ABSENT, that its next version is counted from.
insert into enrollment as e (course_id, user_id, version, sources, cause_type)
select course_id, user_id, version, '{}', 'REPUBLISH' from adopt_plan where version is not null order by course_id, user_id
on conflict (course_id, user_id) do update set version = excluded.version

-- :name adopt_keep
-- What the topic doesn't hold is written once more, in its order, so that it has this system's xid and no window has read it; the rest goes.
with gone as (delete from outbox where course_id is not null returning *)
insert into outbox (recorded_at, course_id, user_id, version, before_sources, before_hand, before_suspended, sources, hand, suspended,
                    cause_type, cause_event_id, cause_method_id, traceparent)
select g.recorded_at, g.course_id, g.user_id, g.version, g.before_sources, g.before_hand, g.before_suspended, g.sources, g.hand, g.suspended,
       g.cause_type, g.cause_event_id, g.cause_method_id, g.traceparent
from gone g join adopt_plan p using (course_id, user_id)
where g.id = p.keep_tombstone or p.verdict = 'waiting' and g.version > p.told and g.id > p.after_id
order by g.id

-- :name adopt_publish
insert into outbox (course_id, user_id, version, before_sources, before_hand, before_suspended, sources, hand, suspended, cause_type)
select course_id, user_id, version, before_sources, before_hand, before_suspended, sources, hand, suspended, 'REPUBLISH'
from adopt_plan where verdict in ('publish', 'repeat') order by course_id, user_id

-- :name adopt_dead_letters
-- Those that the relay has not deleted. It may have published them.
select d.id, d.topic, d.partition, d.record_offset, o.recorded_at
from outbox o join dead_letter d on d.id = o.dead_letter_id

-- :name adopt_keep_dead_letters
with gone as (delete from outbox where dead_letter_id = any(%(seen)s::bigint[]) returning id, recorded_at, dead_letter_id),
letters as (delete from dead_letter where id = any(%(told)s::bigint[]) and not truncated)
insert into outbox (recorded_at, dead_letter_id)
select recorded_at, dead_letter_id from gone where dead_letter_id <> all(%(told)s::bigint[]) order by id

-- :name adopt_forget
-- Its snapshots may be another system's.
delete from relay_window

-- :name adopt_chain
-- A new chain of windows: everything in the outbox is to be published. Said to be published itself, this window can't be taken for one that
-- Kafka has still to hear of: until the cursor of the same number is written the two don't fit, and no relay publishes.
insert into relay_window (number, from_snapshot, to_snapshot, system_identifier, published)
select %(number)s, %(nothing)s::pg_snapshot, %(nothing)s::pg_snapshot, system_identifier, true from pg_control_system()

-- :name adopt_record
insert into intervention (by, operation, detail) values (%(by)s, 'relay adopt', %(detail)s)

-- :name relay_windows
select number, from_snapshot::text, to_snapshot::text, system_identifier::text, published, created_at from relay_window order by number desc

-- :name relay_leader
select holder, since, expires_at, expires_at > clock_timestamp() from relay_lease
