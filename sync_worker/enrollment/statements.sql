-- Facts → rows → outbox: the statements of a transaction, in the order in which it runs them (design §3). READ COMMITTED throughout:
-- a statement sees one snapshot, so whatever must see what a lock waited for is a later statement.

-- :name lock_shared
-- Batches of memberships, sources and suspensions, and backfill steps, side by side. This wait may be longer than that for a row
-- (lock_timeout): who waits here holds nothing that the LMS wants, and whoever is waited for is bounded itself.
select set_config('lock_timeout', '15s', true), pg_advisory_xact_lock_shared(7001), set_config('lock_timeout', s.was, true)
from (select current_setting('lock_timeout') as was offset 0) s

-- :name lock_exclusive
-- Batches of methods, briefly: every batch either sees the new method or is seen by its backfill, whatever segment it pointed to.
select set_config('lock_timeout', '15s', true), pg_advisory_xact_lock(7001), set_config('lock_timeout', s.was, true)
from (select current_setting('lock_timeout') as was offset 0) s

-- :name survey
-- How many methods each of these segments has, to keep a transaction's size in bounds; every hold there is (there are few); and, beside
-- no segment, how many of a sample of the batch say nothing newer than what is stored.
select m.segment_id, count(*), null::bigint from method m where m.segment_id = any(%(segments)s::uuid[]) and not m.deleted group by m.segment_id
union all
select segment_id, null, number from removal_hold
union all
select null, count(*), null
from unnest(%(sample_segments)s::uuid[], %(sample_users)s::uuid[], %(sample_versions)s::bigint[]) t(segment_id, user_id, version),
lateral (select version from membership s where s.segment_id = t.segment_id and s.user_id = t.user_id offset 0) s
where s.version >= t.version

-- :name memberships
-- Idempotent: newest version wins. Locks every row of the batch in key order, also those it leaves alone. A newer fact ends a mark of the
-- breaker; who is removed under a hold is marked (again) by a later statement.
-- The caller gives one entry per (segment, user), sorted, so no sort here; what changed comes back in the same order, with what it was
-- for the breaker, a letter each: [l]ost a member, [h]eld before and removed again, came [b]ack, [-] neither; and for those who came back
-- when they had left.
with changed as (
  insert into membership as s (segment_id, user_id, is_member, version, event_id, occurred_at)
  select * from unnest(%(segments)s::uuid[], %(users)s::uuid[], %(members)s::bool[], %(versions)s::bigint[], %(events)s::uuid[], %(times)s::timestamptz[])
  on conflict (segment_id, user_id) do update set
    is_member = excluded.is_member, version = excluded.version, event_id = excluded.event_id, occurred_at = excluded.occurred_at, hold = null
  where s.version < excluded.version
  returning s.segment_id, s.user_id, old.occurred_at as was_at,
    case when old.version is null then '-'
         when new.is_member then case when old.is_member or old.version = 0 then '-' else 'b' end
         when old.is_member then 'l' when old.hold is not null then 'h' else '-' end as became)
select count(*), array_agg(segment_id), array_agg(user_id), coalesce(string_agg(became, ''), ''),
       array_agg(was_at) filter (where became = 'b')
from changed

-- :name memberships_judged
-- What these say beside what is stored: how many are stale, how many repeat it, which say something else under the same version, and which
-- are newer or of somebody unknown. It locks nothing, and what it finds known stays so: a version never goes back, and none is written
-- twice. What it finds newer may not be by the time it is put. `offset 0`: a look-up per entry, whatever the planner believes.
select count(*) filter (where s.version > t.version),
       count(*) filter (where s.version = t.version and s.is_member = t.is_member),
       array_agg(t.n) filter (where s.version = t.version and s.is_member <> t.is_member),
       array_agg(t.n) filter (where s.version is null or s.version < t.version)
from unnest(%(segments)s::uuid[], %(users)s::uuid[], %(members)s::bool[], %(versions)s::bigint[], %(ordinals)s::int[]) t(segment_id, user_id, is_member, version, n)
left join lateral (select version, is_member from membership s where s.segment_id = t.segment_id and s.user_id = t.user_id offset 0) s on true

-- :name sources
-- The same for (course, user, source).
with changed as (
  insert into source as s (course_id, user_id, source, status, role, version, event_id, occurred_at)
  select * from unnest(%(courses)s::uuid[], %(users)s::uuid[], %(names)s::text[], %(statuses)s::text[], %(roles)s::text[], %(versions)s::bigint[],
                       %(events)s::uuid[], %(times)s::timestamptz[])
  on conflict (course_id, user_id, source) do update set
    status = excluded.status, role = excluded.role, version = excluded.version, event_id = excluded.event_id, occurred_at = excluded.occurred_at
  where s.version < excluded.version
  returning s.course_id, s.user_id, s.source)
