"""The same consumer on FastStream and SQLAlchemy, as their documentation has it: a handler per message, a session and transaction in it.

The offset is acknowledged by the framework after the handler. Nothing publishes the outbox.
"""

import asyncio
import sys
from typing import Any

import sqlalchemy as sa
from faststream import AckPolicy, FastStream  # type: ignore[import-not-found]  # of the peers' own environment
from faststream.confluent import KafkaBroker  # type: ignore[import-not-found]  # as above
from sqlalchemy.dialects.postgresql import JSONB, UUID, insert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from bench.peers.decoding import decode


class Base(DeclarativeBase):
    metadata = sa.MetaData(schema="peer")


class Method(Base):
    __tablename__ = "method"
    method_id: Mapped[str] = mapped_column(UUID(as_uuid=False), primary_key=True)
    course_id: Mapped[str] = mapped_column(UUID(as_uuid=False))
    segment_id: Mapped[str] = mapped_column(UUID(as_uuid=False))
    role: Mapped[str]
    active: Mapped[bool]


class Membership(Base):
    __tablename__ = "membership"
    segment_id: Mapped[str] = mapped_column(UUID(as_uuid=False), primary_key=True)
    user_id: Mapped[str] = mapped_column(UUID(as_uuid=False), primary_key=True)
    is_member: Mapped[bool]
    version: Mapped[int] = mapped_column(sa.BigInteger)


class Enrollment(Base):
    __tablename__ = "enrollment"
    course_id: Mapped[str] = mapped_column(UUID(as_uuid=False), primary_key=True)
    user_id: Mapped[str] = mapped_column(UUID(as_uuid=False), primary_key=True)
    status: Mapped[str]
    role: Mapped[str]
    version: Mapped[int] = mapped_column(sa.BigInteger)


class Outbox(Base):
    __tablename__ = "outbox"
    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(always=True), primary_key=True)
    key: Mapped[str]
    payload: Mapped[dict[str, Any]] = mapped_column(JSONB)


async def apply(session: AsyncSession, event: dict[str, Any]) -> None:
    fact = insert(Membership).values({name: event[name] for name in ("segment_id", "user_id", "is_member", "version")})
    fact = fact.on_conflict_do_update(
        index_elements=["segment_id", "user_id"],
        set_={"is_member": fact.excluded.is_member, "version": fact.excluded.version},
        where=Membership.version < fact.excluded.version,
    )
    if (await session.execute(fact.returning(Membership.version))).first() is None:
        return  # stale, or said before
    status = "ACTIVE" if event["is_member"] else "ABSENT"
    methods = await session.scalars(sa.select(Method).where(Method.segment_id == event["segment_id"], Method.active))
    for method in methods.all():
        values = {"course_id": method.course_id, "user_id": event["user_id"], "status": status, "role": method.role}
        row = insert(Enrollment).values(**values, version=1)
        row = row.on_conflict_do_update(
            index_elements=["course_id", "user_id"],
            set_={"status": row.excluded.status, "role": row.excluded.role, "version": Enrollment.version + 1},
        )
        version = await session.scalar(row.returning(Enrollment.version))
        payload = {**values, "version": version, "cause": event["event_id"]}
        session.add(Outbox(key=f"{method.course_id}:{event['user_id']}", payload=payload))


def main(servers: str, topic: str, group: str, database_url: str) -> None:
    sessions = async_sessionmaker(create_async_engine(database_url.replace("postgresql://", "postgresql+psycopg://")))
    broker = KafkaBroker(servers)

    async def decoded(message: Any) -> dict[str, Any]:
        return decode(message.body)

    @broker.subscriber(
        topic, group_id=group, auto_offset_reset="earliest", ack_policy=AckPolicy.NACK_ON_ERROR, decoder=decoded
    )  # type: ignore[untyped-decorator]  # untyped where the peer isn't installed
    async def handle(event: dict[str, Any]) -> None:
        async with sessions.begin() as session:
            await apply(session, event)

    asyncio.run(FastStream(broker).run())


if __name__ == "__main__":
    main(*sys.argv[1:])
