import os
import sys

import pgqrs

# `python -m` puts the current folder first in sys.path. A file there could shadow a module that
# pgqrs imports.
_folder = os.path.realpath(sys.path[0] or ".")
if (
    not sys.flags.safe_path
    and _folder == os.path.realpath(".")
    and not os.path.realpath(pgqrs.__file__).startswith(os.path.join(_folder, "pgqrs"))
):
    del sys.path[0]

from pgqrs.cli import main  # noqa: E402

main()
