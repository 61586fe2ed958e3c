"""Figures are PNG files of a sensible size, also in edge cases."""

import struct
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from fednar_ray.core.reports import RoundRecord
from fednar_ray.report.plots import draw_by_decay, draw_comparison, draw_curves, widen


def read_dimensions(path: Path) -> tuple[int, int]:
    """Returns width and height in pixels from the PNG's header."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert head[12:16] == b"IHDR"
    width, height = struct.unpack(">II", head[16:])
    return width, height


def assert_sensible(path: Path) -> None:
    width, height = read_dimensions(path)
    assert 400 <= width <= 3000
    assert 200 <= height <= 1500


@pytest.mark.parametrize("rounds", [1, 2, 40])
@pytest.mark.parametrize("validation", [False, True])
def test_plots_of_curves_are_images_of_sensible_size(rounds, validation, tmp_path):
    names = ("test_accuracy", "train_loss", "clip_fraction", "effective_weight_decay", "weight_decay")
    extra = ("validation_accuracy",) if validation else ()
    history = [
        RoundRecord(round_index=t, metrics=dict.fromkeys(names + extra, 1 / (t + 2)), client_ids=(0,), exclusions={})
        for t in range(rounds)
    ]
    assert_sensible(draw_curves(history, tmp_path / "curves.png"))


@pytest.mark.usefixtures("long_computation")
@pytest.mark.parametrize("rounds", [1, 30])
@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("decays", [(0.01,), (0.0, 0.01, 0.1)], ids=str)
def test_the_comparison_plot_is_an_image_of_sensible_size(rounds, seeds, decays, tmp_path):
    rng = np.random.default_rng(0)
    curves = {decay: {name: rng.random((seeds, rounds)) for name in ("fednar", "decoupled")} for decay in decays}
    path = draw_comparison(curves, curves, tmp_path / "comparison.png")
    assert_sensible(path)
    assert read_dimensions(path)[0] >= 500 * len(decays)


@pytest.mark.parametrize("rounds", [1, 2])
def test_every_number_of_rounds_is_visible(rounds, tmp_path):
    names = ("test_accuracy", "train_loss", "clip_fraction", "effective_weight_decay", "weight_decay")
    metrics = dict.fromkeys(names, 0.5)
    history = [RoundRecord(round_index=t, metrics=metrics, client_ids=(0,), exclusions={}) for t in range(rounds)]
    picture = imread(draw_curves(history, tmp_path / "curves.png"))[..., :3]
    below, right = picture.shape[0] // 2, picture.shape[1] // 2
    colored = np.ptp(picture[:below, right:], axis=-1) > 0.2  # the panel of the training loss, which has no legend
    assert colored.any()


CURVES = ("train_loss", "clip_fraction", "effective_weight_decay", "weight_decay")


def build_history(accuracies):
    """Builds one round per accuracy; None stands for a round that was not evaluated."""
    for t, accuracy in enumerate(accuracies):
        tested = {} if accuracy is None else {"test_accuracy": accuracy, "validation_accuracy": accuracy / 2}
        metrics = dict.fromkeys(CURVES, 0.5) | tested
        yield RoundRecord(round_index=t, metrics=metrics, client_ids=(0,), exclusions={})


def read_pixels(path):
    return imread(path)[..., :3]


def count_colored(picture):
    """Counts the colored pixels, which are neither white nor gray nor black."""
    return int((np.ptp(picture, axis=-1) > 0.2).sum())


def assert_alike(picture, other):
    """Asserts that two pictures are equal except for a few pixels of anti-aliasing."""
    assert count_colored(picture) > 200
    assert np.abs(picture - other).max(axis=-1).sum() < 0.02 * count_colored(other)


def test_curves_connect_over_rounds_that_were_not_evaluated(tmp_path):
    seldom = draw_curves([*build_history([0.2, None, None, 0.5, None, 0.9])], tmp_path / "seldom.png")
    always = draw_curves([*build_history([0.2, 0.3, 0.4, 0.5, 0.7, 0.9])], tmp_path / "always.png")
    other = draw_curves([*build_history([0.2, 0.9, 0.9, 0.5, 0.9, 0.9])], tmp_path / "other.png")
    assert_alike(read_pixels(seldom), read_pixels(always))
    with pytest.raises(AssertionError):
        assert_alike(read_pixels(seldom), read_pixels(other))


def test_the_only_evaluation_of_a_run_is_visible(tmp_path):
    picture = read_pixels(draw_curves([*build_history([None, None, None, 0.4])], tmp_path / "curves.png"))
    below, right = picture.shape[0] // 2, picture.shape[1] // 2
    assert count_colored(picture[below // 2 : below, :right]) > 20  # the lower half of its panel, below the legend


def build_comparison(accuracies):
    runs = {name: np.array(accuracies, dtype=float) * share for name, share in (("decoupled", 0.6), ("fednar", 1))}
    decay = {name: np.full_like(values, 0.01) for name, values in runs.items()}
    return {0.01: runs}, {0.01: decay}


def test_lines_and_bands_of_a_comparison_connect_over_rounds_that_were_not_evaluated(tmp_path):
    nan = np.nan
    seldom = build_comparison([[0.1, nan, 0.5, nan, nan, 0.8], [0.2, nan, 0.8, nan, nan, 0.8]])
    always = build_comparison([[0.1, 0.3, 0.5, 0.6, 0.7, 0.8], [0.2, 0.5, 0.8, 0.8, 0.8, 0.8]])
    other = build_comparison([[0.1, 0.9, 0.5, 0.9, 0.9, 0.8], [0.2, 0.9, 0.8, 0.9, 0.9, 0.8]])
    pictures = [read_pixels(draw_comparison(*curves, tmp_path / "c.png")) for curves in (seldom, always, other)]
    assert_alike(pictures[0], pictures[1])
    with pytest.raises(AssertionError):
        assert_alike(pictures[0], pictures[2])


def test_the_only_evaluation_of_a_comparison_is_visible(tmp_path):
    picture = read_pixels(draw_comparison(*build_comparison([[np.nan, np.nan, 0.9]]), tmp_path / "c.png"))
    assert count_colored(picture[: picture.shape[0] // 4]) > 20  # the upper half of its panel, above the legend


@pytest.mark.usefixtures("long_computation")
@pytest.mark.parametrize("decays", [(0.01,), (0.0,), (0.0, 0.01), (0.001, 0.01, 0.1), tuple(np.logspace(-5, 0, 20))])
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_plot_of_accuracy_by_decay_is_an_image_of_sensible_size(decays, seeds, tmp_path):
    rng = np.random.default_rng(0)
    names = ("decoupled", "fednar", "coupled", "none")
    accuracies = {name: {decay: rng.random(seeds).tolist() for decay in decays} for name in names}
    path = draw_by_decay(accuracies, tmp_path / "decay.png")
    assert_sensible(path)
    assert count_colored(read_pixels(path)) > 100


def test_curves_of_a_regression_show_its_errors(tmp_path):
    history = [
        RoundRecord(round_index=t, metrics={"test_rmse": 2 / (t + 1), "train_loss": 1}, client_ids=(0,), exclusions={})
        for t in range(5)
    ]
    picture = read_pixels(draw_curves(history, tmp_path / "curves.png"))
    assert count_colored(picture[: picture.shape[0] // 2, : picture.shape[1] // 2]) > 100


def measure_spans(*lines):
    """Returns the limits of an axis with these lines, after ``widen``."""
    axes = Figure().subplots()
    for line in lines:
        axes.plot(line)
    widen(axes)
    return axes.get_ylim()


@pytest.mark.parametrize("scale", [1e-6, 0.01, 1.0, -5.0, 1e6])
def test_an_axis_is_widened_around_rounding_errors(scale):
    exact, rounded = np.full(5, scale), np.full(5, scale) * (1 + 1e-7 * np.arange(5))
    low, high = measure_spans(exact, rounded)
    assert high - low >= 0.1 * abs(scale)
    assert low < scale < high


def test_an_axis_with_real_differences_is_not_widened():
    lines = np.linspace(0.2, 0.9, 5), np.linspace(0.1, 0.8, 5)
    axes = Figure().subplots()
    for line in lines:
        axes.plot(line)
    assert measure_spans(*lines) == axes.get_ylim()
    assert measure_spans() == Figure().subplots().get_ylim()
    assert measure_spans(np.zeros(3))[0] < 0 < measure_spans(np.zeros(3))[1]


def test_curves_that_are_equal_up_to_rounding_are_drawn_as_one(tmp_path):
    def colored_rows(decays):
        """Rows of pixels in the panel of the weight decay that lines or the legend cross."""
        history = [
            RoundRecord(round_index=t, metrics={"weight_decay": 0.01, "effective_weight_decay": value},
                        client_ids=(0,), exclusions={})
            for t, value in enumerate(decays)
        ]  # fmt: skip
        picture = read_pixels(draw_curves(history, tmp_path / "curves.png"))
        panel = picture[picture.shape[0] // 2 :, picture.shape[1] // 2 :]
        return int((np.ptp(panel, axis=-1) > 0.2).any(axis=1).sum())

    equal = colored_rows([0.01] * 6)
    assert equal < 20
    assert colored_rows([np.float32(0.01) * (1 + 1e-7 * t) for t in range(6)]) == equal
    assert colored_rows([0.01 * (1 - 0.1 * t) for t in range(6)]) > 100


def test_the_axis_of_a_regression_comparison_fits_its_errors(tmp_path):
    """Values in the thousands are visible; they would not be on an axis from 0 to 1."""
    runs = {0.01: {"fednar": np.array([[4000.0, 2500.0, 1200.0]])}}
    decay = {0.01: {"fednar": np.full((1, 3), 0.01)}}
    picture = read_pixels(draw_comparison(runs, decay, tmp_path / "c.png", measure="test rmse"))
    assert count_colored(picture[: picture.shape[0] // 2]) > 200
