-- The database of the worker: facts, enrollment rows, outbox, positions, and the rule of semantics §2.
-- Functions that must be inlined or sit in generated columns have SQL-standard bodies: bound at creation, free of search_path.

create schema if not exists sync_worker;
set local search_path = sync_worker, pg_temp;

-- ── Input: where each partition stands ──────────────────────────────────────────────────────────────────────────────

-- The topics as they were when first read. Another id under the same name is a topic made anew: its offsets mean something else.
create table input_topic (
  topic text primary key,
  topic_id text not null,
  cluster_id text not null,
  first_seen_at timestamptz not null default now());

create table position (
  topic text,
  partition int,
  next_offset bigint not null,
  updated_at timestamptz not null default now(),
  primary key (topic, partition)) with (fillfactor = 10);  -- a handful of rows updated all the time: room for HOT

-- ── Facts: the newest version of what each input event says ────────────────────────────────────────────────────────

-- Whose row lock orders every writer of the contributions that depend on it. Version 0: never heard of, a place to lock.
-- fillfactor 50 leaves room for HOT updates: removals and re-additions a third faster, additions the same.
create table membership (
  segment_id uuid,
  user_id uuid,
  is_member bool not null,
  version bigint not null,
  event_id uuid,
  occurred_at timestamptz,
  primary key (segment_id, user_id)) with (fillfactor = 50);

-- What one source gives one user, without what is null: a null in a *delta* means "take it away".
-- Declared immutable, as a generated column wants it (jsonb_build_object is only stable; of these types it is immutable).
create function contribution(kind text, status text, role text, group_id uuid, member bool) returns jsonb language sql immutable parallel safe
return jsonb_strip_nulls(jsonb_build_object('kind', kind, 'status', status, 'role', role, 'group_id', group_id, 'member', member));

create function delta(source uuid, contribution jsonb) returns jsonb language sql immutable parallel safe
return jsonb_build_object(source::text, contribution);

-- Changes only under the exclusive advisory lock. The three deltas are what the rule gives, made once here and not once per
-- member: cheaper, and the bytes of all members of a method are the same, which the relay's cache lives on.
create table method (
  method_id uuid primary key,
  version bigint not null,
  course_id uuid not null,
  segment_id uuid not null,
  segment_name text,
  kind text not null check (kind in ('SEGMENT_SYNC', 'SEGMENT_GROUP')),
  name text not null,
  active bool not null,
  visible bool not null,
  role text,
  group_id uuid,
  on_removal text not null check (on_removal in ('UNENROLL', 'SUSPEND', 'SUSPEND_WITHOUT_ROLES')),
  deleted bool not null,
  event_id uuid not null,
  occurred_at timestamptz not null,
  traceparent text,
  enabled         bool  not null generated always as (active and visible) stored,
  active_delta    jsonb not null generated always as (delta(method_id, contribution(kind, 'ACTIVE',    role, group_id, true))) stored,
  suspended_delta jsonb not null generated always as (delta(method_id, contribution(kind, 'SUSPENDED', role, group_id, true))) stored,
  none_delta      jsonb not null generated always as (delta(method_id, null)) stored);
create index method_segment on method (segment_id) where not deleted;

create table source (
  course_id uuid,
  user_id uuid,
  source text,
  status text not null check (status in ('ACTIVE', 'SUSPENDED', 'ABSENT')),
  role text,
  version bigint not null,
  event_id uuid,
  occurred_at timestamptz,
  primary key (course_id, user_id, source));

-- ── Enrollment rows ────────────────────────────────────────────────────────────────────────────────────────────────

-- Does anything in these contributions enroll (semantics §3)? The jsonpath stops at the first.
create function enrolls(sources jsonb) returns bool language sql immutable parallel safe
return sources @? '$.* ? (@.kind != "SEGMENT_GROUP")';

create function merge(sources jsonb, delta jsonb) returns jsonb language sql immutable parallel safe
return jsonb_strip_nulls(sources || delta);

