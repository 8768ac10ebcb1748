-- What a method's event would do. Reads alone, and takes no lock but a reader's; every statement in one snapshot.

-- :name gently
-- One process, and memory for one hash of a million members. `enable_sort` off: the planner takes every person for a case of their own
-- and would sort them all by their contributions, where there are a handful of cases to be counted (measured: 9 s instead of 2).
select set_config('work_mem', '32MB', true), set_config('max_parallel_workers_per_gather', '0', true), set_config('jit', 'off', true),
       set_config('enable_sort', 'off', true)

-- :name method_columns
-- The columns of a method in their order; of a generated one the expression that makes it. So the row of a method that isn't stored is made
-- by the table's own definition, not by a second one.
select a.attname, pg_get_expr(d.adbin, d.adrelid)
from pg_attribute a
left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum and a.attgenerated <> ''
where a.attrelid = 'method'::regclass and a.attnum > 0 and not a.attisdropped order by a.attnum

-- :name backfill
select after_user::text, version, done, total from backfill where method_id = %(method)s

-- :name effect
-- Each case once, with how many people it holds and a few of them: facts and state before, state after. All of a case's people get the same,
-- so the rule is asked once for each case, and a million members are one join and one count.
-- Who is looked at: members, and holders of the contribution, as `people` of a backfill says. `ahead`: whom the event still reaches.
-- `offset 0`: what a level computes is computed once, not wherever the next one uses it; and rule()'s `now` is a plain column (see `converge`).
with person as (
  select user_id, coalesce(s.is_member, false) as is_member, s.hold, user_id > %(after)s::uuid as ahead, e.sources, e.suspended, e.hand
  from (select user_id, is_member, hold from membership
        where segment_id = %(segment)s::uuid and (is_member or hold is not null)) s
  full join (select user_id, sources, suspended, hand from enrollment where course_id = %(course)s::uuid) e using (user_id)
), sliced as (                       -- a slice of each case gives one example: no list of all people is ever made
  select is_member, hold, ahead, sources, suspended, hand, count(*) as people, any_value(user_id) as example
  from person group by is_member, hold, ahead, sources, suspended, hand, uuid_hash(user_id) & 1023
), standing as (
  select is_member, hold, ahead, coalesce(sources, '{}') as sources, coalesce(suspended, false) as suspended, coalesce(hand, '{}') as hand,
         sources->%(method)s::uuid::text as now, sum(people)::bigint as people, array_agg(example) as examples
  from sliced group by is_member, hold, ahead, sources, suspended, hand offset 0
), decided as (
  select *, is_member and not %(deleted)s or now is not null as looked_at,
         case when ahead then rule(%(event)s::method, stands_as_member(is_member, hold, now), now) end as delta
  from standing offset 0
), merged as (
  select *, merge(sources, coalesce(delta, '{}')) as after from decided offset 0
), settled as (
  select *, status_of(sources, suspended) as status, status_of(after, suspended) as after_status from merged offset 0
)
select case when not looked_at then 'others'
            when delta is null then case when now is null then 'nothing_given' else 'as_they_are' end
            when status = 'ABSENT' then case when after_status = 'ABSENT' then 'not_seen' else 'ENROLLED' end
            when after_status = 'ABSENT' then 'UNENROLLED'
            when after_status = status then 'UPDATED'
            when after_status = 'SUSPENDED' then 'SUSPENDED' else 'REACTIVATED' end,
       people, examples[:%(sample)s]::text[], suspended,
       status, roles_of(sources, suspended), groups_of(sources, hand)::text[], public_sources(sources),
       after_status, roles_of(after, suspended), groups_of(after, hand)::text[], public_sources(after)
from settled where looked_at or status <> 'ABSENT'
