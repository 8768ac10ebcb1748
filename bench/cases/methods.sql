-- A method's change over all members of its segment as one statement with its outbox rows: the fewest that make the same rows.
-- Nobody else is there: no locks for others, no steps, no rule.

-- :name activation
with written as (
  insert into enrollment as e (course_id, user_id, version, sources, cause_type, cause_event_id, cause_method_id)
  select m.course_id, s.user_id, 1, m.active_delta, 'EnrollmentMethodChanged', m.event_id, m.method_id
  from method m join membership s on s.segment_id = m.segment_id and s.is_member where m.method_id = %(method)s
  returning course_id, user_id, version, sources, hand, suspended, cause_type, cause_event_id, cause_method_id)
insert into outbox (course_id, user_id, version, sources, hand, suspended, cause_type, cause_event_id, cause_method_id)
select * from written

-- :name change
with written as (
  update enrollment e set sources = jsonb_strip_nulls(e.sources || case when m.deleted then m.none_delta when m.enabled then m.active_delta
                                                                   else m.suspended_delta end),
    version = e.version + 1, updated_at = now(), cause_type = 'EnrollmentMethodChanged', cause_event_id = m.event_id, cause_method_id = m.method_id
  from method m where m.method_id = %(method)s and e.course_id = m.course_id
  returning e.course_id, e.user_id, new.version, old.sources as before_sources, old.hand as before_hand, old.suspended as before_suspended,
            new.sources, new.hand, new.suspended, new.cause_type, new.cause_event_id, new.cause_method_id)
insert into outbox (course_id, user_id, version, before_sources, before_hand, before_suspended, sources, hand, suspended,
                    cause_type, cause_event_id, cause_method_id)
select * from written
