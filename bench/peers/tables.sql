-- What the hand-written consumer and the one on FastStream keep: the same facts and rows as the worker, as a team would draw them first.
create schema peer;
create table peer.method (method_id uuid primary key, course_id uuid not null, segment_id uuid not null, role text not null, active bool not null);
create index on peer.method (segment_id);
create table peer.membership (segment_id uuid, user_id uuid, is_member bool not null, version bigint not null, primary key (segment_id, user_id));
create table peer.enrollment (course_id uuid, user_id uuid, status text not null, role text not null, version bigint not null,
  primary key (course_id, user_id));
create table peer.outbox (id bigint generated always as identity primary key, key text not null, payload jsonb not null,
  created_at timestamptz not null default now());
-- Quix Streams' sink makes its table itself, once it has a row.
create function peer.raw_rows() returns bigint language plpgsql as $$
begin
  if to_regclass('peer.raw') is null then
    return 0;
  end if;
  return (select count(*) from peer.raw);
end $$;
-- Debezium's sink could make its table too, as its kind of database would have it.
create table peer.raw_bytes (__connect_topic text, __connect_partition int, __connect_offset bigint, value bytea not null,
  primary key (__connect_topic, __connect_partition, __connect_offset));
