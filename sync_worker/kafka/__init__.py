"""Kafka as every room needs it: its properties, its errors translated, and questions to the brokers. No records here."""
