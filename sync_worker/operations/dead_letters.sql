-- What the commands `dlq …` remember and look up. Dead letters themselves are in Kafka; their publishing is the outbox's.

-- :name replayed
-- Of the topic as it is now: one made anew has other records under the same offsets.
select partition, record_offset, replayed_at from dead_letter_replay where topic = %(topic)s and topic_id = %(topic_id)s

-- :name replay_record
-- Idempotent, and in key order. A record of a topic of the same name that is gone gives way.
insert into dead_letter_replay as r (topic, partition, record_offset, topic_id)
select %(topic)s, partition, record_offset, %(topic_id)s
from unnest(%(partitions)s::int[], %(offsets)s::bigint[]) i(partition, record_offset) order by 2, 3
on conflict (topic, partition, record_offset) do update set topic_id = excluded.topic_id, replayed_at = now()

-- :name replay_forget
-- What retention has deleted, or a topic that was made anew has replaced, can't be sent back again.
delete from dead_letter_replay r
using unnest(%(partitions)s::int[], %(earliest)s::bigint[]) i(partition, earliest)
where r.topic = %(topic)s and r.partition = i.partition and (r.topic_id <> %(topic_id)s or r.record_offset < i.earliest)

-- :name kept
-- The bytes of a dead letter that was too large for its topic, unless they were too many to be kept at all. Read again it may be there twice; the bytes are the same.
select key, value, header_names, header_values from dead_letter
where truncated and value is not null and topic = %(topic)s and partition = %(partition)s and record_offset = %(offset)s and reason = %(reason)s
  and record_timestamp_ms is not distinct from %(timestamp_ms)s
order by id desc limit 1
