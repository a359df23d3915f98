"""What the load tests make of what they measured. The measuring itself takes minutes, and is not run here."""

import xml.etree.ElementTree as ElementTree

import pytest

from loadtest import charts, others, page, report, results
from loadtest.bench import Bench
from loadtest.confidence import median_bound
from loadtest.measuring import measure
from loadtest.results import Found, Results
from loadtest.scenario import Aim, Scenario
from loadtest.scenarios import scenarios

CONTEXT = {
    "machine": "2 cores", "server": "PostgreSQL 15", "date": "2026-01-01", "commit": "abc", "load": "idle", "command": "load",
}  # fmt: skip


@pytest.fixture
def bench(tmp_path):
    return Bench(None, tmp_path, 0.1, peers=True)


def found(values, better="more", aims=None, **more):
    return Found("drain", "messages/s", better, values, aims or {}, **more)


def line(*args, **more):
    [only] = results.lines(Results(CONTEXT, [found(*args, **more)]))
    return only


# The bound


def test_the_bound_of_15_values_is_the_fourth_from_the_end():
    values = [float(n) for n in (15, 2, 3, 14, 5, 6, 7, 8, 9, 10, 11, 12, 13, 4, 1)]
    assert (median_bound(values, "lower"), median_bound(values, "upper")) == (4.0, 12.0)


def test_five_values_are_bounded_by_their_extremes_and_fewer_by_nothing():
    assert median_bound([1.0, 2.0, 3.0, 4.0, 5.0], "upper") == 5.0
    assert median_bound([1.0, 2.0, 3.0, 4.0], "upper") is None


# Verdicts


@pytest.mark.parametrize("better, ours, reached", [("more", 51.0, True), ("more", 49.0, False), ("less", 49.0, True), ("less", 51.0, False)])  # fmt: skip
def test_a_ratio_is_to_be_at_least_its_aim_where_more_is_better_and_else_at_most(better, ours, reached):
    told = line({"pgqrs": [ours], "raw": [100.0]}, better, {"raw": Aim(ratio=0.5)})
    assert told.reached is reached
    assert told.aim == ("at least 0.5" if better == "more" else "at most 0.5")


def test_the_ratio_is_the_median_of_the_rounds_ratios_and_not_the_ratio_of_medians():
    told = line({"pgqrs": [10.0, 20.0, 90.0], "raw": [10.0, 40.0, 100.0]})
    assert told.ratio == "0.90"
    assert told.reached is None


def test_a_bound_counts_as_well_as_the_median():
    ours = [1.0] * 11 + [1.1] * 4
    aims = {"pool": Aim(ratio=1.03, ratio_bound=1.05)}
    assert line({"pgqrs": ours, "pool": [1.0] * 15}, "less", aims).reached is False
    assert line({"pgqrs": [1.0, *ours[:-1]], "pool": [1.0] * 15}, "less", aims).reached is True


def test_a_bound_that_too_few_rounds_give_is_not_reached():
    told = line({"pgqrs": [1.0], "pool": [1.0]}, "less", {"pool": Aim(ratio=1.03, ratio_bound=1.05)})
    assert told.reached is False
    assert "too few rounds" in told.ratio


def test_sides_apart_are_judged_by_their_own_values():
    apart = found(
        {"p50": [2.0], "p99": [20.0]}, "less", {"p50": Aim(value=3.0), "p99": Aim(value=15.0)}, apart=True
    )
    told = results.lines(Results(CONTEXT, [apart]))
    assert [(each.reached, each.ratio) for each in told] == [(True, ""), (False, "")]


# Measuring


def test_sides_take_turns(bench):
    taken = []

    def side(name):
        return lambda: taken.append(name) or 1.0

    measure(Scenario("s", "u", "more", {"a": side("a"), "b": side("b")}), bench, 2)
    assert taken == ["a", "b", "a", "b"]


def test_a_side_that_fails_is_left_out_and_said(bench):
    def fails():
        raise RuntimeError("no such package")

    got = measure(Scenario("s", "u", "more", {"ours": lambda: 1.0, "peer": fails}), bench, 3)
    assert got.values == {"ours": [1.0, 1.0, 1.0]}
    told = results.lines(Results(CONTEXT, [got]))
    assert any("no such package" in each.beside for each in told)


def test_where_ours_fails_the_scenario_has_failed(bench):
    def fails():
        raise RuntimeError("it broke")

    got = measure(Scenario("s", "u", "more", {"ours": fails, "peer": lambda: 1.0}), bench, 1)
    [told] = results.lines(Results(CONTEXT, [got]))
    assert (told.ours, told.reached) == ("failed", False)


# The list


def test_scenarios_have_names_of_their_own_and_aims_for_sides_that_they_have(bench):
    every = list(scenarios(bench))
    assert len({(s.name, s.unit) for s in every}) == len(every)
    for scenario in every:
        assert set(scenario.aims) <= set(scenario.sides), scenario.name


def test_peers_are_pinned():
    for peer in others.ALL:
        assert all("==" in requirement for requirement in peer.requirements), peer.name
        assert (others.PROGRAMS / peer.program).is_file()


# What is shown


def kept():
    return Results(
        CONTEXT,
        [
            found(
                {"pgqrs": [100.0], "raw <loop>": [200.0]}, aims={"raw <loop>": Aim(ratio=0.9)}, chart="drain"
            ),
            Found(
                "idle",
                "ms",
                "less",
                {"pgqrs": [1.0]},
                {},
                costs={"pgqrs": {"CPU s, workers": 0.000012, "statements": 0.5}},
            ),
        ],
    )


def test_a_result_is_read_back_as_it_was_written(tmp_path):
    file = tmp_path / "result.json"
    kept().write(file)
    assert results.read(file) == kept()


def test_the_page_gets_the_table_the_costs_and_the_charts_and_keeps_its_prose(tmp_path):
    text = tmp_path / "benchmarks.md"
    text.write_text(f"# Before\n\n{page.BEGIN}\nold\n{page.END}\n\nAfter.\n")
    page.write(kept(), text)
    once = text.read_text()
    assert once.startswith("# Before\n")
    assert once.endswith("\n\nAfter.\n")
    assert "old" not in once
    assert "| drain, messages/s | 100 | raw <loop>: 200 | 0.50 | at least 0.9 | **missed** |" in once
    assert "| scenario | CPU µs, workers | statements |" in once
    assert "| idle | 12.00 | 0.50 |" in once
    assert "![drain](benchmarks/drain.svg)" in once
    page.write(kept(), text)
    assert text.read_text() == once


def test_a_page_without_a_place_is_refused(tmp_path):
    text = tmp_path / "benchmarks.md"
    text.write_text("# Nothing\n")
    with pytest.raises(ValueError, match="lacks the two comments"):
        page.write(kept(), text)


def test_the_page_of_this_project_has_its_place():
    text = page.PAGE.read_text()
    assert text.index(page.BEGIN) < text.index(page.END)


def test_charts_are_sound_xml_with_a_bar_a_side(tmp_path):
    [(name, picture)] = charts.charts(kept()).items()
    root = ElementTree.fromstring(picture)
    bars = root.findall("{http://www.w3.org/2000/svg}rect")
    assert name == "drain"
    assert [bar.get("class") for bar in bars] == ["ours", "other"]
    assert float(bars[1].get("width")) == pytest.approx(2 * float(bars[0].get("width")))


def test_the_table_on_the_screen_names_every_scenario(capsys):
    report.show(kept())
    shown = capsys.readouterr().out
    assert "drain" in shown
    assert "idle, ms" in shown
