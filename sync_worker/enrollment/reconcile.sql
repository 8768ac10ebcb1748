-- What is compared with what the facts say (reconcile.py). The rule itself is not here: `rule`, `source_rule` and `stands_as_member` say
-- what should be, as for every other path.
--
-- Why nothing is found that isn't wrong, although nothing is locked while looking: every commit leaves each contribution as the rule wants
-- it, unless a backfill of its method is pending, and `differences` sees row, facts and backfills in one snapshot.

-- :name methods_in_scope
select method_id, course_id, segment_id from method m
where (%(course)s::uuid is null or m.course_id = %(course)s) and (%(segment)s::uuid is null or m.segment_id = %(segment)s)
  and (%(method)s::uuid is null or m.method_id = %(method)s)
order by method_id

-- :name members
-- The next memberships by key, with each contribution that a method of the segment may give and that is not there; what is there, the
-- rows are asked about. Removed members are passed over row by row, not skipped by a condition: a step must not read on through a
-- million of them. `with ties`: a person's methods stay in one step.
select s.segment_id, s.user_id, m.course_id, case when not coalesce(e.held, false) then m.method_id::text end, null, false, 0
from membership s
left join lateral (select m.course_id, m.method_id from method m where m.segment_id = s.segment_id and not m.deleted and s.is_member
                   and (%(methods)s::text[] is null or m.method_id::text = any(%(methods)s::text[])) offset 0) m on true
left join lateral (select e.sources ? m.method_id::text as held from enrollment e where e.course_id = m.course_id and e.user_id = s.user_id offset 0) e on true
where (s.segment_id, s.user_id) >= (%(from_first)s::uuid, %(from_second)s::uuid) and (s.segment_id, s.user_id) <= (%(to_first)s::uuid, %(to_second)s::uuid)
order by s.segment_id, s.user_id fetch first (%(n)s) rows with ties

-- :name sources
-- The same for other sources: what their facts say should be there.
select f.course_id, f.user_id, f.course_id, case when f.status <> 'ABSENT' and not coalesce(e.held, false) then f.source end, null, false, 0
from source f
left join lateral (select e.sources ? f.source as held from enrollment e where e.course_id = f.course_id and e.user_id = f.user_id offset 0) e on true
where (f.course_id, f.user_id) >= (%(from_first)s::uuid, %(from_second)s::uuid) and (f.course_id, f.user_id) <= (%(to_first)s::uuid, %(to_second)s::uuid)
order by f.course_id, f.user_id fetch first (%(n)s) rows with ties

-- :name rows
-- The same for enrollment rows: every contribution that is there, what is wrong with the row itself, and what no fact can vouch for:
-- contributions that are SUSPENDED because of what was before, and hand-made groups.
select e.course_id, e.user_id, e.course_id, k.source,
       case when %(methods)s::text[] is not null then null
            when jsonb_typeof(e.sources) <> 'object' then 'unreadable'
            when e.status = 'ABSENT' and e.hand <> '{}' then 'hand_made_left' end,
       coalesce(k.contribution->>'status' = 'SUSPENDED' and k.contribution->>'kind' <> 'OTHER', false),
       case when e.status <> 'ABSENT' then cardinality(e.hand) else 0 end
from enrollment e
left join lateral (select x.source, x.contribution from jsonb_each(case jsonb_typeof(e.sources) when 'object' then e.sources else '{}' end) x(source, contribution)
                   where %(methods)s::text[] is null or x.source = any(%(methods)s::text[]) offset 0) k on true
where (e.course_id, e.user_id) >= (%(from_first)s::uuid, %(from_second)s::uuid) and (e.course_id, e.user_id) <= (%(to_first)s::uuid, %(to_second)s::uuid)
order by e.course_id, e.user_id fetch first (%(n)s) rows with ties

-- :name differences
-- Of these contributions, each named by course, user and source, the ones that are not what the facts say. One snapshot for row and facts.
-- Look-ups by lateral subqueries with `offset 0`, as in `converge`. A source with an id for a name is a method; one of another course gives
-- nothing here, as a source without a fact. A method that nothing is known of is no method that was deleted: that takes a fact.
select k.n::int, j.by_rule, e.now, j.delta->k.source,
       case when j.unknown then 'unknown_method'
            when exists (select from backfill b where b.method_id = (q.m).method_id) then 'pending'
            when e.type is null then 'row_gone'
            when e.now is null then 'missing'
            when jsonb_typeof(j.delta->k.source) = 'null' then 'unwanted'
            else 'different' end