create function status_of(sources jsonb, suspended bool) returns text language sql immutable parallel safe
return case when not sources @? '$.* ? (@.kind != "SEGMENT_GROUP")' then 'ABSENT'
            when suspended or not sources @? '$.* ? (@.kind != "SEGMENT_GROUP" && @.status == "ACTIVE")' then 'SUSPENDED'
            else 'ACTIVE' end;

create function roles_of(sources jsonb, suspended bool) returns text[] language sql immutable parallel safe
return case when suspended then '{}'
  else coalesce((select array_agg(distinct (c->>'role') collate "C" order by (c->>'role') collate "C") from jsonb_each(sources) x(source, c)
                 where c->>'status' = 'ACTIVE' and c ? 'role' and c->>'kind' <> 'SEGMENT_GROUP'), '{}') end;

create function groups_of(sources jsonb, hand uuid[]) returns uuid[] language sql immutable parallel safe
return case when not sources @? '$.* ? (@.kind != "SEGMENT_GROUP")' then '{}'
  else coalesce((select array_agg(distinct g order by g) from
         (select (c->>'group_id')::uuid from jsonb_each(sources) x(source, c) where c ? 'group_id' and (c->>'member')::bool
          union all select unnest(hand)) y(g)), '{}') end;

-- What made a change: the input record's name, or the operation (contract §2, `cause`).
create type cause_type as enum ('SegmentMemberAdded', 'SegmentMemberRemoved', 'EnrollmentMethodChanged', 'EnrollmentSourceChanged',
  'CourseSuspensionChanged', 'RECONCILE', 'HOLD_RELEASED', 'REPUBLISH', 'SQL');

-- One row per (course, user), never deleted but by erasure: its version must not go back. A suspension in the course is a fact that
-- sits here, so that it can't slip past an enrollment being made elsewhere. roles and groups are made when somebody reads:
-- as generated columns they would halve the throughput. cause_* and traceparent belong to the last change.
create table enrollment (
  course_id uuid,
  user_id uuid,
  version bigint not null,
  suspended bool not null default false,
  suspension_version bigint not null default 0,
  sources jsonb not null,
  hand uuid[] not null default '{}',
  updated_at timestamptz not null default now(),
  cause_type cause_type not null,
  cause_event_id uuid,
  cause_method_id uuid,
  traceparent text,
  status text not null generated always as (status_of(sources, suspended)) stored,
  primary key (course_id, user_id)) with (fillfactor = 50);

-- "In which courses is this user?" is what a learning platform asks on every page (5 % on additions, nothing on HOT updates).
create index enrollment_user on enrollment (user_id);

-- ── The rule ───────────────────────────────────────────────────────────────────────────────────────────────────────

-- semantics §2, used by every path, as what must change: null where nothing does. now: the present contribution, or null.
-- STABLE, not IMMUTABLE: a function declared to be more than its body is not inlined.
create function rule(m method, is_member bool, now jsonb) returns jsonb language sql stable parallel safe
return case
  when is_member and m.enabled and not m.deleted then case when now = m.active_delta->m.method_id::text then null else m.active_delta end
  when now is null then null
  when m.deleted then m.none_delta
  when is_member then case when now = m.suspended_delta->m.method_id::text then null else m.suspended_delta end
  when m.on_removal = 'UNENROLL' or m.kind = 'SEGMENT_GROUP' then m.none_delta
  else nullif(delta(m.method_id, contribution(m.kind, 'SUSPENDED', case m.on_removal when 'SUSPEND' then now->>'role' end, null, false)),
              delta(m.method_id, now)) end;

-- The same for another way in (semantics §2, last paragraph).
create function source_rule(source text, status text, role text, now jsonb) returns jsonb language sql stable parallel safe
return nullif(jsonb_build_object(source, case when status <> 'ABSENT' then contribution('OTHER', status, role, null, true) end),
              jsonb_build_object(source, now));

