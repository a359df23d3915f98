"""Uses every call that pgqrs 0.15.3 has, and prints what it sees: one line an observation, `section.label = what`.

Imports nothing but the standard library and whichever `pgqrs` there is. Each section has a schema of its own, of its name, so ids
start at 1 and a difference stays where it is. Times become `<time>`; where their value matters it is compared here. Left out
is what 0.15.3 never returns from: a poll with a plain function for a handler, a batch of 0, a server that does not listen.

    PGQRS_DSN=… python every_call sections             their names
    PGQRS_DSN=… python every_call [section …]
"""

import asyncio
import importlib
import os
import sys

from look import SECTIONS, Look

for module in ("settings", "setting_up", "messages", "polling", "workflows", "decorated"):
    importlib.import_module(module)


async def main(names):
    for name in names or SECTIONS:
        await SECTIONS[name](Look(name))


if sys.argv[1:] == ["sections"]:
    print(*SECTIONS, sep="\n")
else:
    asyncio.run(main(sys.argv[1:]))
sys.stdout.flush()
os._exit(0)  # 0.15.3 now and then crashes as the interpreter ends
