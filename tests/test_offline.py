"""What travels to a machine without a network: the packages that it lacks, and data in parts that come out whole."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts" / "offline"))  # as for `python scripts/offline/pack.py`
pack = importlib.import_module("pack")


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone with a kit of one module and one compiled part, as the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "scripts" / "offline", tmp_path / "scripts" / "offline")
    (tmp_path / "fastlsr" / "data").mkdir(parents=True)
    kit = tmp_path / "kit"
    for name, content in (("site/packed_module.py", "NUMBER = 7"), ("lib/none.so", ""), ("fastlsr/_part.abi3.so", "x")):
        (kit / name).parent.mkdir(parents=True, exist_ok=True)
        (kit / name).write_text(content)
    Path(".offline").mkdir()
    pack.compress(Path(".offline/kit.tar.xz"), kit, ["site", "lib", "fastlsr"])
    return tmp_path


def there(clone, command="true"):
    """What a shell prints that unpacked and then runs a command in another folder, and its errors."""
    script = f'eval "$("{sys.executable}" "{clone}/scripts/offline/unpack.py")" && cd / && {command}'
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60)


def test_what_was_packed_is_found_in_any_folder_and_unpacked_once(clone):
    first = there(clone, f"{sys.executable} -c 'import packed_module; print(packed_module.NUMBER)'")
    assert first.stdout == "7\n" and "unpacking" in first.stderr
    assert (clone / "fastlsr/data/_part.abi3.so").read_text() == "x"
    (clone / "fastlsr/data/_part.abi3.so").unlink()  # a fresh copy of the clone
    assert there(clone).stderr == ""
    assert (clone / "fastlsr/data/_part.abi3.so").read_text() == "x"


def test_data_come_out_as_they_were_once_all_their_parts_are_there(clone):
    (clone / "some").mkdir()
    contents = {name: os.urandom(size) for name, size in (("one.beton", 100_000), ("two.json", 10), ("three", 0))}
    for name, content in contents.items():
        (clone / "some" / name).write_bytes(content)
    sizes = (pack.INDEX + 20_000, pack.INDEX + 50_000)
    count = pack.pack_data([Path("some", name) for name in contents], sizes)
    parts = [clone / f".offline-data-{number}" for number in range(1, count + 1)]
    assert count == 3
    assert all(pack.folder_bytes(part) <= size for part, size in zip(parts, [sizes[0], *[sizes[1]] * 2], strict=True))
    shutil.rmtree(clone / "some")
    travelled = clone / "on its way"
    for part in parts[1:]:
        shutil.move(part, travelled / part.name)
    told = there(clone).stderr
    assert ".offline-data-2" in told and ".offline-data-3" in told and not (clone / "some").exists()
    shutil.rmtree(parts[0])  # each travels alone
    for part in parts[1:]:
        shutil.move(travelled / part.name, part)
        last = there(clone)
    assert "unpacking the data" in last.stderr
    assert {path.name: path.read_bytes() for path in (clone / "some").iterdir()} == contents
    assert there(clone).stderr == ""


def test_a_damaged_part_is_refused(clone):
    (clone / "some").mkdir()
    (clone / "some" / "one").write_bytes(os.urandom(1000))
    pack.pack_data([Path("some", "one")], (pack.INDEX * 2, pack.INDEX * 2))
    part = clone / ".offline-data-1" / "part"
    part.write_bytes(part.read_bytes()[:-1])
    shutil.rmtree(clone / "some")
    assert "not what was packed" in there(clone).stderr and not (clone / "some").exists()


def test_what_is_there_and_new_enough_is_not_packed_nor_what_only_that_needs():
    everything = pack.needed("fastlsr", {})
    assert {"torch", "sympy", "ffcv", "wandb", "pydantic", "timm"} <= everything
    usual = pack.needed("fastlsr", pack.usually_there())
    assert {"ffcv", "fastargs", "wandb"} <= usual and not {"torch", "sympy", "numpy", "pillow"} & usual
    listing = "torch==99.0\ntorchvision==99.0\nPillow==1.0\nopencv-python-headless==99.0\ntimm @ file:///somewhere\n"
    lacking = pack.needed("fastlsr", pack.listed_there(listing))
    assert "pillow" in lacking, "too old there"
    assert not {"torch", "sympy", "timm", "opencv-python"} & lacking
    for without in ("torchvision==99.0\n", "torch==1.0\ntorchvision==99.0\n"):
        with pytest.raises(pack.CannotPack, match="torch: not there, or too old"):
            pack.listed_there(without)


@pytest.mark.parametrize(("arguments", "said"), [
    (["no-such-file"], "no-such-file does not exist"), (["--python", "2"], "--python 2"), ([], "root of a clone"),
])  # fmt: skip
def test_what_cannot_be_packed_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path if not arguments else ROOT)
    assert pack.main(arguments) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1


def test_packing_that_fails_is_one_line_and_leaves_the_former_kit(clone, monkeypatch, capsys):
    (clone / "fastlsr" / "__init__.py").touch()
    (clone / "fastlsr" / "data" / "_jpeg_window.abi3.so").touch()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    before = (clone / ".offline" / "kit.tar.xz").read_bytes()
    assert pack.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (clone / ".offline" / "kit.tar.xz").read_bytes() == before
    assert [path.name for path in clone.glob(".offline*")] == [".offline"]


def test_files_of_several_folders_or_from_elsewhere_are_refused(tmp_path):
    for files in ([Path("data/a"), Path("b")], [tmp_path / "a"]):
        with pytest.raises(pack.CannotPack, match="files of one folder"):
            pack.pack_data(files, (1 << 20, 1 << 20))