-- Several deltas of one (course, user) in one transaction. Strict: a single one passes through untouched.
create aggregate merged(jsonb) (sfunc = jsonb_concat, stype = jsonb);

-- Of several causes of one net change, the fact applied last. Strict: a single one passes through, no call.
create type cause as (ordinal int, type cause_type, event_id uuid, method_id uuid, traceparent text);
create function later(a cause, b cause) returns cause language sql immutable strict parallel safe
return case when (b).ordinal >= (a).ordinal then b else a end;
create aggregate latest(cause) (sfunc = later, stype = cause);

-- ── Output ─────────────────────────────────────────────────────────────────────────────────────────────────────────

-- Records that can never be applied, until the relay has published them; those too large for the topic stay.
create table dead_letter (
  id bigint generated always as identity primary key,
  topic text not null,
  partition int not null,
  record_offset bigint not null,
  record_timestamp_ms bigint,
  key bytea,
  value bytea,
  header_names text[] not null,
  header_values bytea[] not null,
  reason text not null,
  detail text not null,
  truncated bool not null default false,  -- too large for the topic: published without value, and kept here
  recorded_at timestamptz not null default now());

create table dead_letter_count (
  topic text,
  reason text,
  records bigint not null,
  last_at timestamptz not null,
  primary key (topic, reason)) with (fillfactor = 50);

-- What is to be published. id: identity with cache 1, drawn after the row's lock is held: per key, id order is commit order.
-- xid: what the relay's snapshot windows are made of (design §5). Either a change of an enrollment or a dead letter.
create table outbox (
  id bigint generated always as identity,
  xid xid8 not null default pg_current_xact_id(),
  recorded_at timestamptz not null default now(),
  course_id uuid,
  user_id uuid,
  version bigint,
  before_sources jsonb,          -- null: there was no row
  before_hand uuid[],
  before_suspended bool,
  sources jsonb,
  hand uuid[],
  suspended bool,
  cause_type cause_type,
  cause_event_id uuid,
  cause_method_id uuid,
  traceparent text,
  dead_letter_id bigint) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
  autovacuum_vacuum_insert_threshold = -1, autovacuum_vacuum_cost_delay = 0);
create index outbox_xid on outbox (xid);

-- The numbered windows of the relay; the newest two are kept. published: every row of it is committed to Kafka (only a hint that
-- saves asking Kafka; the truth is the cursor record).
create table relay_window (
  number bigint primary key,
  from_snapshot pg_snapshot not null,
  to_snapshot pg_snapshot not null,
  system_identifier bigint not null,
  published bool not null default false,
  created_at timestamptz not null default now());

create table relay_lease (
  one bool primary key default true check (one),
  holder text not null,
  since timestamptz not null,
  expires_at timestamptz not null);

-- ── Work in steps ──────────────────────────────────────────────────────────────────────────────────────────────────

-- The effect of a method event that is still to be applied, a keyset cursor over users. total: how many people there were to look at
-- when it began, null until counted.
create table backfill (
  method_id uuid primary key,
  version bigint not null,
  after_user uuid not null default '00000000-0000-0000-0000-000000000000',
  done bigint not null default 0,
  total bigint,
  created_at timestamptz not null default now());

-- ── For the LMS: contract §3 ───────────────────────────────────────────────────────────────────────────────────────

-- A contribution as the contract shows it, with its nulls.
create function public_sources(sources jsonb) returns jsonb language sql immutable parallel safe
return coalesce((select jsonb_object_agg(source, '{"role": null, "group_id": null}'::jsonb || c) from jsonb_each(sources) x(source, c)), '{}');

create view course_enrollment as
select course_id, user_id, status, roles_of(sources, suspended) as roles, groups_of(sources, hand) as groups,
       suspended as suspended_in_course, public_sources(sources) as sources, version, updated_at
from enrollment where status <> 'ABSENT';