from unnest(%(courses)s::uuid[], %(users)s::uuid[], %(sources)s::text[]) with ordinality k(course_id, user_id, source, n)
left join lateral (select jsonb_typeof(e.sources) as type, e.sources->k.source as now from enrollment e
                   where e.course_id = k.course_id and e.user_id = k.user_id offset 0) e on true
left join lateral (select case when k.source like '________-____-____-____-____________' and pg_input_is_valid(k.source, 'uuid') and lower(k.source) = k.source
                               then k.source::uuid end as method_id offset 0) i on true
left join lateral (select m from method m where m.method_id = i.method_id offset 0) q on true
left join lateral (select s.is_member, s.hold from membership s where s.segment_id = (q.m).segment_id and s.user_id = k.user_id offset 0) s on true
left join lateral (select f.status, f.role from source f where f.course_id = k.course_id and f.user_id = k.user_id and f.source = k.source
                   and i.method_id is null offset 0) f on true
cross join lateral (
  select coalesce((q.m).course_id = k.course_id, false) as by_rule,
         i.method_id is not null and (q.m).method_id is null and e.now is not null as unknown,
         case when (q.m).course_id = k.course_id then rule(q.m, stands_as_member(s.is_member, s.hold, e.now), e.now)
              when i.method_id is null or (q.m).method_id is not null then source_rule(k.source, coalesce(f.status, 'ABSENT'), f.role, e.now) end as delta
  offset 0) j
where (j.delta is not null or j.unknown) and coalesce(e.type, 'object') = 'object'

-- :name lock_memberships
-- As a backfill step does, for its reason: version 0 for who has none, so that a member being added elsewhere is waited for. After the
-- shared lock, under which a method's segment stays what it is.
insert into membership as s (segment_id, user_id, is_member, version)
select distinct m.segment_id, p.user_id, false, 0 from unnest(%(methods)s::uuid[], %(users)s::uuid[]) p(method_id, user_id)
join method m on m.method_id = p.method_id order by 1, 2
on conflict (segment_id, user_id) do update set version = s.version where false

-- :name lock_sources
-- The same for the facts of other sources, in the caller's order, which is that of the batches.
insert into source as f (course_id, user_id, source, status, version)
select c, u, s, 'ABSENT', 0 from unnest(%(courses)s::uuid[], %(users)s::uuid[], %(sources)s::text[]) k(c, u, s)
on conflict (course_id, user_id, source) do update set version = f.version where false

-- :name source_facts
-- Read after they were locked.
select k.n::int, f.status, f.role
from unnest(%(courses)s::uuid[], %(users)s::uuid[], %(sources)s::text[]) with ordinality k(course_id, user_id, source, n),
lateral (select * from source f where f.course_id = k.course_id and f.user_id = k.user_id and f.source = k.source offset 0) f

-- :name unlock_memberships
-- What was only a place to lock goes again, and whoever waited for it inserts their own: somebody who was erased since they were looked at
-- must not be named once more.
delete from membership s using unnest(%(methods)s::uuid[], %(users)s::uuid[]) p(method_id, user_id), method m
where m.method_id = p.method_id and s.segment_id = m.segment_id and s.user_id = p.user_id and s.version = 0

-- :name unlock_sources
-- The same.
delete from source f using unnest(%(courses)s::uuid[], %(users)s::uuid[], %(sources)s::text[]) k(course_id, user_id, source)
where f.course_id = k.course_id and f.user_id = k.user_id and f.source = k.source and f.version = 0

