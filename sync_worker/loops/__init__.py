"""The loops of a worker, one thread each: intake's other half (applying), backfills, and a watch over both clusters.

A loop knows when to work, wait and give up; what the work is, the rooms know. No loop calls another.
"""
