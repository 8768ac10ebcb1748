-- What ideas.py needs for other ways to make the ceiling's rows and outbox. As there: one session that nobody disturbs, no protocol.

-- ── A batch comes by binary COPY into a temporary table, not as arrays ─────────────────────────────────────────────

-- :name staging
create temporary table staged (segment_id uuid, user_id uuid, is_member bool, version bigint, event_id uuid, occurred_at timestamptz)
on commit delete rows

-- :name stage
copy staged from stdin (format binary)

-- ── Contributions as an array of a composite type, not jsonb ───────────────────────────────────────────────────────

-- :name typed_tables
create type given as (source uuid, kind text, status text, role text, group_id uuid, member bool);
create table typed_method as
select method_id, array[row(method_id, kind, 'ACTIVE', role, group_id, true)::given] as active from method;
alter table typed_method add primary key (method_id);
create table typed_enrollment (
  course_id uuid, user_id uuid, version bigint not null, suspended bool not null default false, suspension_version bigint not null default 0,
  sources given[] not null, hand uuid[] not null default '{}', updated_at timestamptz not null default now(), cause_type cause_type not null,
  cause_event_id uuid, cause_method_id uuid, traceparent text, status text not null, primary key (course_id, user_id)) with (fillfactor = 50);
create index on typed_enrollment (user_id);
create table typed_outbox (
  id bigint generated always as identity, xid xid8 not null default pg_current_xact_id(), recorded_at timestamptz not null default now(),
  course_id uuid, user_id uuid, version bigint, before_sources given[], before_hand uuid[], before_suspended bool, sources given[], hand uuid[],
  suspended bool, cause_type cause_type, cause_event_id uuid, cause_method_id uuid, traceparent text);
create index on typed_outbox (xid)

-- :name typed_added
-- After the ceiling's facts.
written as (
  insert into typed_enrollment as e (course_id, user_id, version, sources, updated_at, cause_type, cause_event_id, cause_method_id, status)
  select m.course_id, f.user_id, 1, t.active, now(), 'SegmentMemberAdded', f.event_id, m.method_id,
         (select case when bool_or(g.kind <> 'SEGMENT_GROUP' and g.status = 'ACTIVE') then 'ACTIVE' when bool_or(g.kind <> 'SEGMENT_GROUP') then 'SUSPENDED'
                      else 'ABSENT' end from unnest(t.active) g)
  from facts f join method m on m.segment_id = f.segment_id and not m.deleted and m.enabled join typed_method t using (method_id)
  on conflict (course_id, user_id) do update set
    sources = e.sources || excluded.sources, version = e.version + 1,
    status = (select case when bool_or(g.kind <> 'SEGMENT_GROUP' and g.status = 'ACTIVE') and not e.suspended then 'ACTIVE'
                          when bool_or(g.kind <> 'SEGMENT_GROUP') then 'SUSPENDED' else 'ABSENT' end from unnest(e.sources || excluded.sources) g),
    updated_at = now(), cause_type = excluded.cause_type, cause_event_id = excluded.cause_event_id, cause_method_id = excluded.cause_method_id
  where not e.sources @> excluded.sources
  returning e.course_id, e.user_id, new.version, old.sources as before_sources, old.hand as before_hand, old.suspended as before_suspended,
            new.sources, new.hand, new.suspended, new.cause_type, new.cause_event_id, new.cause_method_id)
insert into typed_outbox (course_id, user_id, version, before_sources, before_hand, before_suspended, sources, hand, suspended,
                          cause_type, cause_event_id, cause_method_id)
select * from written

-- :name typed_removed
-- As above.
written as (
  update typed_enrollment e set sources = array_remove(e.sources, t.active[1]),
    status = (select case when bool_or(g.kind <> 'SEGMENT_GROUP' and g.status = 'ACTIVE') and not e.suspended then 'ACTIVE'
                          when bool_or(g.kind <> 'SEGMENT_GROUP') then 'SUSPENDED' else 'ABSENT' end from unnest(array_remove(e.sources, t.active[1])) g),
    version = e.version + 1, updated_at = now(), cause_type = 'SegmentMemberRemoved', cause_event_id = f.event_id, cause_method_id = m.method_id
  from facts f join method m on m.segment_id = f.segment_id and not m.deleted join typed_method t using (method_id)
  where e.course_id = m.course_id and e.user_id = f.user_id and e.sources @> t.active
  returning e.course_id, e.user_id, new.version, old.sources as before_sources, old.hand as before_hand, old.suspended as before_suspended,
            new.sources, new.hand, new.suspended, new.cause_type, new.cause_event_id, new.cause_method_id)
