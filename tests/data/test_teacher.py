"""A teacher's file holds what was saved, and is refused for other data."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from fastlsr.data import teacher
from fastlsr.data.manifest import read_manifest
from fastlsr.data.teacher import class_labels, sample_labels, save_teacher
from fastlsr.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture
def manifest(digits_dir):
    return read_manifest(digits_dir / "digits_train.beton")


def predictions(manifest):
    generator = torch.Generator().manual_seed(0)
    labels = torch.repeat_interleave(torch.arange(10), torch.tensor(manifest.class_counts))
    return (4 * torch.randn(manifest.count, 10, generator=generator)).softmax(1), labels


@pytest.fixture
def saved(manifest, tmp_path):
    probabilities, labels = predictions(manifest)
    save_teacher(tmp_path / "t.safetensors", probabilities, labels, manifest, model="resnet8")
    return tmp_path / "t.safetensors"


def test_rows_by_sample_and_their_means_by_class_come_back(saved, manifest):
    probabilities, labels = predictions(manifest)
    index = torch.tensor([3, 1400, 0])
    table, key = sample_labels(saved, manifest, device=CPU).rows(index)
    torch.testing.assert_close(table[key].float(), probabilities[index], atol=1e-3, rtol=0)
    means = torch.stack([probabilities[labels == label].mean(0) for label in range(10)])
    torch.testing.assert_close(class_labels(saved, manifest), means, atol=1e-5, rtol=1e-4)


def test_a_large_teacher_keeps_the_largest_entries_and_spreads_the_rest(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher, "LARGEST_DENSE_BYTES", 1000)
    monkeypatch.setattr(teacher, "LARGEST_ENTRIES", 3)
    probabilities, labels = predictions(manifest)
    save_teacher(tmp_path / "t.safetensors", probabilities, labels, manifest, model="resnet8")
    table, key = sample_labels(tmp_path / "t.safetensors", manifest, device=CPU).rows(torch.arange(50))
    rows = table[key]
    torch.testing.assert_close(rows.sum(1), torch.ones(50), atol=1e-3, rtol=0)  # float16
    values, indices = probabilities[:50].topk(3)
    torch.testing.assert_close(rows.gather(1, indices), values, atol=1e-3, rtol=0)
    others = rows.scatter(1, indices, torch.nan)
    assert all(row[~row.isnan()].unique().numel() == 1 for row in others)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"digest": "0" * 64}, "other data"),
        ({"classes": tuple("abcdefghij")}, "other classes"),
    ],
)
def test_a_teacher_for_other_data_or_classes_is_refused(saved, manifest, change, words):
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
        ({"values": torch.ones(1438, 1), "indices": torch.full((1438, 1), 10)}, "outside the 10 classes"),
        ({"by_class": torch.eye(10)}, "teacher_key=class"),
    ],
)
def test_soft_labels_by_sample_that_do_not_fit_are_refused_in_one_line(manifest, tmp_path, tensors, words):
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
def test_soft_labels_by_class_that_do_not_fit_are_refused(manifest, tmp_path, tensors, words):
    save_file(tensors, tmp_path / "t.safetensors")
    with pytest.raises(InputError, match=words):
        class_labels(tmp_path / "t.safetensors", manifest)


def test_a_runs_own_stage_is_a_teacher_by_class(manifest, tmp_path):
    table = torch.rand(10, 10).softmax(1)
    save_file({"soft_labels": table, "count": torch.ones(10)}, tmp_path / "stage_01.safetensors")
    torch.testing.assert_close(class_labels(tmp_path / "stage_01.safetensors", manifest), table)


@pytest.mark.parametrize("content", [None, b"", b"not safetensors"])
def test_a_file_that_is_none_is_refused(manifest, tmp_path, content):
    path = tmp_path / "t.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="method.teacher"):
        class_labels(path, manifest)
