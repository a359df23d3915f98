"""Measures pgqrs beside the bare database and beside its peers, all in one run.

Every measurement has a fresh database, whose backlog is enqueued before the clock starts. In each
round, every side of a scenario is measured once. The result is the median of the rounds and of
their ratios. PostgreSQL is a private server with fsync and synchronous_commit on.
"""

import argparse
import shlex
import signal
import sys
import tempfile
import time
from pathlib import Path

from loadtest import counters, page, report, results
from loadtest.bench import Bench
from loadtest.measuring import measure
from loadtest.results import Found, Results
from loadtest.scenarios import scenarios

QUICK = 0.1


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="dev.py load", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the counts and one round: a few minutes"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default 3")
    parser.add_argument(
        "--only",
        metavar="WORDS",
        action="append",
        help="scenarios with these words in their names; may be given again",
    )
    parser.add_argument(
        "--list", action="store_true", help="the scenarios and their sides, and nothing is measured"
    )
    parser.add_argument("--no-peers", action="store_true", help="leave out what has to be installed first")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the result here, after each scenario"
    )
    parser.add_argument(
        "--from",
        type=Path,
        dest="kept",
        metavar="FILE",
        help="measure nothing: show the result that --json wrote",
    )
    parser.add_argument(
        "--write-docs", action="store_true", help="put the table and the charts into docs/benchmarks.md"
    )
    args = parser.parse_args()
    found = results.read(args.kept) if args.kept else run(args)
    if args.list:
        return 0
    report.show(found)
    if args.write_docs:
        page.write(found)
    return 1 if any(not each.values for each in found.found) else 0


def _end(*_: object) -> None:
    """Exits as Ctrl-C does, so that everything started is ended."""
    sys.exit(1)


def run(args: argparse.Namespace) -> Results:
    rounds = 1 if args.quick else max(1, args.rounds)
    found: list[Found] = []
    began = time.monotonic()
    signal.signal(signal.SIGTERM, _end)
    with counters.start_server() as server, tempfile.TemporaryDirectory() as folder:
        said = results.context("python3 dev.py load " + shlex.join(sys.argv[1:]), counters.version(server))
        bench = Bench(server, Path(folder), QUICK if args.quick else 1.0, peers=not args.no_peers)
        for scenario in scenarios(bench):
            if args.only and not any(words in scenario.name for words in args.only):
                continue
            if args.list:
                print(f"{scenario.name} ({scenario.unit}): {'; '.join(scenario.sides)}")
                continue
            found.append(measure(scenario, bench, rounds))
            if args.json:
                Results(said, found).write(args.json)
    said["took"] = f"{(time.monotonic() - began) / 60:.0f} min"
    done = Results(said, found)
    if args.json and not args.list:
        done.write(args.json)
    return done


if __name__ == "__main__":
    sys.exit(main())