insert into typed_outbox (course_id, user_id, version, before_sources, before_hand, before_suspended, sources, hand, suspended,
                          cause_type, cause_event_id, cause_method_id)
select * from written

-- :name typed_shown
-- As the model wants to see them.
truncate enrollment;
insert into enrollment (course_id, user_id, version, sources, cause_type, cause_event_id, cause_method_id)
select course_id, user_id, version,
  coalesce((select jsonb_object_agg(g.source, contribution(g.kind, g.status, g.role, g.group_id, g.member)) from unnest(sources) g), '{}'),
  cause_type, cause_event_id, cause_method_id
from typed_enrollment

-- ── The outbox as one row per batch and partition of the topic ─────────────────────────────────────────────────────

-- :name folded_outbox
create table folded_outbox (
  id bigint generated always as identity, xid xid8 not null default pg_current_xact_id(), recorded_at timestamptz not null default now(),
  course_ids uuid[], user_ids uuid[], versions bigint[], before_sources jsonb[], before_hands text[], before_suspended bool[], sources jsonb[],
  hands text[], suspended bool[], cause_types cause_type[], cause_event_ids uuid[], cause_method_ids uuid[]);
create index on folded_outbox (xid)

-- :name folded_insert
insert into folded_outbox (course_ids, user_ids, versions, before_sources, before_hands, before_suspended, sources, hands, suspended,
                           cause_types, cause_event_ids, cause_method_ids)
select array_agg(course_id), array_agg(user_id), array_agg(version), array_agg(before_sources), array_agg(before_hand::text),
       array_agg(before_suspended), array_agg(sources), array_agg(hand::text), array_agg(suspended), array_agg(cause_type),
       array_agg(cause_event_id), array_agg(cause_method_id)
from written group by uuid_hash(user_id) & 7

-- :name folded_read
-- As the relay needs them: a row per change.
select o.id, u.* from folded_outbox o, unnest(course_ids, user_ids, versions, before_sources, before_hands, before_suspended, sources, hands,
  suspended, cause_types, cause_event_ids, cause_method_ids) u
order by o.id

-- :name folded_gone
delete from folded_outbox

-- :name outbox_read
select id, course_id, user_id, version, before_sources, before_hand::text, before_suspended, sources, hand::text, suspended, cause_type,
       cause_event_id, cause_method_id
from outbox order by id

-- :name outbox_gone
delete from outbox

-- ── Other storage for the same statements ──────────────────────────────────────────────────────────────────────────

-- :name full_pages
alter table enrollment set (fillfactor = 100)

-- :name no_user_index
drop index enrollment_user

-- :name partitioned
-- By hash, as nothing asks for ranges. The views and the trigger of the LMS, made for the table as it was, stay behind on the old one.
alter table enrollment rename to enrollment_whole;
alter table enrollment_whole rename constraint enrollment_pkey to enrollment_whole_pkey;
alter index enrollment_user rename to enrollment_whole_user;
create table enrollment (like enrollment_whole including defaults including generated) partition by hash (course_id, user_id);
do $$ begin for n in 0..7 loop
  execute format('create table enrollment_%s partition of enrollment for values with (modulus 8, remainder %s) with (fillfactor = 50)', n, n);
end loop; end $$;
alter table enrollment add primary key (course_id, user_id);
create index enrollment_user on enrollment (user_id)

-- :name partitioned_shown
-- Into the table that the views read.
truncate enrollment_whole;
insert into enrollment_whole (course_id, user_id, version, suspended, suspension_version, sources, hand, updated_at, cause_type, cause_event_id,
                              cause_method_id, traceparent)
select course_id, user_id, version, suspended, suspension_version, sources, hand, updated_at, cause_type, cause_event_id, cause_method_id, traceparent
from enrollment

-- :name compressed
do $$ begin execute format('alter database %I set wal_compression = pglz', current_database()); end $$