select course_id, user_id, source from changed

-- :name sources_judged
select count(*) filter (where s.version > t.version),
       count(*) filter (where s.version = t.version and (s.status, s.role) is not distinct from (t.status, t.role)),
       array_agg(t.n) filter (where s.version = t.version and (s.status, s.role) is distinct from (t.status, t.role)),
       array_agg(t.n) filter (where s.version is null or s.version < t.version)
from unnest(%(courses)s::uuid[], %(users)s::uuid[], %(names)s::text[], %(statuses)s::text[], %(roles)s::text[], %(versions)s::bigint[], %(ordinals)s::int[])
  t(course_id, user_id, source, status, role, version, n)
left join lateral (select status, role, version from source s
                   where s.course_id = t.course_id and s.user_id = t.user_id and s.source = t.source offset 0) s on true

-- :name suspensions_judged
-- This fact sits on the enrollment row itself. Before `converge`, which compares again, this says which are worth writing. After it the row
-- is locked and holds the newest version: a newer one than ours, ours or the same said before, or the same version with other content.
select count(*) filter (where e.suspension_version > t.version),
       count(*) filter (where e.suspension_version = t.version and e.suspended = t.suspended),
       array_agg(t.n) filter (where e.suspension_version = t.version and e.suspended <> t.suspended),
       array_agg(t.n) filter (where e.suspension_version is null or e.suspension_version < t.version)
from unnest(%(courses)s::uuid[], %(users)s::uuid[], %(suspended)s::bool[], %(versions)s::bigint[], %(ordinals)s::int[]) t(course_id, user_id, suspended, version, n)
left join lateral (select suspension_version, suspended from enrollment e where e.course_id = t.course_id and e.user_id = t.user_id offset 0) e on true

-- :name methods_before
-- Under the exclusive lock nobody else changes a method.
select method_id, version, course_id, segment_id, segment_name, kind, name, active, visible, role, group_id, on_removal, deleted
from method where method_id = any(%(methods)s::uuid[])

-- :name method_put
-- Idempotent: newest version wins. The caller has ruled out what is never valid (another course or kind, a life after deletion).
insert into method as m (method_id, version, course_id, segment_id, segment_name, kind, name, active, visible, role, group_id, on_removal, deleted,
                         event_id, occurred_at, traceparent)
values (%(method)s, %(version)s, %(course)s, %(segment)s, %(segment_name)s, %(kind)s, %(name)s, %(active)s, %(visible)s, %(role)s, %(group)s,
        %(on_removal)s, %(deleted)s, %(event)s, %(time)s, %(traceparent)s)
on conflict (method_id) do update set version = excluded.version, segment_id = excluded.segment_id, segment_name = excluded.segment_name,
  name = excluded.name, active = excluded.active, visible = excluded.visible, role = excluded.role, group_id = excluded.group_id,
  on_removal = excluded.on_removal, deleted = excluded.deleted, event_id = excluded.event_id, occurred_at = excluded.occurred_at,
  traceparent = excluded.traceparent
where m.version < excluded.version

-- :name people
-- The next people whom a method touches: members of its segment, and holders of its contribution, by user id; and whether each has a
-- membership there, be it an ended one.
-- Segment and course come as parameters (read with the method): joined in here, the planner sorts the whole segment for each step.
select user_id, bool_or(member) or exists (select from membership s where s.segment_id = %(segment)s and s.user_id = p.user_id) from (
  (select user_id, true as member from membership where segment_id = %(segment)s and user_id > %(after)s and is_member and not %(deleted)s
   order by user_id limit %(n)s)
  union all
  (select user_id, false from enrollment where course_id = %(course)s and user_id > %(after)s and sources ? %(method)s::uuid::text
   order by user_id limit %(n)s)) p
group by user_id order by user_id limit %(n)s

-- :name members
-- The same for a method that is new: nobody holds anything of it.
select user_id from membership where segment_id = %(segment)s and user_id > %(after)s and is_member and not %(deleted)s order by user_id limit %(n)s

-- :name course_rows
select count(*) from (select from enrollment where course_id = %(course)s limit %(rows)s) r

-- :name count_briefly
select set_config('statement_timeout', '10s', true)

-- :name people_total
-- For progress only: how many people a backfill has before it.
select (select count(*) from membership where segment_id = %(segment)s and is_member and not %(deleted)s)
     + (select count(*) from enrollment e where course_id = %(course)s and sources ? %(method)s::uuid::text
        and (%(deleted)s or not exists (select from membership s where s.segment_id = %(segment)s and s.user_id = e.user_id and s.is_member)))

