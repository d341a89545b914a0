"""How a picture is written."""

import pytest
from matplotlib import pyplot as plt
from matplotlib.artist import Artist

from mora.suite.report.style import saved


def a_figure():
    figure, ax = plt.subplots()
    ax.plot([1, 2], label="a line")
    ax.set_title("loss & rate")
    return figure


def test_a_picture_has_the_same_bytes_every_time_and_letters_as_text(tmp_path):
    for name in ("first", "second"):
        saved(figure := a_figure(), tmp_path / "new" / f"{name}.svg")
        assert not plt.fignum_exists(figure.number)
    first, second = ((tmp_path / "new" / f"{name}.svg").read_bytes() for name in ("first", "second"))
    assert first == second
    assert b">loss &amp; rate</text>" in first


def test_a_picture_that_cannot_be_drawn_leaves_the_one_before(tmp_path):
    class Broken(Artist):
        def draw(self, renderer):
            raise ZeroDivisionError

    path = tmp_path / "loss.svg"
    saved(a_figure(), path)
    before, figure = path.read_bytes(), a_figure()
    figure.add_artist(Broken())
    with pytest.raises(ZeroDivisionError):
        saved(figure, path)
    plt.close(figure)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("loss.svg", before)]
