-- What a worker says of itself. Rows of their own, by the database's clock; no worker waits for another one's.

-- :name worker_say
insert into worker as w (holder, version, partitions, records_per_s, published_per_s)
values (%(holder)s, %(version)s, %(partitions)s::jsonb, %(records_per_s)s, %(published_per_s)s)
on conflict (holder) do update set seen_at = excluded.seen_at, partitions = excluded.partitions,
  records_per_s = excluded.records_per_s, published_per_s = excluded.published_per_s

-- :name worker_forget
-- Another worker may be deleting the same row: whoever comes second passes it over.
delete from worker where holder in (
  select holder from worker where seen_at < clock_timestamp() - make_interval(secs => %(seconds)s) for update skip locked)

-- :name worker_leave
delete from worker where holder = %(holder)s
