"""benchmarks/plot.py: what is drawn, in which colour, on which axis."""

import json
from pathlib import Path

import pytest
from matplotlib import pyplot as plt

from benchmarks import plot
from benchmarks.common import LOOKS
from tests.benchmarks.make_result import as_control, make_result, of_first_casting


@pytest.fixture
def draw(tmp_path):
    """Return `draw(*results)`, which gives the figure of these results, and closes it later."""

    def call(*results):
        rows = [row for result in results for row in plot.read_run(write(tmp_path, result))]
        plot.label_by_differences(rows)
        return plot.draw(rows)

    yield call
    plt.close("all")


def write(folder: Path, result: dict) -> Path:
    run_dir = folder / f"run{len(list(folder.iterdir()))}"
    run_dir.mkdir()
    (run_dir / "result.json").write_text(json.dumps(result))
    return run_dir


def lines_of(figure) -> dict:
    """Return label -> line of the legend."""
    (legend,) = figure.legends
    return dict(zip([text.get_text() for text in legend.texts], legend.get_lines(), strict=True))


def test_the_command_writes_a_picture(tmp_path):
    folder = tmp_path / "a run"
    folder.mkdir()
    runs = [write(folder, make_result("por")), write(folder, make_result("bc", finished=False))]
    out = tmp_path / "new folder" / "curve.png"
    plot.main([*map(str, runs), "--out", str(out), "--title", "Hopper"])
    assert out.read_bytes().startswith(b"\x89PNG")
    pixels = plt.imread(out)
    assert min(pixels.shape[:2]) > 500 and pixels[..., :3].std() > 0.05
    assert list(out.parent.iterdir()) == [out]


def test_an_algorithm_has_one_colour_and_its_variants_have_dashes(draw):
    results = [make_result("por", guide="q"), make_result("por", guide="weighted"), make_result()]
    lines = lines_of(draw(*results))
    assert list(lines) == ["BC", "POR (q)", "POR (weighted)", "behaviour policy"]
    assert lines["POR (q)"].get_color() == lines["POR (weighted)"].get_color() == LOOKS["por"][1]
    assert lines["POR (q)"].get_linestyle() != lines["POR (weighted)"].get_linestyle()
    assert lines["BC"].get_color() == LOOKS["bc"][1]


def test_what_is_no_algorithm_is_not_in_a_label(draw):
    """Precision, machine and evaluations make no other method."""
    first = of_first_casting(make_result("bc"), precision="bf16")
    second = of_first_casting(make_result("bc", device="cuda", execution="compile"), "fp32")
    third = make_result("bc", eval_episodes=3, run_dir="runs/other")
    assert list(lines_of(draw(first, second, third))) == ["BC", "behaviour policy"]


def test_numbers_are_told_where_runs_differ_in_them(draw):
    lines = lines_of(draw(make_result("iql"), make_result("iql", tau=0.9)))
    assert list(lines)[:2] == ["IQL (tau 0.7)", "IQL (tau 0.9)"]
    # Settings that belong to the dataset tell nothing apart.
    other = make_result("iql", env="rebuilt/antmaze/umaze-v0", tau=0.9)
    assert list(lines_of(draw(make_result("iql"), other)))[0] == "IQL"


def test_a_long_legend_takes_no_room_from_the_panels(draw):
    few = draw(make_result("bc"), make_result("iql"))
    many = draw(*[make_result("bc") | {"script": script} for script in LOOKS])
    heights = []
    for figure in (few, many):
        figure.canvas.draw()
        box = figure.axes[0].get_window_extent()
        assert figure.legends[0].get_window_extent().y1 < box.y0
        heights.append(box.height / figure.dpi)
    assert len(lines_of(many)) > 25
    assert min(heights) > 0.9 * max(heights) > 3


