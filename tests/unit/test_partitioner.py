"""The partitioner against the hashes that Kafka's own tests of murmur2 give."""

from __future__ import annotations

import pytest

from sync_worker.kafka import partitioner

# From org.apache.kafka.common.utils.UtilsTest, as signed integers.
_KAFKA = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize(("key", "hashed"), _KAFKA.items())
@pytest.mark.parametrize("partitions", [1, 2, 3, 12, 997])
def test_a_key_goes_where_kafkas_own_clients_send_it(key: bytes, hashed: int, partitions: int) -> None:
    assert partitioner.partition_of(key, partitions) == (hashed & 0x7FFFFFFF) % partitions
