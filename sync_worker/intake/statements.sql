-- Positions of input partitions, kept where their effects are (design §4), and the records that can't be applied.

-- :name positions_move
-- Compare and set. Idempotent: where the position is another, nothing moves and the count says so. Locked in key order, whatever the join
-- does: two workers that both believe to own partitions wait for one another, they don't deadlock. Who waited compares with what came of it.
with held as materialized (
  select i.topic, i.partition, i.before, i.after
  from unnest(%(topics)s::text[], %(partitions)s::int[], %(befores)s::bigint[], %(afters)s::bigint[]) i(topic, partition, before, after)
  join position q on q.topic = i.topic and q.partition = i.partition order by 1, 2 for update of q)
update position p set next_offset = held.after, updated_at = now()
from held where p.topic = held.topic and p.partition = held.partition and p.next_offset = held.before

-- :name positions
select topic, partition, next_offset from position
where (topic, partition) in (select * from unnest(%(topics)s::text[], %(partitions)s::int[]))

-- :name topics_known
select topic, topic_id, cluster_id from input_topic where topic = any(%(topics)s::text[])

-- :name topic_register
-- One worker is first; another one waits here for its transaction and then finds the topic known, with all its positions.
insert into input_topic (topic, topic_id, cluster_id) values (%(topic)s, %(topic_id)s, %(cluster_id)s) on conflict do nothing returning topic

-- :name positions_add
-- Idempotent: a position that is there is never touched.
insert into position (topic, partition, next_offset)
select * from unnest(%(topics)s::text[], %(partitions)s::int[], %(offsets)s::bigint[]) order by 1, 2 on conflict do nothing

-- :name topic_set
insert into input_topic as t (topic, topic_id, cluster_id) values (%(topic)s, %(topic_id)s, %(cluster_id)s)
on conflict (topic) do update set topic_id = excluded.topic_id, cluster_id = excluded.cluster_id, first_seen_at = now()

-- :name position_set
insert into position as p (topic, partition, next_offset) values (%(topic)s, %(partition)s, %(offset)s)
on conflict (topic, partition) do update set next_offset = excluded.next_offset, updated_at = now()

-- :name dead_letter
with kept as (
  insert into dead_letter (topic, partition, record_offset, record_timestamp_ms, key, value, header_names, header_values, reason, detail)
  values (%(topic)s, %(partition)s, %(offset)s, %(timestamp_ms)s, %(key)s, %(value)s, %(header_names)s::text[], %(header_values)s::bytea[], %(reason)s, %(detail)s)
  returning id)
insert into outbox (dead_letter_id) select id from kept

-- :name dead_letters_counted
-- In key order, at the end of the transaction: the rows are shared by all workers.
insert into dead_letter_count as c (topic, reason, records, last_at)
select topic, reason, records, now() from unnest(%(topics)s::text[], %(reasons)s::text[], %(records)s::bigint[]) t(topic, reason, records)
order by topic, reason
on conflict (topic, reason) do update set records = c.records + excluded.records, last_at = excluded.last_at