def test_scores_and_returns_have_panels_of_their_own(draw):
    figure = draw(make_result(), make_result("iql", scored=False))
    assert [axes.get_ylabel() for axes in figure.axes] == ["D4RL-normalized score", "return"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["gradient updates"] * 2


def test_datasets_and_fine_tuning_have_panels_of_their_own(draw):
    tuned = make_result("iql", online=(60.0, 61.0, 62.0))
    figure = draw(tuned, make_result("bc", env="hopper-medium-v2"))
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.axison]
    assert titles == [
        "hopper medium (rebuilt)",
        "hopper medium (rebuilt),\nfine-tuning",
        "hopper-medium-v2",
    ]
    assert figure.axes[1].get_xlabel() == "environment steps"


def test_the_curve_is_the_mean_and_the_band_spans_the_seeds(draw):
    figure = draw(make_result(scores=(10.0, 20.0, 60.0)))
    axes = figure.axes[0]
    curve, level = axes.get_lines()
    assert curve.get_xdata().tolist()[-1] == 100_000 and curve.get_ydata()[-1] == 30
    assert level.get_ydata()[0] == pytest.approx(100 * (1400 + 20.272305) / (3234.3 + 20.272305))
    band = axes.collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((1, 60))


def test_published_curves_are_thin_and_grey_and_end_with_ours(draw):
    figure = draw(
        make_result("iql", "rebuilt/antmaze/umaze-v0", updates=200_000),
        make_result("bc", "rebuilt/antmaze/umaze-v0"),
    )
    ours = {LOOKS[script][1] for script in ("iql", "bc")}
    axes = figure.axes[0]
    published = [line for line in axes.get_lines() if line.get_color() not in ours]
    assert {line.get_color() for line in published} == {plot.PUBLISHED_COLOR}
    points = [list(zip(*line.get_data(), strict=True)) for line in published]
    assert points == [  # CORL on v2, d3rlpy on v0
        [(50_000, 7.8), (100_000, 14.2), (150_000, 20.0), (200_000, 26.8)],
        [(100_000, 55.0), (200_000, 75.0)],
    ]
    assert all(line.get_linewidth() < 1.5 for line in published)
    assert {line.get_marker() for line in published} == {LOOKS["iql"][2]}
    words = ["IQL, published (D4RL's v0)", "IQL, published (D4RL's v2)"]
    assert list(lines_of(figure)) == ["BC", "IQL", *words]


def test_other_people_s_code_has_its_own_name_and_dashes(draw):
    ours = make_result("iql", batch_size=512)
    lines = lines_of(draw(ours, as_control(make_result("iql"))))
    words = "corl-team/CORL @ eeeeeee iql.py (their code)"
    assert [label for label in lines if "published" not in label][:2] == ["IQL", words]
    assert lines["IQL"].get_color() == lines[words].get_color()
    assert lines["IQL"].get_linestyle() == "-" != lines[words].get_linestyle()


def test_returns_have_no_published_curve(draw):
    figure = draw(make_result("iql", "rebuilt/hopper/medium-v0", scored=False))
    assert not any("published" in label for label in lines_of(figure))


def test_old_and_new_results_give_the_same_curve(draw):
    new = make_result("bc")
    curves = [draw(result).axes[0].get_lines()[0] for result in (new, of_first_casting(new))]
    assert curves[0].get_ydata().tolist() == curves[1].get_ydata().tolist()[1:]
    assert curves[1].get_xdata()[0] == 0  # the first casting evaluated before the first update


def test_mistakes_are_named_in_a_line(tmp_path):
    good = write(tmp_path, make_result())
    empty = write(tmp_path, make_result(finished=False) | {"evaluations": []})
    other = write(tmp_path, {"script": "por"})
    broken = write(tmp_path, {})
    (broken / "result.json").write_text('{"script": ')
    for words, complaint in (
        ([tmp_path / "absent"], "cannot be read"),
        ([empty], "no evaluation yet"),
        ([broken], "is no result"),
        ([other], "is no result"),
        ([], "at least one run"),
    ):
        with pytest.raises(SystemExit, match=complaint) as stop:
            plot.main([*map(str, words), "--out", str(tmp_path / "x.png")])
        assert "\n" not in stop.value.code
    with pytest.raises(SystemExit, match="cannot be written"):
        plot.main([str(good), "--out", str(tmp_path / "x.unknown")])
    assert not list(tmp_path.glob("*x.*"))
