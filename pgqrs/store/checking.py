"""Checks of a database before its use: missing privileges of the role, and dangers in the schema."""

from collections.abc import Iterable

from pgqrs import errors
from pgqrs.store.database import Database, Transaction
from pgqrs.store.migrations import ENCODINGS, TABLES

# The privileges of a supervisor on each table. `docs/roles.md` lists the same as grants.
OF_A_SUPERVISOR = {
    "pgqrs_migrations": "select",
    "pgqrs_database": "select",
    "pgqrs_queues": "select insert",
    "pgqrs_workflows": "select insert",
    "pgqrs_workers": "select insert update",
    "pgqrs_messages": "select update",
    "pgqrs_workflow_runs": "select insert update",
    "pgqrs_workflow_steps": "select insert update",
    "pgqrs_supervisors": "select insert update delete",
}
SEQUENCES_OF_A_SUPERVISOR = ("pgqrs_queues", "pgqrs_workflows", "pgqrs_workflow_runs", "pgqrs_workflow_steps")


def refuse_supervisor(database: Database) -> None:
    """Raises DatabaseError if the role lacks a privilege that a supervisor needs. The error names
    the missing grants.
    """
    if database.dialect != "postgres":
        return
    with database.reading() as tx:
        if lacking := lacking_grants(tx):
            [(role, _)] = tx.run("who_we_are")
            raise errors.DatabaseError(_needs(role, lacking))


def explain(database: Database, error: errors.DatabaseError) -> None:
    """Raises an error that names the role's missing privileges, if these explain `error`. Otherwise
    returns, and the caller raises `error`.
    """
    if database.dialect != "postgres" or error.refuses_value:
        return
    try:
        refuse_supervisor(database)
    except errors.DatabaseError as e:
        raise errors.DatabaseError(f"{str(error).partition(';')[0]}; {e}") from error


def cautions(database: Database) -> list[str]:
    """Returns warnings for the person who sets up the database, one sentence each."""
    if database.dialect != "postgres":
        return []
    with database.reading() as tx:
        [(role, encoding)] = tx.run("who_we_are")
        told = []
        if lacking := lacking_grants(tx):
            told.append(_needs(role, lacking))
        if makers := [name for (name,) in tx.run("creators")]:
            told.append(
                f"{_listed(makers)} may create objects in the schema that holds the tables, and so plant "
                "functions and triggers there under names that pgqrs may use one day; give pgqrs a schema "
                "of its own, or revoke it: revoke create on schema …"
            )
        if hidden := [name for (name,) in tx.run("filtered_tables", [(t,) for t in TABLES])]:
            told.append(
                f"row-level security hides rows of {_listed(hidden)} from the "
                f"role {role!r}: what it does not see is never done; use a role "
                "with BYPASSRLS, or disable row level security on these tables"
            )
        if encoding not in ENCODINGS:
            told.append(
                f"the database is encoded in {encoding}: a run with a "
                "text that it cannot hold fails; UTF8 holds every text"
            )
    return told


def lacking_grants(tx: Transaction) -> list[str]:
    """Returns the grants that a supervisor's role lacks, in SQL: "insert on pgqrs_queues"."""
    wanted = [(t, p) for t, privileges in OF_A_SUPERVISOR.items() for p in privileges.split()]
    tables = [f"{p} on {t}" for t, p in tx.run("lacking_rights", wanted)]
    sequences = tx.run("lacking_sequences", [(t,) for t in SEQUENCES_OF_A_SUPERVISOR])
    return tables + [f"usage on sequence {name}" for (name,) in sequences]


def _needs(role: str, lacking: Iterable[str]) -> str:
    return (
        f"the role {role!r} lacks what a supervisor needs: "
        f"{'; '.join(lacking)} (docs/roles.md has the grants)"
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
