"""Facts → rows: the rule, the statements that apply it, and everything that enters by it. It never reads Kafka and never publishes."""
