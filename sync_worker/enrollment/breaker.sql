-- The removal breaker (semantics §5): counted per segment and minute, decided under one lock, held from that transaction on.

-- :name hold_put
-- Idempotent. Whoever crosses the limit at the same time waits here for the first, and finds the hold there. How many had left is for
-- `hold_count` to say.
insert into removal_hold (segment_id, members, removed)
select t.segment_id, t.members, 0 from unnest(%(segments)s::uuid[], %(members)s::bigint[]) t(segment_id, members) order by 1
on conflict (segment_id) do nothing
returning segment_id

-- :name hold_lock
-- Before anything is marked with its number: a release waits for this transaction, or has gone before it. In key order.
select segment_id, number from removal_hold where segment_id = any(%(segments)s::uuid[]) order by segment_id for share

-- :name hold_mark
-- The rows are locked already: `memberships` of this transaction wrote them.
update membership s set hold = t.number
from unnest(%(segments)s::uuid[], %(users)s::uuid[], %(numbers)s::bigint[]) t(segment_id, user_id, number)
where s.segment_id = t.segment_id and s.user_id = t.user_id

-- :name removals_lock
-- The last lock of a transaction that removes, so it is held for the length of two small statements and a commit. Whoever comes next
-- sees what we counted: two workers can't cross the limit side by side. Per minute's row alone they could, each in a minute of its own.
select pg_advisory_xact_lock(7002)

-- :name removals_count
-- Who came back no longer counts as lost; of a minute that was forgotten, or emptied by a release, there is nothing to take from.
insert into removal_count as r (segment_id, minute, removed)
select t.segment_id, t.minute, t.n
from unnest(%(segments)s::uuid[], %(minutes)s::timestamptz[], %(numbers)s::int[]) t(segment_id, minute, n)
where t.n > 0 or exists (select from removal_count c where c.segment_id = t.segment_id and c.minute = t.minute)
order by 1, 2
on conflict (segment_id, minute) do update set removed = greatest(r.removed + excluded.removed, 0), touched_at = now()

-- :name hold_count
-- After `removals_lock`: who left the segment until now has been counted, and whoever counts next finds its hold. Who leaves in the
-- transaction that sets the hold is held, and not counted.
update removal_hold h set removed = (
  select coalesce(sum(c.removed), 0) from removal_count c
  where c.segment_id = t.segment_id and c.minute between t.minute - interval '5 minutes' and t.minute)
from unnest(%(segments)s::uuid[], %(minutes)s::timestamptz[]) t(segment_id, minute)
where h.segment_id = t.segment_id
returning h.segment_id, h.removed

-- :name removals_window
-- Per segment the five minutes with the most removals among those that our own fall into, where they are more than the minimum; and the
-- segments that somebody else has held meanwhile. Whole minutes, so removals up to six minutes apart may count together, never fewer
-- than five.
select t.segment_id, w.removed, w.minute, (select h.number from removal_hold h where h.segment_id = t.segment_id) as hold
from unnest(%(segments)s::uuid[], %(since)s::timestamptz[], %(until)s::timestamptz[]) t(segment_id, since, until),
lateral (
  select c.minute, sum(c.removed) over (order by c.minute range between interval '5 minutes' preceding and current row) as removed
  from removal_count c
  where c.segment_id = t.segment_id and c.minute between t.since - interval '5 minutes' and t.until + interval '5 minutes'
  order by removed desc limit 1) w
where w.removed > %(minimum)s or exists (select from removal_hold h where h.segment_id = t.segment_id)

-- :name members_had
-- Members before the removals of the five minutes up to this one. Outside of the transaction that removes: it reads the whole segment.
select (select count(*) from membership where segment_id = %(segment)s and is_member)
     + coalesce((select sum(removed) from removal_count where segment_id = %(segment)s
                 and minute between %(minute)s::timestamptz - interval '5 minutes' and %(minute)s), 0)::bigint

-- :name removals_forget
-- Nobody removes with a time this old any more, or only one by one.
delete from removal_count where touched_at < now() - interval '1 hour'

-- :name release_put
-- The end of a hold: from here on its segment's removals are applied at once, and those held become a release in steps. Nothing can be
-- marked any more (see hold_lock), so the total is final. The window is emptied: what was lost before doesn't count towards another hold.
with ended as (delete from removal_hold where segment_id = %(segment)s returning segment_id, number),
emptied as (delete from removal_count where segment_id = %(segment)s)
insert into hold_release (number, segment_id, total)
select e.number, e.segment_id, (select count(*) from membership s where s.segment_id = e.segment_id and s.hold = e.number)
from ended e
returning number, total

-- :name hold_end
select number, since, members, removed from removal_hold where segment_id = %(segment)s for update

-- :name release_candidate
-- Any of them, so that several workers rarely ask for the same.
select number, segment_id, after_user from hold_release order by random() limit 1

-- :name release_people
select user_id from membership where segment_id = %(segment)s and hold = %(number)s and user_id > %(after)s order by user_id limit %(n)s

-- :name release_take
-- After the shared lock. No row = another has it or moved it on.
select true from hold_release where number = %(number)s and after_user = %(after)s for update skip locked

-- :name release_lock
-- Locked in key order, before anything is changed. Who came back, or was removed anew, meanwhile is no longer marked, and left alone.
select user_id from membership where segment_id = %(segment)s and user_id = any(%(users)s::uuid[]) and hold = %(number)s
order by user_id for update

-- :name release_unmark
update membership set hold = null where segment_id = %(segment)s and user_id = any(%(users)s::uuid[])

-- :name release_methods
select method_id from method where segment_id = %(segment)s and not deleted order by method_id

-- :name release_move
update hold_release set after_user = %(after)s, done = done + %(people)s where number = %(number)s

-- :name release_done
delete from hold_release where number = %(number)s

-- :name holds
select h.segment_id, h.number, h.since, h.members, h.removed,
       (select count(*) from membership s where s.segment_id = h.segment_id and s.hold = h.number) as held,
       array(select s.user_id from membership s where s.segment_id = h.segment_id and s.hold = h.number order by s.user_id limit %(sample)s) as sample
from removal_hold h order by h.since, h.segment_id

-- :name releases
select r.segment_id, r.number, r.done, r.total, r.created_at from hold_release r order by r.created_at, r.number

-- :name held
select (select count(*) from removal_hold), (select count(*) from membership where hold is not null)

-- :name on_record
insert into intervention (by, operation, detail) values (%(by)s, %(operation)s, %(detail)s)

-- :name release_progress
select done, total from hold_release where number = %(number)s
