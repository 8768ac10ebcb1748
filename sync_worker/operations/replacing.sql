-- What `members import --replace` compares. The file's users are in a temporary table of this session: a million of them take the
-- client no memory, and the comparison is one join.

-- :name wanted_make
create temporary table wanted (line bigint not null, user_id uuid not null, version bigint)

-- :name difference_make
create temporary table difference (
  position bigint primary key, user_id uuid not null, joins bool not null, line bigint, version bigint not null, stored bigint not null)

-- :name wanted_copy
copy wanted (line, user_id, version) from stdin

-- :name wanted_count
select count(distinct user_id) from wanted

-- :name members
select count(*) from membership where segment_id = %(segment)s and is_member

-- :name compare
-- Additions first, so that nobody who only moves within the file is away for a moment. Who is a member already is right, unless the
-- file knows a newer version. A membership of version 0 is one that no event has told of (design §3).
insert into difference
with named as (select user_id, min(line) as line, max(version) as version from wanted group by user_id),
standing as (select user_id, is_member, version from membership where segment_id = %(segment)s)
select row_number() over (order by named.user_id is null, user_id), user_id, named.user_id is not null, named.line,
  coalesce(named.version, %(version)s, case when standing.version < 9223372036854775807 then standing.version + 1 else standing.version end, 1),
  coalesce(standing.version, 0)
from named full join standing using (user_id)
where case when named.user_id is null then standing.is_member
  else not coalesce(standing.is_member, false) or named.version > standing.version end

-- :name counts
select count(*) filter (where joins and version > stored), count(*) filter (where not joins and version > stored) from difference

-- :name beaten
-- What no event can change any more: the version to be sent is not above the one that stands.
select user_id::text, joins, line, version, stored from difference where version <= stored order by position

-- :name page
select position, user_id::text, joins, version from difference
where position > %(after)s and version > stored and (joins or %(removals)s) order by position limit %(limit)s
