"""Labels by sample of a table, by name or by index, of counts or probabilities; what does not fit is one line."""

import csv
import math

import numpy as np
import pytest
import torch

from fastlsr.data.manifest import read_manifest
from fastlsr.data.sample_names import read_names
from fastlsr.data.soft_labels import class_labels, sample_labels
from fastlsr.labels import __main__ as command

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def beton(small_photos_dir):
    return small_photos_dir / "photos_train.beton"


@pytest.fixture(scope="module")
def counts(beton):
    """int[36, 4]: what 20 people called each of the 36 photos."""
    return np.random.default_rng(0).multinomial(20, [0.1, 0.2, 0.3, 0.4], 36)


@pytest.fixture
def table(beton, counts, tmp_path):
    """(first column, of its cells) -> the counts as CSV, samples and classes shuffled."""
    classes = read_manifest(beton).classes

    def make(key="name", cells=None, values=counts, rows=range(36)):
        names = cells or {"name": read_names(beton, read_manifest(beton)), "index": range(36)}[key]
        columns = [2, 0, 3, 1]
        with open(tmp_path / "people.csv", "w", newline="") as file:
            lines = csv.writer(file)
            lines.writerow([key, *(classes[at] for at in columns)])
            lines.writerows([names[row], *(values[row][at] for at in columns)] for row in reversed(rows))
        return tmp_path / "people.csv"

    return make


@pytest.fixture
def run(small_photos_dir, tmp_path):
    """(table, further words) -> exit code of the command that makes tmp_path/out.safetensors."""

    def run(path, *words):
        given = ["import", str(path), "--data.dataset=photos", f"--data.dir={small_photos_dir}"]
        try:
            return command.main([*given, f"--out={tmp_path / 'out.safetensors'}", *words])
        except SystemExit as stopped:
            return stopped.code

    return run


def rows_of(path, beton, fold=""):
    return sample_labels(path, read_manifest(beton), fold=fold, device=CPU).rows(torch.arange(36))


@pytest.mark.parametrize("key", ["name", "index"])
def test_rows_are_the_counts_of_their_samples_divided_by_their_sum(run, table, counts, beton, tmp_path, key):
    assert run(table(key)) == 0
    expected = torch.from_numpy(counts / 20).float()
    torch.testing.assert_close(rows_of(tmp_path / "out.safetensors", beton), expected, atol=1e-3, rtol=0)


def test_they_serve_any_fold_and_have_means_by_class(run, table, counts, beton, tmp_path):
    assert run(table()) == 0
    torch.testing.assert_close(
        rows_of(tmp_path / "out.safetensors", beton, fold="1 of 5"), rows_of(tmp_path / "out.safetensors", beton)
    )
    means = counts.reshape(4, 9, 4).mean(1) / 20  # the file has nine of each class, in order
    found = class_labels(tmp_path / "out.safetensors", read_manifest(beton))
    torch.testing.assert_close(found, torch.from_numpy(means).float(), atol=1e-5, rtol=1e-5)


def test_probabilities_and_counts_are_the_same_labels(run, table, counts, tmp_path):
    assert run(table()) == 0
    of_counts = (tmp_path / "out.safetensors").read_bytes()
    assert run(table(values=counts / 20)) == 0
    assert len(of_counts) == len((tmp_path / "out.safetensors").read_bytes())


def test_the_name_of_a_file_will_do_where_no_other_sample_has_it(run, table, counts, beton, tmp_path):
    names = [name.rpartition("/")[2] for name in read_names(beton, read_manifest(beton))]
    assert run(table(cells=names)) == 0
    expected = torch.from_numpy(counts / 20).float()
    torch.testing.assert_close(rows_of(tmp_path / "out.safetensors", beton), expected, atol=1e-3, rtol=0)


def test_samples_that_the_table_lacks_are_an_error_or_keep_their_label(run, table, counts, beton, tmp_path, capsys):
    path = table(rows=range(9, 36))
    assert run(path) == 2 and "9 " not in capsys.readouterr().out
    assert not (tmp_path / "out.safetensors").exists()
    assert run(path, "--missing=onehot") == 0
    rows = rows_of(tmp_path / "out.safetensors", beton)
    assert (rows[:9, 0] == 1).all() and rows[9:, 0].max() < 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("name,", "nom,", 1), "name or index"),
        (lambda text: text.replace("class_2", "class_5", 1), "class_5"),
        (lambda text: text.replace("class_2", "class_1", 1), "columns, not one"),
        (lambda text: text.replace("class_3/46.jpg", "class_3/99.jpg"), "no sample is called"),
        (lambda text: text + text.splitlines()[-1] + "\n", "is the sample of line 37, too"),
        (lambda text: text + "class_0/00.jpg,1,2\n", "3 columns"),
        (lambda text: text.replace(",", ",-", 8).replace(",-", ",", 4), "at least 0"),
        (lambda text: text.replace("jpg,", "jpg,nan", 1), "line 2"),
        (lambda text: text.replace("jpg,", "jpg,many", 1), "line 2"),
        (lambda text: "", "missing"),
    ],
)
def test_a_table_that_does_not_fit_is_one_line_and_nothing_is_written(run, table, tmp_path, capsys, change, words):
    path = table()
    path.write_text(change(path.read_text()))
    assert run(path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line and "people.csv" in line
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "words", [["--missing=uniform"], ["--optim.lr=1"], ["--out=labels.csv"], ["--data.dir=absent"]]
)
def test_a_wrong_option_is_one_line(run, table, tmp_path, capsys, words):
    assert run(table(), *words) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1 and not (tmp_path / "out.safetensors").exists()


def test_the_line_at_the_end_has_agreement_and_entropy(run, table, counts, capsys):
    assert run(table()) == 0
    out = capsys.readouterr().out
    shares = counts / 20
    entropy = -np.where(shares > 0, shares * np.log(np.where(shares > 0, shares, 1)), 0).sum(1).mean()
    assert f"{entropy:.3f} of at most {math.log(4):.3f} nats" in out and "36 samples" in out
