"""Planted mistakes in the finding of records and the handing over of results: the seeds of test_branches find each of them."""

import asyncio
import contextlib

import msgspec
import pytest

from pgqrs.flows import handover, history, scope
from pgqrs.flows.flow import Refused
from supervisors.worker import coroutines
from tests import test_branches
from tests.async_branches import until_done

SEEDS = 40


def found(workflow):
    """The first seed under which the workflow goes wrong, None if it does under none."""
    for seed in range(SEEDS):
        test_branches.chance.seed(seed)
        try:
            result, _ = until_done(workflow, seed)
        except (Refused, AssertionError):
            return seed
        if msgspec.json.decode(result) != {x: f"21{x}" for x in test_branches.ITEMS}:
            return seed
    return None


def results_by_name_alone(patch):
    def match(self, name, place):
        for s in sorted(self._unreached.values(), key=lambda s: s.position):
            if history.step_of(s.name) == name:
                return s
        return None

    patch.setattr(history.History, "_match", match)
    patch.setattr(history.History, "_refuse_to_skip", lambda *_: None)


def no_order_of_ends(patch):
    async def at_once(self, ended):
        self.passed(ended)

    patch.setattr(handover.Handover, "turn", at_once)


def no_rest_between_results(patch):
    patch.setattr(handover.Handover, "_at_rest", lambda self: True)


def tasks_numbered_as_they_come_to_run(patch):
    """Every task of a run has the same path: its calls are numbered together."""

    def same(self, name):
        self.context.branched = True
        return self

    patch.setattr(scope.Scope, "child", same)


def tasks_hashed_by_address(patch):
    patch.setattr(coroutines.BranchTask, "__hash__", object.__hash__)


def completed_walks_over_a_set(patch):
    patch.setattr(asyncio.tasks, "_pgqrs_in_order", unordered(asyncio.tasks._pgqrs_in_order))


def unordered(in_order):
    def by_address(fs, timeout):
        return in_order(sorted(fs, key=id, reverse=bool(test_branches.chance.randrange(2))), timeout)

    return by_address


PLANTS = [
    (results_by_name_alone, test_branches.gathered),
    (no_order_of_ends, test_branches.completed),
    (no_order_of_ends, test_branches.queued),
    (no_rest_between_results, test_branches.waited),
    (tasks_hashed_by_address, test_branches.waited),
    (tasks_numbered_as_they_come_to_run, test_branches.gathered),
    (completed_walks_over_a_set, test_branches.completed_branches),
]


@pytest.mark.slow
@pytest.mark.parametrize(("plant", "workflow"), PLANTS, ids=lambda f: f.__name__)
def test_a_planted_mistake_is_found(plant, workflow, monkeypatch):
    monkeypatch.setattr(handover, "STUCK_S", 0.02)
    coroutines.walk_in_order()
    assert found(workflow) is None
    with monkeypatch.context() as patch, contextlib.suppress(RuntimeWarning):
        plant(patch)
        assert found(workflow) is not None
