import math
import re
from pathlib import Path

import numpy as np
import pytest

from tools.report.charts import render, spread, ticks
from tools.report.curves import Chart, Curve, Level, framed, smoothed, thinned
from tools.report.names import Leader, duration, figure, leader, metric, primary
from tools.runs import Run, Series


def series(steps, values):
    return Series(np.asarray(steps, np.int64), np.asarray(values, np.float64))


def test_smoothing_matches_its_definition():
    steps = np.array([400, 410, 430, 431, 500])
    values = np.array([5.0, 3.0, math.nan, 4.0, 1.0])
    got = smoothed(series(steps, values), half_life=15.0).values
    for index in (0, 1, 3, 4):
        kept = [i for i in range(index + 1) if math.isfinite(values[i])]
        weights = 0.5 ** ((steps[index] - steps[kept]) / 15.0)
        np.testing.assert_allclose(got[index], weights @ values[kept] / weights.sum(), rtol=1e-12)
    assert math.isnan(got[2])


def test_smoothing_follows_closely_at_the_start():
    steps = np.arange(1, 1001)
    values = 9.0 * (1 + steps / 10) ** -0.8
    got = smoothed(series(steps, values), half_life=200.0).values
    assert abs(got[30] - values[30]) < 0.1 * values[30]


@pytest.mark.parametrize("count", [10, 1500, 1501, 4001, 100_003])
def test_thinning_keeps_ends_spikes_and_gaps(count):
    values = np.sin(np.arange(count) / 50)
    values[count // 3], values[count // 2], values[-2] = 99.0, -99.0, math.nan
    thin = thinned(series(np.arange(count), values))
    assert len(thin.steps) <= 1500
    assert (np.diff(thin.steps) > 0).all()
    assert thin.steps[0] == 0 and thin.steps[-1] == count - 1
    assert {99.0, -99.0} <= set(thin.values.tolist())
    assert np.isnan(thin.values).any()
    np.testing.assert_array_equal(values[thin.steps], thin.values)


def chart(values, levels=(), **fields):
    curve = Curve("x", 0, 0, "points", series(range(len(values)), values))
    bare = Chart("t", "", [curve], [Level("base", value) for value in levels], **fields)
    return framed(bare, allow_log=True)


def test_range_leaves_out_a_few_far_values_and_says_so():
    rng = np.random.default_rng(0)
    values = 1.0 + 0.1 * rng.random(1000)
    calm = chart(values)
    assert calm.low < values.min() and calm.high > values.max() and calm.remarks == []
    values[500] = 40.0
    spiky = chart(values)
    assert spiky.high < 2.0
    assert spiky.remarks == ["1 value beyond the plot"]


def test_range_takes_in_near_baselines_only():
    values = np.linspace(3.0, 4.0, 50)
    assert chart(values, [4.5]).high > 4.5
    far = chart(values, [40.0], large=True)
    assert far.high < 5.0
    assert far.remarks == ["base (40) is above the plot"]
    assert "base" in render(chart(values, [4.5]), legend=False)


def test_values_over_decades_get_a_log_axis():
    wide = chart(np.geomspace(1e-4, 1.0, 100))
    assert wide.log and wide.low > 0
    drawn = render(wide, legend=False)
    heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", drawn.split("points")[1])]
    np.testing.assert_allclose(np.diff(heights[:100]), np.diff(heights[:100])[0], atol=0.011)
    assert not chart(np.linspace(-1.0, 100.0, 100)).log


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("ends", [(0.9, 1.1), (3e-5, 7e-4), (0.5, 3e6), (2.0, 9.01), (100.0, 2e5)])
def test_ticks_are_round_few_and_inside(ends, log):
    got = ticks(ends[0], ends[1], 5, log=log)
    assert 2 <= len(got) <= 9
    assert all(ends[0] * (1 - 1e-9) <= tick <= ends[1] * (1 + 1e-9) for tick in got)
    assert got == sorted(got)
    for tick in got:
        assert len(f"{tick:.6g}".strip("0.").replace(".", "").rstrip("0")) <= 8


def test_labels_are_pushed_apart_and_stay_inside():
    got = spread([10.0, 12.0, 13.0, 95.0, 99.0], 15.0, 100.0)
    assert (np.diff(got) >= 15.0 - 1e-9).all()
    assert got[-1] <= 100.0
    assert spread([10.0, 50.0], 15.0, 100.0) == [10.0, 50.0]


def test_numbers_as_people_read_them():
    cases = {
        0.0: "0",
        3.4567: "3.457",
        0.00123456: "0.001235",
        154361.27: "154,361",
        8192.0: "8,192",
        1.5e-7: "1.5e-7",
        math.nan: "not finite",
        math.inf: "not finite",
    }
    assert {value: figure(value) for value in cases} == cases
    assert [duration(s) for s in (4.25, 110.0, 3725.0, 180_000.0)] == [
        "4.2 s",
        "1 min 50 s",
        "1 h 2 min",
        "2 d 2 h",
    ]


def test_only_metrics_of_known_direction_rank():
    assert primary(["perplexity", "nats_per_token"]) == "nats_per_token"
    assert primary(["generator_loss", "r1_penalty"]) is None
    assert primary(["r1_penalty", "reconstruction_loss"]) == "reconstruction_loss"
    assert primary(["recall", "kid_digits", "fid_digits", "images"]) == "fid_digits"
    assert primary(["coverage", "modes", "kl"]) == "kl"
    assert metric("images_per_second").better == "higher"


@pytest.mark.parametrize(
    ("name", "title", "better"),
    [
        ("fid_digits_classifier", "FID (digits classifier)", "lower"),
        ("fid50k", "FID (50k)", "lower"),
        ("kid", "KID", "lower"),
        ("precision_inception", "Precision (inception)", "higher"),
        ("path_length_in_w_end", "Path length in W (end)", "lower"),
        ("path_length", "Path length", None),
        ("modes", "Modes", "higher"),
        ("klaxons", "Klaxons", None),
        ("fidelity", "Fidelity", None),
        ("real_sign", "Sign on real images", None),
    ],
)
def test_figures_of_images_are_known_by_the_start_of_their_names(name, title, better):
    assert (metric(name).title, metric(name).better) == (title, better)


def test_runs_rank_by_what_they_kept_their_best_by():
    def run(**checkpoint):
        return Run(Path("run"), {"checkpoint": checkpoint}, {}, [], [], [])

    names = ["fid_digits", "recall", "beauty"]
    by_recall = run(best_metric="recall", best_is="highest")
    assert leader([by_recall], names) == Leader("recall", "higher")
    assert leader([by_recall, by_recall], names) == Leader("recall", "higher")
    # Before the field was there, the best was the lowest.
    assert leader([run(best_metric="beauty")], names) == Leader("beauty", "lower")
    for others in (
        [by_recall, run(best_metric="beauty")],
        [run(best_metric="none", best_is="lowest")],
        [run(best_metric="gone", best_is="highest")],
    ):
        assert leader(others, names) == Leader("fid_digits", "lower")
    assert leader([Run(Path("run"), {}, {}, [], [], [])], ["beauty"]) is None
