"""The supervisor of `store.workers()`. It reads its order from standard input, and reports to a
descriptor when it is ready.
"""

import logging
import os
import sys
from contextlib import suppress

import msgspec

from pgqrs import errors
from pgqrs.cli.views import PlainView
from pgqrs.config import Config
from pgqrs.model.printable import printable_lines
from pgqrs.program.targets import Target
from supervisors.loop.loop import Loop
from supervisors.loop.view import Options


class Order(msgspec.Struct):
    target: Target
    config: dict[str, object]
    options: Options


def main() -> int:
    # psycopg logs warnings about errors that pgqrs catches and reports itself.
    logging.getLogger("psycopg").addHandler(logging.NullHandler())
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    try:
        return Loop(order.target, Config.from_dict(order.config), order.options, PlainView(quiet=True)).run()
    except errors.PgqrsError as e:
        assert order.options.ready_fd is not None
        try:
            os.write(order.options.ready_fd, str(e).encode()[:60000])
        except OSError:
            print(printable_lines(f"pgqrs: {e}", indent="  "), file=sys.stderr)
        return 1
    finally:
        if order.target.by_value is not None:  # the program may have died without deleting it
            with suppress(OSError):
                os.unlink(order.target.by_value)
