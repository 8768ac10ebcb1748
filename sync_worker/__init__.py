"""The user segment sync worker: segment events in, course enrollments in PostgreSQL, EnrollmentChanged out."""

__version__ = "0.1.0"
