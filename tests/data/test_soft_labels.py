"""A file of soft labels holds what was saved, is refused for other data, and is read without filling the memory."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from fastlsr.data import soft_labels
from fastlsr.data.manifest import read_manifest
from fastlsr.data.soft_labels import TeacherRows, class_labels, sample_labels
from fastlsr.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture
def manifest(digits_dir):
    return read_manifest(digits_dir / "digits_train.beton")


def predictions(manifest):
    generator = torch.Generator().manual_seed(0)
    labels = torch.repeat_interleave(torch.arange(10), torch.tensor(manifest.class_counts))
    return (4 * torch.randn(manifest.count, 10, generator=generator)).softmax(1), labels


def save(path, manifest, *, fold="", left_out=0):
    """The predictions for all but the first samples, given in batches and in no order."""
    probabilities, labels = predictions(manifest)
    rows = TeacherRows(manifest.count, 10)
    order = torch.randperm(manifest.count, generator=torch.Generator().manual_seed(1))
    for index in order[order >= left_out].split(100):
        rows.add(index, labels[index], probabilities[index])
    rows.save(path, manifest, fold=fold, model="resnet8", l2=0.1)
    return rows


@pytest.fixture
def saved(manifest, tmp_path):
    save(tmp_path / "t.safetensors", manifest)
    return tmp_path / "t.safetensors"


def test_rows_by_sample_and_their_means_by_class_come_back(saved, manifest):
    probabilities, labels = predictions(manifest)
    index = torch.tensor([3, 1400, 0])
    rows = sample_labels(saved, manifest, device=CPU).rows(index)
    torch.testing.assert_close(rows, probabilities[index], atol=1e-3, rtol=0)
    means = torch.stack([probabilities[labels == label].mean(0) for label in range(10)])
    torch.testing.assert_close(class_labels(saved, manifest), means, atol=1e-5, rtol=1e-4)


def test_a_large_teacher_keeps_the_largest_entries_and_spreads_the_rest(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(soft_labels, "LARGEST_DENSE_BYTES", 1000)
    monkeypatch.setattr(soft_labels, "LARGEST_ENTRIES", 3)
    save(tmp_path / "t.safetensors", manifest)
    rows = sample_labels(tmp_path / "t.safetensors", manifest, device=CPU).rows(torch.arange(50))
    torch.testing.assert_close(rows.sum(1), torch.ones(50), atol=1e-6, rtol=0)
    values, indices = predictions(manifest)[0][:50].topk(3)
    torch.testing.assert_close(rows.gather(1, indices), values, atol=1e-3, rtol=0)
    others = rows.scatter(1, indices, torch.nan)
    assert all(row[~row.isnan()].unique().numel() == 1 for row in others)


def test_rows_of_half_precision_sum_to_one_in_single_precision(saved, manifest):
    labels = sample_labels(saved, manifest, device=CPU)
    everyone = torch.arange(manifest.count)
    assert (labels.values.float().sum(1) - 1).abs().max() > 1e-4, "as stored they do not"
    torch.testing.assert_close(labels.rows(everyone).sum(1), torch.ones(manifest.count), atol=1e-6, rtol=0)


def test_accuracy_and_entropy_are_those_of_the_rows(manifest, tmp_path):
    probabilities, labels = predictions(manifest)
    rows = save(tmp_path / "t.safetensors", manifest)
    assert rows.top1 == pytest.approx(100 * (probabilities.argmax(1) == labels).double().mean().item())
    assert rows.entropy == pytest.approx(torch.special.entr(probabilities.double()).sum(1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("entries", [10, 3])
def test_what_was_never_added_is_uniform_by_sample_and_the_label_by_class(manifest, tmp_path, monkeypatch, entries):
    if entries < 10:
        monkeypatch.setattr(soft_labels, "LARGEST_DENSE_BYTES", 1000)
        monkeypatch.setattr(soft_labels, "LARGEST_ENTRIES", entries)
    first = manifest.class_counts[0]
    save(tmp_path / "t.safetensors", manifest, left_out=first)  # the whole of class 0
    rows = sample_labels(tmp_path / "t.safetensors", manifest, device=CPU).rows(torch.arange(first))
    torch.testing.assert_close(rows, torch.full((first, 10), 0.1), atol=1e-4, rtol=0)
    assert torch.equal(class_labels(tmp_path / "t.safetensors", manifest)[0], torch.eye(10)[0])


def test_the_same_rows_are_the_same_bytes(saved, manifest, tmp_path):
    for _ in range(5):  # safetensors writes metadata of several keys in a random order
        save(tmp_path / "again.safetensors", manifest)
        assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()


def test_predictions_that_are_no_numbers_are_not_saved(manifest, tmp_path):
    rows = TeacherRows(manifest.count, 10)
    rows.add(torch.arange(2), torch.arange(2), torch.full((2, 10), torch.nan))
    with pytest.raises(InputError, match="not finite"):
        rows.save(tmp_path / "t.safetensors", manifest, fold="", model="resnet8")
    assert not list(tmp_path.iterdir())


def test_imagenet_s_rows_take_a_tenth_of_a_gigabyte():
    rows = TeacherRows(1_281_167, 1000)
    tensors = [value for value in vars(rows).values() if isinstance(value, torch.Tensor)]
    assert sum(tensor.nbytes for tensor in tensors) < 0.12e9


OPENS = """
import sys, torch
from dataclasses import replace
from pathlib import Path
from fastlsr.data.manifest import read_manifest
from fastlsr.data.soft_labels import sample_labels

