-- What is known of one person in one course, and what the rule makes of it now. Reads alone; every statement in one snapshot.

-- :name enrollment
select status, roles_of(sources, suspended), groups_of(sources, hand)::text[], suspended, suspension_version, sources, hand::text[],
       version, updated_at, cause_type::text, cause_event_id::text, cause_method_id::text
from enrollment where course_id = %(course)s and user_id = %(user)s

-- :name methods
-- Every method of the course, with the facts that the rule reads for this person, and what it says of them as `converge` does. `offset 0`: a
-- plain column as rule()'s argument, as there.
select m.method_id::text, m.version, m.kind, m.name, m.active, m.visible, m.deleted, m.role, m.group_id::text, m.on_removal, m.occurred_at,
       m.event_id::text, m.segment_id::text, m.segment_name,
       s.is_member, s.version, s.occurred_at, s.event_id::text, s.hold, h.since, r.done, r.total,
       b.version, b.done, b.total, n.now, n.stands, rule(m, n.stands, n.now)
from method m
left join lateral (select * from membership s where s.segment_id = m.segment_id and s.user_id = %(user)s offset 0) s on true
left join removal_hold h on h.number = s.hold
left join hold_release r on r.number = s.hold
left join backfill b on b.method_id = m.method_id and b.after_user < %(user)s
left join enrollment e on e.course_id = m.course_id and e.user_id = %(user)s
cross join lateral (select e.sources->m.method_id::text as now, stands_as_member(s.is_member, s.hold, e.sources->m.method_id::text) as stands offset 0) n
where m.course_id = %(course)s order by m.deleted, m.name, m.method_id

-- :name sources
-- The other ways in: what they say, and what they contribute.
select source, f.status, f.role, f.version, f.occurred_at, f.event_id::text, c.now,
       case when f.status is null then jsonb_build_object(source, null) else source_rule(source, f.status, f.role, c.now) end
from (select source, status, role, version, occurred_at, event_id from source where course_id = %(course)s and user_id = %(user)s) f
full join (select key as source, value as now from enrollment e, jsonb_each(e.sources)
           where e.course_id = %(course)s and e.user_id = %(user)s and value->>'kind' = 'OTHER') c using (source)
order by source collate "C"

-- :name methods_elsewhere
-- Which of these are methods, if not of this course. Asked only where a row is damaged.
select method_id::text from method where method_id::text = any(%(sources)s)

-- :name heard_of
-- Of the course: anything at all. Of the user: an enrollment anywhere, or a membership of a segment that some method uses.
select exists (select from method where course_id = %(course)s)
    or exists (select from enrollment where course_id = %(course)s) or exists (select from source where course_id = %(course)s),
       exists (select from enrollment where user_id = %(user)s)
    or exists (select from source where course_id = %(course)s and user_id = %(user)s)
    or exists (select from (select distinct segment_id from method) m
               join membership s on s.segment_id = m.segment_id and s.user_id = %(user)s and s.version > 0)
