"""What a command does, one file each, for operators and course teams: composed from the rooms, without words or tables (cli/).

Whatever changes facts or rows goes the way of live events, under the same locks and through the same rule (design §2).
"""
