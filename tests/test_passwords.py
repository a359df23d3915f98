"""No part of a password reaches a traceback: not the message, and not the driver's exception that led to it."""

import asyncio
import traceback

import psycopg
import pytest

import pgqrs
from pgqrs.config import scrub_errors

# The password is not encoded as it must be, so that the driver takes a part of it for something else.
DSNS = [
    "postgresql://u:first@second-part@127.0.0.1:1/db",
    "postgresql://u:first%zzsecond-part@127.0.0.1:1/db",
    "postgresql://u:first/second-part@127.0.0.1:1/db",
    "postgresql://u:first@second-part@[::1/db",
    "postgresql://u:first@second-part@127.0.0.1:1/db?nonsense=1",
    "postgresql://127.0.0.1:1/db?user=u&password=first%zzsecond-part",
    "host=127.0.0.1 port=1 password='first second-part",
]


@pytest.mark.parametrize("address", DSNS)
def test_no_part_of_a_password_is_in_the_traceback_of_a_failed_connect(address):
    def blocking():
        with pgqrs.connect(address):
            pass

    async def awaited():
        await pgqrs.connect(address)

    for connect in (blocking, lambda: asyncio.run(awaited())):
        with pytest.raises(pgqrs.PgqrsError) as failed:
            connect()
        # Without the lines of source, in which this test itself stands.
        chain = traceback.TracebackException.from_exception(failed.value)
        told, at = "", chain
        while at is not None:
            told += "".join(at.format_exception_only())
            at = at.__cause__ or at.__context__
        assert "second-part" not in told
        assert "first" not in told


def test_the_driver_s_exception_stays_the_cause():
    with pytest.raises(pgqrs.PgqrsError) as failed, pgqrs.connect("postgresql://u:secret@127.0.0.1:1/db"):
        pass
    assert isinstance(failed.value.__cause__, psycopg.OperationalError)


def test_a_whole_chain_and_its_notes_are_scrubbed():
    first, second = OSError(5, "at secret-word"), ValueError("no secret-word")
    second.__context__, first.__cause__ = first, second
    second.add_note("it was secret-word")
    scrub_errors(first, "postgresql://u:secret-word@host/db")
    assert "secret-word" not in f"{first!r} {second!r} {second.__notes__}"
    assert first.args[0] == 5
