"""Makes the pages of docs/reference that must say what the code says: settings, metrics, commands, schemas.

It must hold no fact of its own that could be read from the code, and refuse to make a page that leaves something out.
"""
