-- What `status` reads, all in one snapshot. Ids come as text and times with their zone, as the document gives them.

-- :name positions
select topic, partition, next_offset from position

-- :name newest_window
select number, published, created_at from relay_window order by number desc limit 1

-- :name backfills
select b.method_id::text, m.course_id::text, m.segment_id::text, m.name, m.segment_name, b.version, b.done, b.total, b.created_at as since
from backfill b join method m using (method_id) order by b.created_at

-- :name holds
-- Segments whose removals are held; the index on marked memberships makes counting them cheap. Names come with methods
-- alone: what the newest one on a segment calls it.
select h.segment_id::text,
       (select m.segment_name from method m where m.segment_id = h.segment_id and not m.deleted and m.segment_name is not null
        order by m.occurred_at desc limit 1) as segment_name,
       h.since, h.members, h.removed,
       (select count(*) from membership m where m.segment_id = h.segment_id and m.hold = h.number) as held
from removal_hold h order by h.since, h.segment_id

-- :name releases
select r.segment_id::text,
       (select m.segment_name from method m where m.segment_id = r.segment_id and not m.deleted and m.segment_name is not null
        order by m.occurred_at desc limit 1) as segment_name,
       r.number, r.done, r.total, r.created_at as since
from hold_release r order by r.created_at, r.number

-- :name dead_letters
select reason, topic, records::bigint, last_at from dead_letter_count order by reason, topic

-- :name leader
select holder, since, expires_at from relay_lease where expires_at > clock_timestamp()

-- :name workers
-- What each worker last said of itself; one that stopped in order has taken its row away. A worker speaks every five
-- seconds; one that missed three times has been stopped, frozen or cut off.
select holder, version, since, seen_at, seen_at > clock_timestamp() - interval '16 seconds' as present, partitions,
       records_per_s, published_per_s
from worker order by since, holder
