-- The removal breaker (semantics §5), and what operators' commands remember. Old workers go on beside it: nothing they read changes.

set local search_path = sync_worker, pg_temp;

-- ── Removal breaker ────────────────────────────────────────────────────────────────────────────────────────────────

-- The hold under which this membership was removed: until it is released, what the member had stays (semantics §5). Only ever set
-- together with is_member = false; coming back clears it. The index holds marked rows alone, so it costs a batch nothing: an update
-- that leaves the column alone stays HOT.
alter table membership add column hold bigint;
create index membership_hold on membership (segment_id, user_id) where hold is not null;

-- May the rule treat this user as a member still? `now`: the present contribution, or null. A leftover of an earlier removal
-- (member = false) is no membership that could stay.
create function stands_as_member(is_member bool, hold bigint, now jsonb) returns bool language sql immutable parallel safe
return coalesce(is_member, false) or (hold is not null and coalesce(now->'member' = 'true', false));

-- How many members each segment lost by removals that occurred in this minute, less those who came back.
create table removal_count (
  segment_id uuid,
  minute timestamptz,
  removed int not null,
  touched_at timestamptz not null default now(),
  primary key (segment_id, minute)) with (fillfactor = 50);

-- A segment whose removals are held. number: what its memberships are marked with; members: how many it had before the window in
-- which the limit was crossed; removed: how many of them had left by then, and stay removed.
create table removal_hold (
  segment_id uuid primary key,
  number bigint not null unique generated always as identity,
  since timestamptz not null default now(),
  members bigint not null,
  removed bigint not null);

-- A hold that was released, while its removals are still being applied: a keyset cursor over its users.
create table hold_release (
  number bigint primary key,
  segment_id uuid not null,
  after_user uuid not null default '00000000-0000-0000-0000-000000000000',
  done bigint not null default 0,
  total bigint not null,
  created_at timestamptz not null default now());

-- ── What operators did ─────────────────────────────────────────────────────────────────────────────────────────────

-- On record: every change that no event asked for. No personal data beyond ids; an erasure names nobody.
create table intervention (
  id bigint primary key generated always as identity,
  at timestamptz not null default now(),
  by text not null,
  operation text not null,
  detail jsonb not null);

-- How far a reconcile of this scope has come, so that one that was interrupted goes on; the row goes when it is through.
-- part: which table it reads; next_*: the first key that is still to be looked at; counts: what was found and repaired so far.
create table reconcile_run (
  scope text primary key,
  part text not null,
  next_first uuid not null,
  next_second uuid not null,
  counts jsonb not null,
  started_at timestamptz not null default now(),
  updated_at timestamptz not null default now());

-- The workers as they last spoke of themselves, every few seconds; for people who ask who has what. Nothing is decided by it.
-- partitions: an object topic → numbers; the rates are per second since the time before.
create table worker (
  holder text primary key,
  version text not null,
  since timestamptz not null default clock_timestamp(),
  seen_at timestamptz not null default clock_timestamp(),
  partitions jsonb not null,
  records_per_s float8 not null,
  published_per_s float8 not null) with (fillfactor = 50);

-- Dead letters that were sent back, by where they stand in the dead-letter topic: each goes back once.
create table dead_letter_replay (
  topic text,
  partition int,
  record_offset bigint,
  topic_id text not null,
  replayed_at timestamptz not null default now(),
  primary key (topic, partition, record_offset));

-- ── Versions ───────────────────────────────────────────────────────────────────────────────────────────────────────

-- One row, written by `migrate`: the revision that a worker must have heard of to run with this database. A worker that finds a
-- revision which it doesn't know asks here whether it may go on (database/halves.py).
create table schema_support (
  single bool primary key default true check (single),
  oldest_worker text not null);
insert into schema_support (oldest_worker) values ('0001');
