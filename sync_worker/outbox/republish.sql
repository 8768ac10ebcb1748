-- Writing the present state of rows once more (`republish`, docs/adr/0007).

-- :name republish_count
select count(*) from enrollment where version > 0 and course_id between %(first)s::uuid and %(last)s::uuid

-- :name republish_lock
-- The next people by key, locked in key order in a statement of its own, as every writer does. Version 0 was never told to anybody.
select course_id, user_id from enrollment
where (course_id, user_id) > (%(after_course)s::uuid, %(after_user)s::uuid) and course_id <= %(last)s::uuid and version > 0
order by course_id, user_id limit %(n)s for update

-- :name republish
-- A version of its own whose before is its after. Nothing else of the row changes, neither its cause nor updated_at: nothing happened.
with written as (
  update enrollment e set version = e.version + 1
  from unnest(%(courses)s::uuid[], %(users)s::uuid[]) k(course_id, user_id)
  where e.course_id = k.course_id and e.user_id = k.user_id
  returning e.course_id, e.user_id, e.version, e.sources, e.hand, e.suspended)
insert into outbox (course_id, user_id, version, before_sources, before_hand, before_suspended, sources, hand, suspended, cause_type)
select course_id, user_id, version, sources, hand, suspended, sources, hand, suspended, 'REPUBLISH' from written

-- :name republish_record
insert into intervention (by, operation, detail) values (%(by)s, 'republish', %(detail)s)
