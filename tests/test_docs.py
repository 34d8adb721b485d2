"""README, CONTRIBUTING and docs/: their commands run, their links lead somewhere, their tables are the code's."""

import glob
import importlib
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.run
from safetensors.torch import save_file

from fastlsr import analysis, analyze, train, write
from fastlsr.__main__ import COMMANDS as LISTED
from fastlsr.config import load
from fastlsr.data.prepare.writing import Samples, write_beton
from fastlsr.labels.methods import make_plan
from fastlsr.logits import read_logits
from fastlsr.metrics import METRICS
from fastlsr.plugins import load_plugins
from fastlsr.runs import RunFolder

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README.partition("### A method, a loss term, a network of your own\n")[2].partition("\n## ")[0]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
STUDIES = sorted((ROOT / "docs/studies").glob("*/README.md"))
LINKING = [*PAGES, *STUDIES, ROOT / "CHANGELOG.md", *sorted((ROOT / "benchmarks/reports").glob("*.md"))]

of_each_page = pytest.mark.parametrize("page", LINKING, ids=lambda page: page.stem)


def commands(text):
    """Each command of a page as a list of words: the lines of code blocks, and what stands between backticks."""
    text = text.replace("\\\n", " ")
    lines = re.findall(r"`((?:python|make|fastlsr) [^`]+)`", text)
    for block in re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        lines += re.findall(r"^(?:\$ )?((?:python|make|wandb|torchrun|fastlsr) .*)$", block, re.MULTILINE)
    return [by_module(shlex.split(line, comments=True)) for line in lines]


def by_module(words):
    """`fastlsr COMMAND ...` as `python -m fastlsr.COMMAND ...`."""
    return ["python", "-m", f"fastlsr.{words[1]}", *words[2:]] if words[0] == "fastlsr" else words


COMMANDS = list(dict.fromkeys(tuple(words) for page in PAGES for words in commands(page.read_text(encoding="utf-8"))))


def of_module(name):
    """The words after `-m NAME` of every command that has some; not --help, nor README's own method, tested below."""
    found = [words[words.index(name) + 1 :] for words in COMMANDS if f" -m {name} " in f"{' '.join(words)} "]
    return [
        pytest.param(words, id=" ".join(words))
        for words in dict.fromkeys(found)
        if words and not {"--method.name=anneal", "--help"} & set(words)
    ]


@pytest.fixture(scope="module")
def workplace(photo_tree, tmp_path_factory):
    """A folder in which the commands run as they stand: configs/, data/, and runs/NAME, a run of the quickstart.

    data/ has a tiny file for every split that a config names, and the teachers that commands read.
    """
    place = tmp_path_factory.mktemp("workplace")
    (place / "configs").symlink_to(ROOT / "configs")
    (place / "DIR").symlink_to(photo_tree)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        write.main(["digits", "--subset=100"])
        for name in {load(path).data.dataset for path in (ROOT / "configs").glob("*.yaml")} - {"digits"} | {"birds"}:
            write_tiny(place / "data", name)
        write_tiny(place / "data/subset", "cifar100")
        words = ["--cfg", "configs/quickstart.yaml", "--train.epochs=5", "--log.wandb=disabled", "--run.name=NAME"]
        assert train.main(words) == 0
    return place


def write_tiny(folder, name):
    """8 images of 32 x 32 of 4 classes in each split of data set `name`."""
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    for split in ("train", "test"):
        path = folder / f"{name}_{split}.beton"
        write_beton(Samples(images, np.arange(8) % 4), path, dataset=name, split=split, classes=list("abcd"))