-- :name converge
-- Idempotent: writes only where the rule gives something else than what is. A later statement than the facts.
-- The snapshot's `now` can be trusted without the row's lock: a contribution changes only under its membership's (or source's) row lock,
-- which this transaction holds, or under the exclusive advisory lock. Other parts of the row may be newer: the merge happens on the locked row.
-- `now` comes by a lateral subquery with `offset 0`: always an index look-up per pair (as a plain join it becomes a hash of the whole table while
-- that is small or its statistics are old), and a plain column, so that rule() is inlined (an argument holding a subquery, used twice, forbids that).
with touched as (
  select m.course_id, f.user_id, rule(m, f.is_member, n.now) as delta, f.ordinal,
         case when f.is_member then 'SegmentMemberAdded' else 'SegmentMemberRemoved' end::cause_type as cause_type,
         f.event_id, m.method_id, f.traceparent
  from unnest(%(m_segments)s::uuid[], %(m_users)s::uuid[], %(m_members)s::bool[], %(m_ordinals)s::int[], %(m_events)s::uuid[], %(m_traces)s::text[])
    f(segment_id, user_id, is_member, ordinal, event_id, traceparent)
  join method m on m.segment_id = f.segment_id and not m.deleted
  left join lateral (select e.sources->m.method_id::text as now from enrollment e where e.course_id = m.course_id and e.user_id = f.user_id offset 0) n on true
  union all                          -- (method, user) of a method event or of a step: backfill, release of a hold, repair
  select m.course_id, p.user_id, rule(m, stands_as_member(s.is_member, s.hold, n.now), n.now), p.ordinal, %(p_cause)s::cause_type,
         case %(p_cause)s when 'EnrollmentMethodChanged' then m.event_id when 'HOLD_RELEASED' then s.event_id end, m.method_id, m.traceparent
  from unnest(%(p_methods)s::uuid[], %(p_users)s::uuid[], %(p_ordinals)s::int[]) p(method_id, user_id, ordinal)
  join method m on m.method_id = p.method_id
  left join lateral (select s.is_member, s.hold, s.event_id from membership s where s.segment_id = m.segment_id and s.user_id = p.user_id offset 0) s on true
  left join lateral (select e.sources->m.method_id::text as now from enrollment e where e.course_id = m.course_id and e.user_id = p.user_id offset 0) n on true
  union all                          -- other sources
  select f.course_id, f.user_id, source_rule(f.source, f.status, f.role, n.now), f.ordinal, %(s_cause)s::cause_type, f.event_id, null, f.traceparent
  from unnest(%(s_courses)s::uuid[], %(s_users)s::uuid[], %(s_names)s::text[], %(s_statuses)s::text[], %(s_roles)s::text[], %(s_ordinals)s::int[],
              %(s_events)s::uuid[], %(s_traces)s::text[]) f(course_id, user_id, source, status, role, ordinal, event_id, traceparent)
  left join lateral (select e.sources->f.source as now from enrollment e where e.course_id = f.course_id and e.user_id = f.user_id offset 0) n on true
), changed as (
  select course_id, user_id, delta, null::bool as suspended, null::bigint as suspension_version,
         row(ordinal, cause_type, event_id, method_id, traceparent)::cause as cause
  from touched where delta is not null
  union all                          -- course suspensions, one per (course, user)
  select course_id, user_id, null, suspended, version, row(ordinal, 'CourseSuspensionChanged', event_id, null, traceparent)::cause
  from unnest(%(x_courses)s::uuid[], %(x_users)s::uuid[], %(x_suspended)s::bool[], %(x_versions)s::bigint[], %(x_ordinals)s::int[], %(x_events)s::uuid[],
              %(x_traces)s::text[]) x(course_id, user_id, suspended, version, ordinal, event_id, traceparent)
), folded as (
  select course_id, user_id, coalesce(merged(delta), '{}') as delta, coalesce(bool_or(suspended), false) as suspended,
         coalesce(max(suspension_version), 0) as suspension_version, latest(cause) as cause
  from changed group by course_id, user_id
), written as (
  insert into enrollment as e (course_id, user_id, version, suspended, suspension_version, sources, updated_at,
                               cause_type, cause_event_id, cause_method_id, traceparent)
  select course_id, user_id, enrolls(delta)::int, suspended, suspension_version, delta, now(),
         (cause).type, (cause).event_id, (cause).method_id, (cause).traceparent
  from folded order by course_id, user_id
  on conflict (course_id, user_id) do update set
    sources = merge(e.sources, excluded.sources),
    suspended = case when excluded.suspension_version > e.suspension_version then excluded.suspended else e.suspended end,
    suspension_version = greatest(e.suspension_version, excluded.suspension_version),
    hand = case when e.hand = '{}' or enrolls(merge(e.sources, excluded.sources)) then e.hand else '{}' end,
    version = e.version + case                    -- only what can be seen counts: ABSENT to ABSENT is nothing
      when e.status = 'ABSENT' then enrolls(merge(e.sources, excluded.sources))::int
      else (excluded.sources <> '{}' or excluded.suspension_version > e.suspension_version and excluded.suspended <> e.suspended)::int end,
    updated_at = case when excluded.sources = '{}' and excluded.suspended = e.suspended then e.updated_at else excluded.updated_at end,
    cause_type = excluded.cause_type, cause_event_id = excluded.cause_event_id,
    cause_method_id = excluded.cause_method_id, traceparent = excluded.traceparent
  where excluded.sources <> '{}' or excluded.suspension_version > e.suspension_version
  returning e.course_id, e.user_id, old.version as old_version, new.version, old.sources as before_sources, old.hand as before_hand,
            old.suspended as before_suspended, new.sources, new.hand, new.suspended, new.cause_type, new.cause_event_id, new.cause_method_id, new.traceparent)
