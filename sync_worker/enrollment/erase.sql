-- Erasing a person (contract §5, `erase`). %(user)s is the id as text, canonical. Run twice, the second time finds nothing.

-- :name traces
-- What names the person, without a lock. membership and source have the user second in their key: PostgreSQL 18 skips through the index
-- from segment to segment (course to course); an index on the user alone would cost every batch for the sake of a rare command.
select (select count(*) from enrollment where user_id = %(user)s::uuid) as enrollment,
       (select count(*) from membership where user_id = %(user)s::uuid) as membership,
       (select count(*) from source where user_id = %(user)s::uuid) as source,
       (select count(*) from backfill where after_user = %(user)s::uuid)
       + (select count(*) from hold_release where after_user = %(user)s::uuid)
       + (select count(*) from reconcile_run where next_second = %(user)s::uuid) as progress,
       (select count(*) from intervention where position(%(user)s::text in detail::text) > 0) as intervention,
       (select count(*) from outbox where user_id = %(user)s::uuid) as outbox

-- :name dead_letters_naming
-- Anywhere in the record, or in why it was refused: the id as text, in either case, with or without dashes, or as its 16 bytes.
-- escape leaves ASCII as it is and writes other bytes as digits, so that bytes of whatever encoding can be searched as text.
select d.id from dead_letter d
where exists (
  select from unnest(array[d.key, d.value, convert_to(concat_ws(' ', d.detail, array_to_string(d.header_names, ' ')), 'UTF8')] || d.header_values) part,
       lateral (select lower(encode(part, 'escape')) as text offset 0) read
  where position(%(user)s::text in read.text) > 0 or position(replace(%(user)s, '-', '') in read.text) > 0
     or position(uuid_send(%(user)s::uuid) in part) > 0)

-- :name dead_letters_unpublish
-- Before the letters themselves, as the relay's clean-up does it: we wait for one another, and don't deadlock.
delete from outbox where dead_letter_id = any(%(ids)s::bigint[])

-- :name dead_letters_erase
delete from dead_letter where id = any(%(ids)s::bigint[])

-- :name membership_erase
-- Under the exclusive lock: nobody else is writing memberships, sources or contributions, so there is nothing to wait for or to overlook.
delete from membership where user_id = %(user)s::uuid

-- :name source_erase
delete from source where user_id = %(user)s::uuid

-- :name enrollment_lock
-- Users of the group view take no advisory lock: they are waited for here, in key order.
select from enrollment where user_id = %(user)s::uuid order by course_id for update

-- :name enrollment_erase
-- A bare key in the outbox is a tombstone. Its id is drawn while the row is locked: after all that was said of the key, before all that
-- a new life will say. A row that was only ever ABSENT leaves one, too: a database that lost transactions may not know what was said.
with gone as (delete from enrollment where user_id = %(user)s::uuid returning course_id, user_id)
insert into outbox (course_id, user_id) select course_id, user_id from gone order by course_id

-- :name intervention_erase
-- What was done stays on record; to whom doesn't.
update intervention set detail = replace(detail::text, %(user)s, 'erased')::jsonb where position(%(user)s::text in detail::text) > 0

-- :name backfill_erase
-- Work in steps that has come to exactly this person begins anew: to apply it twice changes nothing.
update backfill set after_user = default, done = 0 where after_user = %(user)s::uuid

-- :name hold_release_erase
update hold_release set after_user = default, done = 0 where after_user = %(user)s::uuid

-- :name reconcile_run_erase
update reconcile_run set next_second = '00000000-0000-0000-0000-000000000000' where next_second = %(user)s::uuid

-- :name erasure_record
insert into intervention (by, operation, detail) values (%(by)s, 'erase', %(detail)s)