create view course_group_member as
select e.course_id, g.group_id, e.user_id, bool_or(g.method_id is not null) as managed,
       coalesce(array_agg(g.method_id order by g.method_id) filter (where g.method_id is not null), '{}') as methods
from enrollment e, lateral (
  select (c->>'group_id')::uuid as group_id, source::uuid as method_id from jsonb_each(e.sources) x(source, c)
  where c ? 'group_id' and (c->>'member')::bool
  union all select unnest(e.hand), null) g
where e.status <> 'ABSENT' group by e.course_id, e.user_id, g.group_id;

-- Hand-made membership. One enrollment row is locked, by a statement of its own; the next one sees the newest of it.
-- SECURITY DEFINER: an editor has rights on the view alone.
create function edit_group_by_hand() returns trigger language plpgsql security definer set search_path = sync_worker, pg_temp as $$
declare
  edited record;
  person enrollment;
  managing text;
begin
  if tg_op = 'UPDATE' then
    raise exception 'course_group_member can''t be updated: DELETE the old membership and INSERT the new one' using errcode = 'feature_not_supported';
  end if;
  edited := case tg_op when 'INSERT' then new else old end;
  if edited.course_id is null or edited.group_id is null or edited.user_id is null then
    raise exception 'course_id, group_id and user_id are needed to change a group''s members' using errcode = 'not_null_violation';
  end if;
  -- Every batch with this row waits for this transaction. Only ever lowered: the LMS may have a stricter limit.
  if (select setting::int = 0 or setting::int > 10000 from pg_settings where name = 'idle_in_transaction_session_timeout') then
    perform set_config('idle_in_transaction_session_timeout', '10s', true);
  end if;
  select * into person from enrollment where course_id = edited.course_id and user_id = edited.user_id for update;
  if not found or person.status = 'ABSENT' then
    if tg_op = 'INSERT' then
      raise exception 'user % is not enrolled in course %: enroll first, then add to group %', edited.user_id, edited.course_id, edited.group_id
        using errcode = 'SW001';
    end if;
    return null;
  end if;
  select string_agg(format('method %s%s: leave segment %s%s to leave this group', source, ' (' || m.name || ')', m.segment_id,
                    ' (' || m.segment_name || ')'), '; ' order by source) into managing
  from jsonb_each(person.sources) x(source, c) left join method m on m.method_id = case when c->>'kind' <> 'OTHER' then source::uuid end
  where c->>'group_id' = edited.group_id::text and (c->>'member')::bool;
  if managing is not null then
    if tg_op = 'DELETE' then
      raise exception 'user % is a managed member of group % in course %: %', edited.user_id, edited.group_id, edited.course_id, managing
        using errcode = 'SW002';
    end if;
    return new;
  end if;
  if (tg_op = 'INSERT') = (edited.group_id = any(person.hand)) then
    return case tg_op when 'INSERT' then new end;
  end if;
  with written as (
    update enrollment set version = version + 1, updated_at = now(),
      hand = case tg_op when 'INSERT' then (select array_agg(g order by g) from unnest(hand || edited.group_id) g)
                        else array_remove(hand, edited.group_id) end,
      cause_type = 'SQL', cause_event_id = null, cause_method_id = null, traceparent = null
    where course_id = edited.course_id and user_id = edited.user_id
    -- In a trigger, old and new are the view's rows.
    returning with (old as was, new as now_is) now_is.course_id, now_is.user_id, now_is.version, now_is.sources, now_is.suspended,
              now_is.cause_type, was.hand as before_hand, now_is.hand)
  insert into outbox (course_id, user_id, version, before_sources, before_hand, before_suspended, sources, hand, suspended, cause_type)
  select course_id, user_id, version, sources, before_hand, suspended, sources, hand, suspended, cause_type from written;
  return edited;
end $$;

create trigger edit_by_hand instead of insert or update or delete on course_group_member
for each row execute function edit_group_by_hand();
