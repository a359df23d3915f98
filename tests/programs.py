"""Programs that a test writes and runs as a user would."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ENDS_S = 60


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def run(
    *arguments: object,
    cwd: Path,
    stdin: str | None = None,
    options: Sequence[str] = (),
    env: dict[str, str] | None = None,
    **how: Any,
) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` in a folder, to its end. Variables of `env` come on top."""
    return subprocess.run(
        [sys.executable, *options, *(str(a) for a in arguments)],
        cwd=cwd,
        input=stdin,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=ENDS_S,
        check=False,
        **how,
    )


def supervise(
    *arguments: object, dsn: str, cwd: Path, env: dict[str, str] | None = None, **how: Any
) -> subprocess.CompletedProcess[str]:
    """`pgqrs supervise ARGUMENTS --burst`, to its end."""
    command = ["-m", "pgqrs", "supervise", *arguments, "--burst", "--dsn", dsn]
    return run(*command, cwd=cwd, env=env, **how)
