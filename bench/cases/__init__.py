"""The cases of `python -m bench run`, in the order in which all of them run."""

from bench.cases import growth, ideas, latency, memory, methods, peers, roundtrip, starting, storage, throughput
from bench.frame import Case

CASES: dict[str, Case] = {
    case.name: case
    for case in (
        throughput.CASE,
        latency.CASE,
        methods.CASE,
        starting.CASE,
        roundtrip.CASE,
        memory.CASE,
        storage.CASE,
        growth.CASE,
        ideas.CASE,
        peers.CASE,
    )
}