insert into outbox (course_id, user_id, version, before_sources, before_hand, before_suspended, sources, hand, suspended,
                    cause_type, cause_event_id, cause_method_id, traceparent)
select course_id, user_id, version, before_sources, before_hand, before_suspended, sources, hand, suspended,
       cause_type, cause_event_id, cause_method_id, traceparent
from written where version > coalesce(old_version, 0)

-- :name backfill_put
-- Idempotent. A newer version starts over: the exclusive lock keeps every running step away.
insert into backfill as b (method_id, version) values (%(method)s, %(version)s)
on conflict (method_id) do update set version = excluded.version, after_user = excluded.after_user, done = 0, total = null, created_at = now()

-- :name backfill_keep
-- A change that the rule doesn't read: a backfill under way goes on where it is, as the new version's.
update backfill set version = %(version)s where method_id = %(method)s

-- :name backfill_candidate
-- Any of them, so that several workers rarely ask for the same.
select b.method_id, b.version, b.after_user, b.total, m.course_id, m.segment_id, m.deleted
from backfill b join method m using (method_id) order by random() limit 1

-- :name backfill_take
-- After the shared lock. No row = another has it or moved it on, it is done, or a newer version took over.
select true from backfill b join method m on m.method_id = b.method_id and m.version = b.version
where b.method_id = %(method)s and b.version = %(version)s and b.after_user = %(after)s for update of b skip locked

-- :name memberships_lock
-- Locks these memberships in key order; how many there are.
select count(*) from (select from membership where segment_id = %(segment)s and user_id = any(%(users)s::uuid[]) order by user_id for no key update) m

-- :name backfill_lock
-- The same where somebody may have none, at three times the cost: version 0 for them, so that a member being added elsewhere is waited for,
-- not overlooked. ON CONFLICT DO UPDATE locks the row although its WHERE lets nothing through. Who has neither a membership nor an
-- enrollment was erased since the people were read: a row would name them again. (coalesce asks the second only where the first has no answer.)
-- One pass for all: were those who have none locked last, two steps, or a step and a batch, could wait for one another.
insert into membership as s (segment_id, user_id, is_member, version)
select %(segment)s::uuid, u, false, 0 from unnest(%(users)s::uuid[]) u
where coalesce((select true from membership m where m.segment_id = %(segment)s and m.user_id = u),
               (select true from enrollment e where e.user_id = u limit 1), false)
order by 1, 2
on conflict (segment_id, user_id) do update set version = s.version where false

-- :name backfill_total
update backfill set total = %(total)s where method_id = %(method)s and version = %(version)s

-- :name backfill_move
update backfill set after_user = %(after)s, done = done + %(people)s where method_id = %(method)s

-- :name backfill_done
-- Applied to everybody, by steps or at once.
delete from backfill where method_id = %(method)s

-- :name blockers
-- Who might have held the lock that this session gave up waiting for: transactions that touch our rows and do nothing.
-- Of others' sessions a user without pg_read_all_stats sees only the name: state and times are null then, and mustn't hide the row.
select a.pid, a.usename, a.application_name, a.state, extract(epoch from now() - a.xact_start)::float8
from pg_stat_activity a
where a.pid <> pg_backend_pid() and a.datname = current_database() and a.state is distinct from 'idle'
  and exists (select from pg_locks l where l.pid = a.pid and l.granted and l.database = (select oid from pg_database where datname = current_database())
              and (l.locktype = 'advisory' or l.relation in ('enrollment'::regclass, 'membership'::regclass)))
order by a.xact_start nulls first limit 1
