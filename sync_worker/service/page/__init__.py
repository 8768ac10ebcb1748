"""The page at `/`: the status document for people, server-rendered, read-only, from memory alone (contract §6).

`observing` feeds it, `view` chooses what is shown and in which words, `rendering` makes HTML of it.
"""
