"""Groups of brains: independent oracles, false positives of simulated studies, refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from canvas_fm.analysis.groups.compare import benjamini_hochberg, compare_groups
from canvas_fm.analysis.groups.mixed import compare_repeated
from canvas_fm.analysis.groups.study import GroupStudy, Repeats, read_study
from canvas_fm.errors import CanvasError
from canvas_fm.files.checksum import sha256

REGIONS = 60


def study(seed: int, fold: float = 1.0, brains: int = 4, spread: float = 0.3) -> GroupStudy:
    """Brains differ by 30 %; in the first ten regions group b has `fold` times the cells."""
    random = np.random.default_rng(seed)
    rate = random.uniform(50, 2000, REGIONS)
    expected = rate * np.exp(random.normal(0, spread, (2 * brains, REGIONS)))
    expected[brains:, :10] *= fold
    return GroupStudy(
        tuple(f"m{k}" for k in range(2 * brains)), ("a",) * brains + ("b",) * brains,
        np.arange(1, REGIONS + 1), tuple(map(str, range(REGIONS))), tuple(map(str, range(REGIONS))),
        random.poisson(expected).astype(float), random.uniform(0.9, 1.1, expected.shape),
    )  # fmt: skip


def test_welch_is_scipys():
    one = study(0, fold=3)
    found = compare_groups(one, "a", "b")
    log = np.log2((one.count + 0.5) / one.volume_mm3)
    theirs = stats.ttest_ind(log[4:], log[:4], equal_var=False)
    assert found.p_value == pytest.approx(theirs.pvalue)
    interval = theirs.confidence_interval()
    assert found.low == pytest.approx(interval.low)
    assert found.high == pytest.approx(interval.high)
    assert found.q_value == pytest.approx(stats.false_discovery_control(theirs.pvalue))
    assert np.median(found.log2_fold[:10]) == pytest.approx(np.log2(3), abs=0.3)


def test_corrected_p_values_leave_untested_regions_out():
    assert benjamini_hochberg(np.array([0.01, np.nan, 0.04, 0.03])).tolist() == pytest.approx(
        [0.03, np.nan, 0.04, 0.04], nan_ok=True
    )
    few = study(1)
    few.count[:, 5] = 3
    found = compare_groups(few, "a", "b", min_count=10)
    assert np.isnan(found.q_value[5])
    assert len(found.table()["id"]) == REGIONS - 1


def test_power_is_what_simulated_studies_find():
    """Of regions that truly differ 2-fold, the share found at 5 % is the power that was stated."""
    stated, found = [], []
    for seed in range(40):
        one = compare_groups(study(seed, fold=2.0), "a", "b", power_fold_change=2.0)
        stated.append(one.power[:10].mean())
        found.append((one.p_value[:10] < 0.05).mean())
    assert np.mean(found) == pytest.approx(np.mean(stated), abs=0.08)
    assert np.nanmedian(one.brains_needed[:10]) <= 8


def test_brains_needed_are_the_fewest_whose_power_is_80_percent():
    one = compare_groups(study(2), "a", "b", power_fold_change=1.7)
    log = np.log2((one.study.count + 0.5) / one.study.volume_mm3)
    deviation = np.sqrt((log[:4].var(0, ddof=1) + log[4:].var(0, ddof=1)) / 2)
    sizes = np.arange(2, 201)[:, None]
    shift = np.log2(1.7) / deviation / np.sqrt(2 / sizes)
    enough = stats.nct.sf(stats.t.ppf(0.975, 2 * sizes - 2), 2 * sizes - 2, shift) >= 0.8
    assert one.brains_needed.tolist() == (enough.argmax(0) + 2).tolist()


def with_hemispheres(seed: int, fold: float = 1.0) -> GroupStudy:
    """Left and right of each brain share its spread of 30 % and differ by 10 % more."""
    whole = study(seed, fold)
    random = np.random.default_rng((1, seed))
    shape = (len(whole.brains), 2, REGIONS)
    expected = whole.count[:, None] * np.exp(random.normal(0, 0.1, shape)) / 2
    count = random.poisson(expected).astype(float)
    volume = np.repeat(whole.volume_mm3[:, None] / 2, 2, axis=1)
    return replace(whole, count=count.sum(1), repeats=Repeats(("left", "right"), count, volume))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("studies", [60, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("model", ["welch", "negative-binomial", "mixed"])
def test_false_positives_of_many_studies(model, studies):
    """Without an effect at most 5 % of studies find a region after correction (3 standard errors allowed).

    Cells as samples find something in nearly every study, hemispheres as samples in more than brains do.
    """
    brains, cells, sides = 0, 0, 0
    for seed in range(studies):
        one = with_hemispheres(seed)
        brains += bool((compare_groups(one, "a", "b", model=model).q_value < 0.05).any())
        a, b = one.count[:4].sum(0), one.count[4:].sum(0)
        p = 2 * stats.norm.sf(np.abs(a - b) / np.sqrt(a + b))
        cells += bool((stats.false_discovery_control(p) < 0.05).any())
        log = np.log((one.repeats.count + 0.5) / one.repeats.volume_mm3)
        p = stats.ttest_ind(*(log[half].reshape(-1, REGIONS) for half in (slice(4), slice(4, 8)))).pvalue
        sides += bool((stats.false_discovery_control(p) < 0.05).any())
    print(
        f"{model}: studies with a false region: {brains} of {studies} with brains as samples, "
        f"{cells} with cells, {sides} with hemispheres"
    )
    assert brains <= 0.05 * studies + 3 * np.sqrt(studies * 0.05 * 0.95)
    assert cells >= 0.9 * studies
    assert sides > 0.3 * studies


def test_the_mixed_model_of_whole_pairs_is_a_t_test_of_the_brains_means():
    one = with_hemispheres(3, fold=3)
    found = compare_groups(one, "a", "b", model="mixed")
    mean = np.log2((one.repeats.count + 0.5) / one.repeats.volume_mm3).mean(1)
    theirs = stats.ttest_ind(mean[4:], mean[:4])
    # Where the brains differ less than their hemispheres do, both variances are taken to be one.
    spread = 2 * np.array([mean[half].var(0, ddof=1) for half in (slice(4), slice(4, 8))]).mean(0)
    within = np.diff(np.log2((one.repeats.count + 0.5) / one.repeats.volume_mm3), axis=1)[:, 0].var(0) / 2
    surely = spread > 3 * within
    assert surely.sum() > 50
    assert found.p_value[surely] == pytest.approx(theirs.pvalue[surely], rel=1e-3)
    assert found.log2_fold == pytest.approx(mean[4:].mean(0) - mean[:4].mean(0))
    assert (found.q_value[:10] < 0.05).mean() > 0.7


def test_the_mixed_model_is_that_of_statsmodels_where_brains_lack_a_side():
    sm = pytest.importorskip("statsmodels.api")
    one = with_hemispheres(4, fold=2)
    y = np.log2((one.repeats.count + 0.5) / one.repeats.volume_mm3)[:, :, :4]
    y[1, 0], y[6, 1], y[7, 1, ::2] = np.nan, np.nan, np.nan
    second = np.arange(8) >= 4
    ours = compare_repeated(y, second)
    for region in range(4):
        brain, side = np.nonzero(~np.isnan(y[:, :, region]))
        design = np.column_stack([np.ones(len(brain)), second[brain], side])
        theirs = sm.MixedLM(y[brain, side, region], design, brain).fit(reml=True)
        assert ours["effect"][region] == pytest.approx(theirs.fe_params[1], rel=1e-3, abs=1e-4)
        # The error by the formula, at their variances; what they print has those estimated too (1 % apart).
        covariance = theirs.scale * np.eye(len(brain)) + theirs.cov_re[0, 0] * (brain[:, None] == brain)
        error = np.sqrt(np.linalg.inv(design.T @ np.linalg.solve(covariance, design))[1, 1])
        half = (ours["high"] - ours["effect"])[region]
        assert half == pytest.approx(stats.t.ppf(0.975, 6) * error, rel=1e-3)
        assert error == pytest.approx(theirs.bse_fe[1], rel=0.02)


def test_measurements_of_a_brain_are_read_by_hemisphere_and_by_channel(tmp_path):
    head = "id,name,acronym,channel,hemisphere,count,volume_mm3\n"
    for at in range(4):
        rows = [
            f"1,Region,R,{channel},{side},{10 * at + number},{2 if side == 'both' else 1}\n"
            for number, (channel, side) in enumerate(
                (channel, side) for channel in "pq" for side in ("both", "left", "right")
            )
            if not (at == 2 and (channel, side) == ("q", "right"))
        ]
        (tmp_path / f"m{at}.csv").write_text(head + "".join(rows), encoding="utf-8")
    lines = [f"m{at},{'ab'[at // 2]},m{at}.csv\n" for at in range(4)]
    path = tmp_path / "study.csv"
    path.write_text("brain,group,regions\n" + "".join(lines), encoding="utf-8")
    sides = read_study(path, channel="q", repeats="hemisphere")
    assert sides.repeats.names == ("left", "right")
    assert sides.repeats.count[:, :, 0].tolist()[:2] == [[4, 5], [14, 15]]
    assert np.isnan(sides.repeats.count[2, 1, 0])
    assert sides.count[:, 0].tolist() == [9, 29, 24, 69]
    channels = read_study(path, repeats="channel")
    assert channels.repeats.names == ("p", "q")
    assert channels.repeats.count[3, :, 0].tolist() == [30, 33]
    with pytest.raises(CanvasError, match="--repeats hemisphere or --repeats channel"):
        compare_groups(read_study(path, channel="p"), "a", "b", model="mixed", min_count=0)
    for at in range(4):
        (tmp_path / f"m{at}.csv").write_text(f"{head}1,R,R,p,both,3,1\n", encoding="utf-8")
    with pytest.raises(CanvasError, match="hold no two measurements by hemisphere"):
        read_study(path, repeats="hemisphere")


def test_the_negative_binomial_model():
    effect = compare_groups(study(3, fold=3), "a", "b", model="negative-binomial")
    assert (effect.p_value[:10] < 0.05).mean() > 0.7
    assert np.median(effect.log2_fold[:10]) == pytest.approx(np.log2(3), abs=0.3)
    false = [compare_groups(study(seed), "a", "b", model="negative-binomial").p_value for seed in range(15)]
    assert (np.array(false) < 0.05).mean() < 0.075
    assert ((effect.low <= effect.log2_fold) & (effect.log2_fold <= effect.high)).all()


def test_the_negative_binomial_model_is_that_of_statsmodels():
    sm = pytest.importorskip("statsmodels.api")
    one, bits = study(5, fold=3), np.log(2)
    one.count[:, ::4] = np.rint(one.count[:, ::4] / 40)
    ours = compare_groups(one, "a", "b", model="negative-binomial", min_count=2)
    second = np.arange(8) >= 4
    design = np.column_stack([np.ones(8), second])
    for region in range(16):
        count, volume = one.count[:, region], one.volume_mm3[:, region]
        rates = [count[group].sum() / volume[group].sum() for group in (~second, second)]
        expected = volume * np.where(second, rates[1], rates[0])
        dispersion = (((count - expected) ** 2 - expected) / expected**2).sum() / 6
        family = sm.families.NegativeBinomial(alpha=max(dispersion, 1e-6))
        theirs = sm.GLM(count, design, family=family, offset=np.log(volume)).fit(scale="X2")
        fold, error = theirs.params[1], theirs.bse[1]
        assert ours.log2_fold[region] == pytest.approx(fold / bits, rel=1e-5)
        assert ours.low[region] == pytest.approx(
            (fold - stats.t.ppf(0.975, 5) * error) / bits, rel=1e-4, abs=1e-6
        )
        assert ours.p_value[region] == pytest.approx(2 * stats.t.sf(abs(fold) / error, 5), rel=1e-4)


def test_a_group_without_a_cell_differs_from_one_with_many():
    one = study(6)
    one.count[:4, 7], one.count[4:, 7] = 0, (90, 110, 100, 95)
    one.count[:, 8] = 50  # the same in every brain
    for model in ("welch", "negative-binomial"):
        effect = compare_groups(one, "a", "b", model=model)
        assert effect.p_value[7] < 0.05
        assert 5 < effect.log2_fold[7] < 12
        assert np.isfinite(effect.high[7:9]).all()


def write(folder, brains, groups, seed=0):
    one = study(seed, fold=4)
    rows = []
    for at, (brain, group) in enumerate(zip(brains, groups, strict=True)):
        text = "id,name,acronym,channel,hemisphere,count,volume_mm3,own_count,own_volume_mm3\n"
        for region in range(REGIONS):
            values = one.count[at, region], one.volume_mm3[at, region]
            text += f"{region + 1},Region {region},R{region},c,both,{values[0]},{values[1]},1,1\n"
        (folder / f"{brain}.csv").write_text(text, encoding="utf-8")
        rows.append(f"{brain},{group},{brain}.csv\n")
    (folder / "study.csv").write_text("brain,group,regions\n" + "".join(rows), encoding="utf-8")
    return folder / "study.csv"


@pytest.mark.parametrize("name", ["study.csv", "m1.csv"])
def test_a_damaged_table_is_named(tmp_path, name):
    path = write(tmp_path, ["m0", "m1", "m2", "m3"], ["a", "a", "b", "b"])
    (tmp_path / name).write_bytes(b"\xff\xca" + (tmp_path / name).read_bytes())
    with pytest.raises(CanvasError, match=f"{name} is not UTF-8 text"):
        read_study(path)
    (tmp_path / name).write_text('brain,group,regions\n"' + "a" * 200_000, encoding="utf-8")
    with pytest.raises(CanvasError, match=f"{name} is not readable as a table"):
        read_study(path)


def test_a_table_that_was_cut_or_changed_since_is_warned_about(tmp_path, caplog):
    path = write(tmp_path, ["m0", "m1", "m2", "m3"], ["a", "a", "b", "b"])
    table = tmp_path / "m2.csv"
    (tmp_path / "m2.csv.json").write_text(json.dumps({"table_sha256": sha256(table)}), encoding="utf-8")
    read_study(path)
    assert not caplog.text
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-2]), encoding="utf-8")
    assert len(read_study(path).ids) == REGIONS - 2
    assert "2 regions are not in the tables of all brains and left out" in caplog.text
    assert "the shortest table is that of m2 (m2.csv)" in caplog.text
    assert "m2.csv was changed after m2.csv.json was written" in caplog.text


def test_brains_of_one_table_are_read_by_their_own_rows(tmp_path):
    """The table that `count --regions` writes of several brains, as one of each brain."""
    path = write(tmp_path, ["m0", "m1", "m2", "m3"], ["a", "a", "b", "b"])
    apart = read_study(path)
    together = []
    for brain in apart.brains:
        head, *lines = (tmp_path / f"{brain}.csv").read_text(encoding="utf-8").splitlines()
        together += [f"{brain},{line}" for line in lines]
        first = f"brain,{head}"
    (tmp_path / "all.csv").write_text("\n".join([first, *together]), encoding="utf-8")
    rows = [f"m{at},{'ab'[at // 2]},all.csv" for at in range(4)]
    path.write_text("\n".join(["brain,group,regions", *rows]), encoding="utf-8")
    assert read_study(path).count.tolist() == apart.count.tolist()
    path.write_text("\n".join(["brain,group,regions", *rows, "m9,a,all.csv"]), encoding="utf-8")
    with pytest.raises(CanvasError, match="no rows of the brain m9; found m0, m1, m2, m3"):
        read_study(path)
    path.write_text("brain,group,regions\nm0,a,m0.csv\nm1,a,m0.csv\n", encoding="utf-8")
    with pytest.raises(CanvasError, match=r"m0 and m1 have the same table, .*m0.csv, .* no column brain"):
        read_study(path)


def test_on_the_command_line(tmp_path, capsys):
    import pandas

    from canvas_fm.cli import main

    path = write(tmp_path, [f"m{k}" for k in range(8)], ["ctrl"] * 4 + ["drug"] * 4)
    out, figures = tmp_path / "groups.csv", [tmp_path / "v.png", tmp_path / "h.png"]
    words = [
        "groups",
        str(path),
        "--out",
        str(out),
        "--volcano",
        str(figures[0]),
        "--heat-map",
        str(figures[1]),
    ]
    assert main([*words, "--json"]) == 0, capsys.readouterr().err
    printed = json.loads(capsys.readouterr().out)
    table = pandas.read_csv(out)
    assert printed["brains"] == {"ctrl": 4, "drug": 4}
    assert printed["comparisons"][0]["regions_q_below_5_percent"] == (table.q_value < 0.05).sum() >= 6
    assert set(table.second) == {"drug"}
    assert all(one.read_bytes().startswith(b"\x89PNG") for one in figures)


def test_bad_studies_are_refused(tmp_path):
    for brains, groups, sentence in [
        (["m0", "m1", "m2"], ["a", "a", "b"], "the group b has one brain"),
        (
            ["m0", "m1", "m1", "m3"],
            ["a", "a", "b", "b"],
            "the brain m1 is in more than one row; a brain is one",
        ),
        (["m0", "m1"], ["a", "a"], "one group"),
    ]:
        path = write(tmp_path, brains, groups)
        with pytest.raises(CanvasError, match=sentence):
            read_study(path)
    path = write(tmp_path, ["m0", "m1", "m2", "m3"], ["a", "a", "b", "b"])
    with pytest.raises(CanvasError, match="no channel d"):
        read_study(path, channel="d")
    plain = {brain: (tmp_path / f"{brain}.csv").read_text(encoding="utf-8") for brain in ("m1", "m2")}

    def state(brain: str, of: str) -> None:
        head, *lines = plain[brain].splitlines()
        text = "\n".join([f"{head},count_of", *(f"{line},{of}" for line in lines)])
        (tmp_path / f"{brain}.csv").write_text(text, encoding="utf-8")

    state("m1", "all cells")
    state("m2", "all cells if the recall of the training brains holds here")
    read_study(path)  # counted alike
    state("m2", "cells among the candidates")
    with pytest.raises(CanvasError, match=r"m1.csv counts all cells, .*m2.csv counts cells among the cand"):
        read_study(path)
    (tmp_path / "m2.csv").write_text("z,y,x,score\n1,2,3,4\n", encoding="utf-8")
    with pytest.raises(CanvasError, match="Cells of one brain are not independent samples"):
        read_study(path)
    path.write_text("mouse,group\nm0,a\n", encoding="utf-8")
    with pytest.raises(CanvasError, match="has no column brain"):
        read_study(path)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("count", "-5", "count -5 and"),
        ("count", "nan", "count nan"),
        ("volume_mm3", "-1", "volume_mm3 -1; exp"),
    ],
)
def test_counts_and_volumes_that_are_none_are_refused(tmp_path, old, new, sentence):
    path = write(tmp_path, ["m0", "m1", "m2", "m3"], ["a", "a", "b", "b"])
    table = tmp_path / "m2.csv"
    head, first, *rest = table.read_text(encoding="utf-8").splitlines()
    cells = first.split(",")
    cells[head.split(",").index(old)] = new
    table.write_text("\n".join([head, ",".join(cells), *rest]) + "\n", encoding="utf-8")
    with pytest.raises(CanvasError, match=sentence):
        read_study(path)
    table.write_text("\n".join([head, first, first, *rest]) + "\n", encoding="utf-8")
    with pytest.raises(CanvasError, match=r"has the region \d+ twice"):
        read_study(path)


def test_a_comparison_that_tests_nothing_says_so(caplog):
    compare_groups(study(0), "a", "b", min_count=1e9)
    assert "none is tested" in caplog.text
    with pytest.raises(CanvasError, match="min_count is -1; expected"):
        compare_groups(study(0), "a", "b", min_count=-1)


@pytest.mark.parametrize("model", ["welch", "negative-binomial"])
def test_a_region_whose_density_is_the_same_in_all_brains_of_a_group_is_not_tested(model, caplog):
    """12, 12 against 20, 20 cells: no interval of width 0, no p-value of 1 or of 0."""
    one = study(0)
    one.volume_mm3[:] = 1
    one.count[:4, 3], one.count[4:, 3] = 12, 20
    one.count[:, 4] = 50
    found = compare_groups(one, "a", "b", model=model)
    assert (~found.tested).nonzero()[0].tolist() == [3, 4]
    assert np.isnan(found.p_value[3:5]).all()
    assert "same density there, in both groups: 2" in caplog.text


def test_one_side_in_one_group_and_the_other_in_the_other_tells_nothing():
    one = with_hemispheres(0)
    count = one.repeats.count.copy()
    count[:4, 1, :30], count[4:, 0, :30] = np.nan, np.nan
    found = compare_groups(replace(one, repeats=replace(one.repeats, count=count)), "a", "b", model="mixed")
    assert found.tested.tolist() == [False] * 30 + [True] * 30
    assert np.isfinite(found.p_value[30:]).all()
