-- The ceiling: the fewest statements that make the same rows and the same outbox, for one session that nobody disturbs. It has no
-- protocol: no positions, no locks for others, no breaker, no rule but "a member of an enabled method is enrolled".

-- :name added
with facts as (
  insert into membership as s (segment_id, user_id, is_member, version, event_id, occurred_at)
  select * from unnest(%(segments)s::uuid[], %(users)s::uuid[], %(members)s::bool[], %(versions)s::bigint[], %(events)s::uuid[], %(times)s::timestamptz[])
  on conflict (segment_id, user_id) do update set
    is_member = excluded.is_member, version = excluded.version, event_id = excluded.event_id, occurred_at = excluded.occurred_at
  where s.version < excluded.version
  returning segment_id, user_id, event_id),
written as (
  insert into enrollment as e (course_id, user_id, version, sources, updated_at, cause_type, cause_event_id, cause_method_id)
  select m.course_id, f.user_id, 1, m.active_delta, now(), 'SegmentMemberAdded', f.event_id, m.method_id
  from facts f join method m on m.segment_id = f.segment_id and not m.deleted and m.enabled
  on conflict (course_id, user_id) do update set
    sources = e.sources || excluded.sources, version = e.version + 1, updated_at = now(), cause_type = excluded.cause_type,
    cause_event_id = excluded.cause_event_id, cause_method_id = excluded.cause_method_id
  where not e.sources @> excluded.sources
  returning e.course_id, e.user_id, new.version, old.sources as before_sources, old.hand as before_hand, old.suspended as before_suspended,
            new.sources, new.hand, new.suspended, new.cause_type, new.cause_event_id, new.cause_method_id)
insert into outbox (course_id, user_id, version, before_sources, before_hand, before_suspended, sources, hand, suspended,
                    cause_type, cause_event_id, cause_method_id)
select * from written

-- :name removed
with facts as (
  update membership s set is_member = false, version = t.version, event_id = t.event_id, occurred_at = t.occurred_at
  from unnest(%(segments)s::uuid[], %(users)s::uuid[], %(versions)s::bigint[], %(events)s::uuid[], %(times)s::timestamptz[])
    t(segment_id, user_id, version, event_id, occurred_at)
  where s.segment_id = t.segment_id and s.user_id = t.user_id and s.version < t.version
  returning s.segment_id, s.user_id, s.event_id),
written as (
  update enrollment e set sources = e.sources - m.method_id::text, version = e.version + 1, updated_at = now(),
    cause_type = 'SegmentMemberRemoved', cause_event_id = f.event_id, cause_method_id = m.method_id
  from facts f join method m on m.segment_id = f.segment_id and not m.deleted
  where e.course_id = m.course_id and e.user_id = f.user_id and e.sources ? m.method_id::text
  returning e.course_id, e.user_id, new.version, old.sources as before_sources, old.hand as before_hand, old.suspended as before_suspended,
            new.sources, new.hand, new.suspended, new.cause_type, new.cause_event_id, new.cause_method_id)
insert into outbox (course_id, user_id, version, before_sources, before_hand, before_suspended, sources, hand, suspended,
                    cause_type, cause_event_id, cause_method_id)
select * from written