-- :name malformed
-- What no EnrollmentChanged can say, in the rows of these people. Such a row must not get into the outbox, not even as what was before:
-- the relay would stop at it.
select k.course_id, k.user_id, x.source
from (select distinct * from unnest(%(courses)s::uuid[], %(users)s::uuid[]) k(course_id, user_id)) k,
lateral (select e.sources from enrollment e where e.course_id = k.course_id and e.user_id = k.user_id offset 0) e,
lateral jsonb_each(case jsonb_typeof(e.sources) when 'object' then e.sources else '{}' end) x(source, c)
where not coalesce(
  jsonb_typeof(c) = 'object' and c->>'kind' in ('SEGMENT_SYNC', 'SEGMENT_GROUP', 'OTHER') and c->>'status' in ('ACTIVE', 'SUSPENDED')
  and jsonb_typeof(c->'member') = 'boolean' and (not c ? 'role' or jsonb_typeof(c->'role') = 'string')
  and (not c ? 'group_id' or c->>'group_id' ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$')
  and c - '{kind,status,member,role,group_id}'::text[] = '{}', false)

-- :name strip
-- Taken away unseen, as it was never published; what should be there instead comes by `converge`. In key order.
with wanted as (
  select course_id, user_id, array_agg(source) as stripped
  from unnest(%(courses)s::uuid[], %(users)s::uuid[], %(sources)s::text[]) k(course_id, user_id, source) group by course_id, user_id
), locked as (
  select w.* from wanted w join enrollment e on e.course_id = w.course_id and e.user_id = w.user_id
  order by w.course_id, w.user_id for update of e)
update enrollment e set sources = e.sources - l.stripped from locked l where e.course_id = l.course_id and e.user_id = l.user_id

-- :name hand_made_clear
-- Hand-made groups end when the row is ABSENT (semantics §3). Nobody sees them there, so no version and no event. In key order, by a look at
-- the locked row.
with locked as (
  select e.course_id, e.user_id
  from unnest(%(courses)s::uuid[], %(users)s::uuid[]) k(course_id, user_id)
  join enrollment e on e.course_id = k.course_id and e.user_id = k.user_id
  where e.status = 'ABSENT' and e.hand <> '{}' order by e.course_id, e.user_id for update of e)
update enrollment e set hand = '{}' from locked l where e.course_id = l.course_id and e.user_id = l.user_id returning e.course_id, e.user_id

-- :name last_in_outbox
-- What the outbox holds last of each of these, published or not; version null is a tombstone. A scan: the outbox is short, and this is rare.
select distinct on (o.course_id, o.user_id) o.course_id, o.user_id, coalesce(o.version, 0), coalesce(o.sources, '{}'), coalesce(o.hand, '{}')::text[],
       coalesce(o.suspended, false)
from outbox o join unnest(%(courses)s::uuid[], %(users)s::uuid[]) k(course_id, user_id) on o.course_id = k.course_id and o.user_id = k.user_id
order by o.course_id, o.user_id, o.id desc

-- :name restore
-- A row that is gone, as it was last published; so its version goes on. Whoever made it anew meanwhile is left alone.
insert into enrollment (course_id, user_id, version, sources, hand, suspended, cause_type)
select c, u, v, s::jsonb, h::uuid[], x, 'RECONCILE'
from unnest(%(courses)s::uuid[], %(users)s::uuid[], %(versions)s::bigint[], %(states)s::text[], %(hands)s::text[], %(suspended)s::bool[]) r(c, u, v, s, h, x)
order by 1, 2 on conflict do nothing

-- :name versions_behind
-- Whose version is below the one that was published: made anew by somebody who couldn't know.
select k.n::int from unnest(%(courses)s::uuid[], %(users)s::uuid[], %(versions)s::bigint[]) with ordinality k(course_id, user_id, version, n),
lateral (select e.version from enrollment e where e.course_id = k.course_id and e.user_id = k.user_id offset 0) e
where e.version < k.version

-- :name rows_about
-- For progress only: how many rows the tables have, by their statistics.
select c.relname, greatest(c.reltuples, 0)::bigint from pg_class c
where c.oid in ('membership'::regclass, 'source'::regclass, 'enrollment'::regclass)

-- :name count_briefly
select set_config('statement_timeout', '10s', true)

-- :name count_members
select count(*) from membership where segment_id = any(%(firsts)s::uuid[])

-- :name count_sources
select count(distinct user_id) from source where course_id = any(%(firsts)s::uuid[])

-- :name count_rows
select count(*) from enrollment where course_id = any(%(firsts)s::uuid[])

-- :name run_alone
-- Held by the session; two runs of one scope would only be in one another's way.
select pg_try_advisory_lock(7003, hashtext(%(scope)s))

-- :name run_interrupted
-- A run that can go on. After a day too much may have changed behind it.
select part, next_first, next_second, counts, updated_at from reconcile_run
where scope = %(scope)s and updated_at > now() - interval '1 day'

-- :name run_put
insert into reconcile_run as r (scope, part, next_first, next_second, counts)
values (%(scope)s, %(part)s, %(first)s, %(second)s, %(counts)s)
on conflict (scope) do update set part = excluded.part, next_first = excluded.next_first, next_second = excluded.next_second,
  counts = excluded.counts, updated_at = now()

-- :name run_end
delete from reconcile_run where scope = %(scope)s

-- :name on_record
insert into intervention (by, operation, detail) values (%(by)s, 'reconcile', %(detail)s) returning id

-- :name on_record_more
update intervention set detail = %(detail)s where id = %(id)s
