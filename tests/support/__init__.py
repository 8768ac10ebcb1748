"""What tests of the real worker share: a site (database, topics, workers) on the session's services, and its observers."""