@pytest.fixture
def here(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    return workplace


def run_teach(words):
    """Runs a teacher's command; one of pre-trained weights with a small network's, since theirs are a download."""
    from fastlsr import teach
    from fastlsr.models import build_model

    words = [re.sub("^timm/.*", "resnet8", word) for word in words if not word.startswith("--data.resolution")]
    if "--model" in words:
        save_file(build_model("resnet8", classes=4, resolution=32).state_dict(), "weights.safetensors")
        words.append("--model.pretrained=weights.safetensors")
    return teach.main(words)


def run_labels(words):
    """Runs a command that imports labels, of a table for the tiny data."""
    from fastlsr.labels import __main__ as labels

    Path(words[1]).write_text("index,a,b,c,d\n" + "".join(f"{at},1,2,3,4\n" for at in range(8)))
    return labels.main(words)


TEACHING, IMPORTING = of_module("fastlsr.teach"), of_module("fastlsr.labels")


@pytest.fixture(scope="module")
def teachers(workplace):
    """The exit codes of the teachers' commands, which write files that other commands read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        runs = {run_teach: TEACHING, run_labels: IMPORTING}
        return {param.id: run(param.values[0]) for run, params in runs.items() for param in params}


@pytest.mark.parametrize("words", TEACHING + IMPORTING)
def test_a_teacher_s_command_writes_its_file(words, teachers, workplace):
    assert teachers[" ".join(words)] == 0
    assert (workplace / words[words.index("--out") + 1]).is_file()


@pytest.mark.parametrize("words", of_module("fastlsr.train"))
def test_a_training_command_describes_its_run(words, here, teachers, capsys):
    assert train.main([*(word for word in words if word != "--dry-run"), "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "phases:" in said.out and "batches an epoch" in said.out
    assert "warning" not in said.err


@pytest.mark.parametrize("words", of_module("fastlsr.sweep"))
def test_a_sweep_s_command_plans_its_trials(words, here, capsys):
    sweep = importlib.import_module("fastlsr.sweep.__main__")
    kept = [word for word in words if word not in ("--select", "--dry-run")]
    assert sweep.main([*kept, "--dry-run"]) == 0
    assert "trial 1:" in capsys.readouterr().out


@pytest.mark.parametrize("words", of_module("fastlsr.evaluate"))
def test_a_command_about_a_run_prints_json(words, here, capsys):
    assert importlib.import_module("fastlsr.evaluate").main(list(words)) == 0
    assert json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("words", of_module("fastlsr.analyze"))
def test_an_analysis_of_the_pages_writes_its_numbers(words, here, tmp_path, capsys):
    assert analyze.main([*words, f"--out={tmp_path}"]) == 0
    assert json.loads((tmp_path / f"{words[0]}.json").read_text()) and capsys.readouterr().out


@pytest.fixture(scope="module")
def compared(workplace, tmp_path_factory):
    """A folder in which runs/ has a run of each method that the commands of a report name."""
    place = tmp_path_factory.mktemp("compared")
    (place / "configs").symlink_to(ROOT / "configs")
    common = ["--cfg", str(ROOT / "configs/quickstart.yaml"), "--train.epochs=2", "--method.stages=2",
              "--log.wandb=disabled", f"--data.dir={workplace / 'data'}", f"--run.dir={place / 'runs'}"]  # fmt: skip
    for method in ("hard", "lsr", "tsla", "colam"):
        assert train.main([*common, f"--method.name={method}"]) == 0
    return place


@pytest.mark.parametrize("words", of_module("fastlsr.report"))
def test_a_report_of_the_pages_is_written(words, compared, tmp_path, monkeypatch):
    monkeypatch.chdir(compared)
    words = [each for word in words for each in (glob.glob(word) if "*" in word else [word])]  # as a shell does
    assert importlib.import_module("fastlsr.report.__main__").main([*words, f"--out={tmp_path}"]) == 0
    assert "What may be claimed" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_the_example_of_an_analysis_counts_what_the_network_confuses(here, tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/analyses.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "confusions.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(analysis, "__path__", [*analysis.__path__, str(tmp_path)])
    assert analyze.main(["confusions", "runs/NAME", "--pairs=100", f"--out={tmp_path}"]) == 0
    found = json.loads((tmp_path / "confusions.json").read_text())
    counts = {name: count for name, count in found.items() if name not in ("about", "command")}
    last = RunFolder(here / "runs/NAME").read_summary()["last"]
    samples = len(read_logits(RunFolder(here / "runs/NAME").logits("last")).labels)
    assert sum(counts.values()) == round((100 - last["test/top1"]) / 100 * samples)
    assert analyze.main(["--help"]) == 0
    assert "confusions" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [pytest.param(w[2:], id=" ".join(w[2:])) for w in COMMANDS if w[1] == "data_prep/write_ffcv.py"]
)
def test_a_writer_s_command_is_read_and_runs_where_the_data_is_here(words, here):
    write.parser().parse_args(words)
    if words[0] in ("digits", "folder"):
        write.main([*words, "--out=written"])
        assert list((here / "written").glob("*_train.beton"))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_what_a_command_names_is_there(words):
    """Scripts with their options, targets of make, sweep files and the tests of CONTRIBUTING."""
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert words[1] in targets
    if words[0] == "wandb":
        assert (ROOT / words[2]).is_file()
    if words[0] == "torchrun":
        torch.distributed.run.parse_args(list(words[1:]))
    if words[0] == "python" and words[1] != "-m":
        name = "fastlsr/write.py" if words[1] == "data_prep/write_ffcv.py" else words[1]
        script = (ROOT / name).read_text(encoding="utf-8")
        assert all(f'"{word}"' in script for word in words if word.startswith("--"))
    if len(words) > 2 and words[2].startswith("fastlsr.") and words[2] != "fastlsr.COMMAND":
        assert words[2].removeprefix("fastlsr.") in {*LISTED, "system"}
    if words[:3] == ("python", "-m", "pytest"):
        assert all((ROOT / word).exists() for word in words[3:])


def test_the_scan_finds_commands_of_every_kind():
    found = commands("```\n$ python -m a --b=1   # why\nno\nmake c\ntorchrun -m g\n```\n`python d.py \\\n e`, `f`\n")
    assert found == [["python", "d.py", "e"], ["python", "-m", "a", "--b=1"], ["make", "c"], ["torchrun", "-m", "g"]]
    assert commands("`fastlsr train --a.b=1`") == [["python", "-m", "fastlsr.train", "--a.b=1"]]
    kinds = {words[2] if words[1] == "-m" else words[1] for words in COMMANDS if words[0] == "python"}
    assert kinds >= {f"fastlsr.{name}" for name in "train evaluate sweep teach labels analyze".split()}
    assert "data_prep/write_ffcv.py" in kinds


def test_the_quickstart_names_a_next_command_that_runs(here):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    ((command,),) = [re.findall(r"echo \"next.*: \$\(PY\) -m fastlsr.train (.*)\"", makefile)]
    assert train.main([*shlex.split(command), "--dry-run"]) == 0


def anchors(page):
    """The names under which a page's headings can be linked to, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page, text):
    """The relative links of a page's text that lead to no file, or to no heading of one."""
    found = []
    for link in re.findall(r"\]\(\s*([^)\s]+)\s*\)", text):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


@of_each_page
def test_every_link_of_a_page_leads_somewhere(page):
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


def test_a_link_that_leads_nowhere_is_found():
    text = "[a](docs/none.md) [b](README.md#no-such) [c](README.md#speed) [d](https://example.org/x) [e](#speed)"
    assert broken_links(ROOT / "README.md", text) == ["docs/none.md", "README.md#no-such"]


def test_every_page_of_docs_is_linked_from_readme():
    assert [page.name for page in (ROOT / "docs").glob("*.*") if f"](docs/{page.name}" not in README] == []


@pytest.fixture
def write_docs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("write_docs")


def test_generated_tables_are_those_of_the_code(write_docs, capsys):
    assert write_docs.main(["--check"]) == 0, capsys.readouterr().out


def test_a_stale_table_is_named_and_rewritten(write_docs, tmp_path, monkeypatch, capsys):
    (tmp_path / "docs").mkdir()
    page = tmp_path / "README.md"
    page.write_text("a\n<!-- generated: metrics -->\nold\n<!-- end -->\nb\n", encoding="utf-8")
    monkeypatch.setattr(write_docs, "ROOT", tmp_path)
    monkeypatch.setattr(write_docs, "pages", lambda: [page])
    assert write_docs.main(["--check"]) == 1
    assert "README.md is stale" in capsys.readouterr().out and "old" in page.read_text(encoding="utf-8")
    assert write_docs.main([]) == 0
    assert re.fullmatch(r"a\n<!-- .* -->\n(`test/\w+` ?)+\n<!-- end -->\nb\n", page.read_text(encoding="utf-8"))
    assert write_docs.main(["--check"]) == 0


@pytest.mark.parametrize("text", ["<!-- generated: nothing -->\n<!-- end -->", "<!-- generated: metrics -->\n"])
def test_a_block_that_cannot_be_written_is_an_error(write_docs, text):
    with pytest.raises(write_docs.InputError):
        write_docs.rewritten(text)


@pytest.fixture
def example(here, registries):
    """(command, promised): the section's command and what README promises it to print; mine.py is its code."""
    (code,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
    ((command, promised),) = re.findall(r"```\n\$ python -m fastlsr.train (.*?)\n(.*?)```", SECTION, re.DOTALL)
    (here / "mine.py").write_text(code, encoding="utf-8")
    return shlex.split(command), promised


def test_the_example_prints_what_readme_promises(example, capsys):
    command, promised = example
    assert train.main(command) == 0
    assert promised in capsys.readouterr().out
    assert train.main(["--help", "--plugin=mine.py"]) == 0
    assert "  anneal: Label smoothing that falls to 0" in capsys.readouterr().out


def test_the_example_of_two_stages_trains_as_tsla(example, here):
    words = ["--cfg", "configs/quickstart.yaml", "--train.epochs=2", "--method.smoothing=0.3", "--log.wandb=disabled",
             "--plugin=mine.py", "--model.name=tiny"]  # fmt: skip
    assert train.main([*words, "--run.name=one", "--method.name=anneal", "--method.stages=2"]) == 0
    assert train.main([*words, "--run.name=other", "--method.name=tsla"]) == 0
    one, other = (
        [row["train/loss"] for row in RunFolder(here / "runs" / name).read_rows()] for name in ("one", "other")
    )
    assert one == other and len(one) == 2


def test_the_example_s_loss_term_is_trained(example, here, capsys):
    words = ["--cfg", "configs/quickstart.yaml", "--train.epochs=1", "--method.beta=0.5", "--log.wandb=disabled",
             "--plugin=mine.py"]  # fmt: skip
    for name in ("small_logits", "hard"):
        assert train.main([*words, f"--method.name={name}", f"--run.name={name}"]) == 0
    term, hard = (RunFolder(here / "runs" / name).read_rows()[0] for name in ("small_logits", "hard"))
    assert term["train/loss"] > hard["train/loss"]
    assert term["test/loss"] > term["test/nll"], "the term is part of the objective, and not of hard cross-entropy"


def test_the_page_on_plugins_has_code_that_runs(here, registries):
    text = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (here / "more.py").write_text(code, encoding="utf-8")
    load_plugins(["more.py"])
    logits, labels = torch.randn(40, 5), torch.randint(5, (40,))
    expected = (logits.softmax(1) - torch.eye(5)[labels]).square().sum(1).mean()
    brier = METRICS["brier"]
    assert brier.value(brier.sums(logits, labels), 40) == pytest.approx(expected.item(), rel=1e-5)
    plan = make_plan(load(overrides={"plugin": "more.py", "method.name": "polynomial"}).method, 4)
    assert [round(phase.uniform, 6) for phase in plan.phases] == [0.1, 0.05625, 0.025, 0.00625]
    assert analyze.main(["most_learned", "runs/NAME", "--plugin=more.py", "--out=found"]) == 0
    write.main(["tree", "--plugin=more.py", "--data-dir", "DIR", "--out=written_by_plugin"])
