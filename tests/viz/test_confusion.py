import numpy as np
import pytest
import torch
from PIL import Image

from geoattn.viz import confusion_picture, confusion_text

CONFUSION = torch.tensor([[90, 9, 1], [0, 4000, 0], [0, 0, 0]])
NAMES = ("head", "$body$", "tail of it")


def test_the_table_has_counts_and_per_cent_of_each_true_class():
    title, heads, *rows = confusion_text(CONFUSION, NAMES).splitlines()
    assert "rows" in title
    assert heads.split() == ["true", "count", "head", "$body$", "tail", "of", "it"]
    assert [row.split() for row in rows] == [
        ["head", "100", "90.0", "9.0", "1.0"],
        ["$body$", "4000", ".", "100.0", "."],
        ["tail", "of", "it", "0", ".", ".", "."],
    ]
    assert confusion_text(torch.tensor(7), ["one"]).splitlines()[-1].split() == ["one", "7", "100.0"]


@pytest.mark.parametrize("classes", [1, 2, 8, 12, 13, 20, 40])
@pytest.mark.parametrize("long", [4, 15, 60])
def test_the_table_fits_a_terminal_and_every_class_is_in_it(classes, long):
    generator = torch.Generator().manual_seed(classes)
    names = [f"{i} {'n' * long}"[:long] for i in range(classes)]
    confusion = torch.randint(0, 10**8, (classes, classes), generator=generator)
    lines = confusion_text(confusion, names).splitlines()
    assert max(map(len, lines)) <= 120
    for row, name in zip(lines[-classes:], names, strict=True):
        assert name[:4] in row


def test_of_many_classes_each_row_has_what_it_was_mistaken_for():
    confusion = 10 * torch.eye(40, dtype=torch.int64)
    confusion[3, 5], confusion[3, 8] = 20, 70
    lines = confusion_text(confusion, [f"class{i}" for i in range(40)]).splitlines()
    assert lines[4].split() == ["class3", "100", "10.0", "class8", "70.0,", "class5", "20.0"]
    assert lines[5].split() == ["class4", "10", "100.0"]


@pytest.mark.parametrize("classes", [3, 13])
def test_the_picture_is_whole_or_absent(tmp_path, classes):
    pytest.importorskip("matplotlib")
    path = tmp_path / "confusion.png"
    confusion = torch.nn.functional.pad(CONFUSION, (0, classes - 3) * 2)
    confusion_picture(confusion, [*NAMES, *"abcdefghij"][:classes], path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert (pixels[..., 2] - pixels[..., 0] > 60).sum() > 1000  # the blue of the diagonal
    assert [file.name for file in tmp_path.iterdir()] == ["confusion.png"]


def test_what_is_no_confusion_matrix_is_refused(tmp_path):
    for bad in (CONFUSION[:2], CONFUSION.float(), -CONFUSION, torch.zeros(2, 2, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"confusion must be counts .* \[3, 3\]"):
            confusion_text(bad, NAMES)
        with pytest.raises(ValueError, match="confusion must be counts"):
            confusion_picture(bad, NAMES, tmp_path / "confusion.png")
    with pytest.raises(ValueError, match=r"\.jpg.*supported are \.png"):
        confusion_picture(CONFUSION, NAMES, tmp_path / "confusion.jpg")
    assert not list(tmp_path.iterdir())