def held(name):  # MiB: VmHWM is the most there ever was
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) >> 10

count, index = int(sys.argv[3]), torch.arange(0, 256)
manifest = replace(read_manifest(Path(sys.argv[1])), count=count)
before = held("VmHWM")
labels = sample_labels(Path(sys.argv[2]), manifest, device=torch.device("cpu"))
labels.rows(index)
print(labels.values.nbytes >> 20, held("VmHWM") - before)
"""


def test_a_large_file_is_checked_and_opened_without_being_held_in_memory(digits_dir, tmp_path):
    path, count = tmp_path / "large.safetensors", 20_000_000
    save_file({"by_sample": torch.full((count, 10), 0.1, dtype=torch.float16)}, path)
    words = [sys.executable, "-c", OPENS, digits_dir / "digits_train.beton", path, str(count)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    path.unlink()
    size, grown = map(int, done.stdout.split())
    assert size == 381 and grown < 100


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"digest": "0" * 64}, "other data"),
        ({"classes": tuple("abcdefghij")}, "other classes"),
    ],
)
def test_a_teacher_for_other_data_or_classes_is_an_error(saved, manifest, change, words):
    for read in (lambda m: class_labels(saved, m), lambda m: sample_labels(saved, m, device=CPU)):
        with pytest.raises(InputError, match=words):
            read(replace(manifest, **change))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"by_sample": torch.full((7, 10), 0.1)}, "of 7 samples"),
        ({"by_sample": torch.full((1438, 4), 0.25)}, "for 4 classes"),
        ({"by_sample": torch.full((1438, 10), 0.2)}, "sum to 1"),
        ({"by_sample": torch.full((1438, 10), torch.nan)}, "sum to 1"),
        ({"by_sample": torch.full((1438,), 0.1)}, "shapes"),
        ({"values": torch.ones(1438, 1), "indices": torch.full((1438, 1), 10)}, "outside the 10 classes"),
        ({"values": torch.ones(1438, 1), "indices": torch.full((1438, 1), -1)}, "outside the 10 classes"),
        ({"values": torch.full((1438, 2), 0.4), "indices": torch.ones(1438, 2).long()}, "a class twice"),
        ({"values": torch.ones(1438, 2), "indices": torch.arange(2).repeat(1438, 1)}, "sum to 1"),
        ({"values": torch.full((1438, 1), -0.1), "indices": torch.zeros(1438, 1).long()}, "sum to 1"),
        ({"values": torch.ones(1438, 1), "indices": torch.zeros(1438, 2).long()}, "shapes"),
        ({"by_class": torch.eye(10)}, "teacher_key=class"),
    ],
)
def test_soft_labels_by_sample_that_do_not_fit_are_an_error_in_one_line(manifest, tmp_path, tensors, words):
    save_file(tensors, tmp_path / "t.safetensors")
    with pytest.raises(InputError, match=words) as error:
        sample_labels(tmp_path / "t.safetensors", manifest, device=CPU)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"by_class": torch.eye(4)}, "4x4"),
        ({"by_class": torch.eye(10) * 2}, "sum to 1"),
        ({"else": torch.eye(10)}, "no soft labels by class"),
    ],
)
def test_soft_labels_by_class_that_do_not_fit_are_an_error(manifest, tmp_path, tensors, words):
    save_file(tensors, tmp_path / "t.safetensors")
    with pytest.raises(InputError, match=words):
        class_labels(tmp_path / "t.safetensors", manifest)


def test_a_teacher_of_other_folds_is_an_error_for_it_has_seen_what_is_held_out(manifest, tmp_path):
    path = tmp_path / "t.safetensors"
    for made, here, words in (("", "1 of 5", "with nothing held out"), ("1 of 5", "2 of 5", "holds out fold 2 of 5")):
        save(path, manifest, fold=made)
        assert len(class_labels(path, manifest, fold=made)) == 10
        with pytest.raises(InputError, match=words):
            class_labels(path, manifest, fold=here)
        with pytest.raises(InputError, match=words):
            sample_labels(path, manifest, fold=here, device=CPU)


def test_a_runs_own_stage_is_a_teacher_by_class(manifest, tmp_path):
    table = torch.rand(10, 10).softmax(1)
    save_file({"soft_labels": table, "count": torch.ones(10)}, tmp_path / "stage_01.safetensors")
    torch.testing.assert_close(class_labels(tmp_path / "stage_01.safetensors", manifest), table)


@pytest.mark.parametrize("teacher", ["[]", "{", '{"classes": 3}'])
def test_an_origin_that_is_no_description_is_an_error_in_one_line(manifest, tmp_path, teacher):
    save_file({"by_class": torch.eye(10)}, tmp_path / "t.safetensors", {"teacher": teacher})
    with pytest.raises(InputError, match="t.safetensors") as error:
        class_labels(tmp_path / "t.safetensors", manifest)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, b"", b"not safetensors"])
def test_a_file_that_is_none_is_an_error(manifest, tmp_path, content):
    path = tmp_path / "t.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="method.teacher"):
        class_labels(path, manifest)
