"""Runs every benchmark and writes what they say as a dated report.

    python benchmarks/run.py [--only loss,step] [--photographs FOLDER] [--cifar-dir FOLDER]

Each runs in a process of its own, one after the other. The report goes to benchmarks/reports/DATE.md, with a table of
all figures against their bars and what each benchmark printed, and DATE.json beside it. A report of the same day is
completed: what is run again takes the place of its former part, and each part names its commit. A benchmark that fails,
or is not done after half an hour, says so in the report, and the rest goes on; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
# What each is given besides, of the options below.
BENCHMARKS = {
    "writer": ["photographs"], "loader": ["photographs"], "loss": [], "colam": [], "step": [],
    "trainer": ["cifar-dir"], "growth": [], "gpu": ["cifar-dir"],
}  # fmt: skip
ABOUT = ("spread", "bars", "work", "device", "python", "versions", "commit", "printed")  # no figures
MOST_SECONDS, SECONDS_TO_END = 1800, 20
REASONS = "## Bars that were not met"


def run(name: str, given: dict[str, Path | None]) -> dict:
    """The JSON object of one benchmark, shown as it comes, with all that was printed before it as `printed`.

    Of one that fails there is nothing but `printed`.
    """
    options = [f"--{option}={given[option]}" for option in BENCHMARKS[name] if given[option]]
    print(f"\n=== {name} {' '.join(options)}", flush=True)
    command = [sys.executable, str(FOLDER / f"{name}.py"), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            out, errors = process.communicate(timeout=MOST_SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()  # not killed at once: it may have programs of its own to end
            try:
                process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()
            return {"printed": f"not done after {MOST_SECONDS} s\n"}
    *lines, last = out.splitlines() or [""]
    print("\n".join(lines), flush=True)
    if process.returncode:
        print(errors[-2000:], file=sys.stderr)
        return {"printed": out + errors[-2000:]}
    return {**json.loads(last), "printed": "\n".join(lines)}


def table(name: str, answer: dict) -> list[str]:
    """Rows of the report's table: benchmark, figure, value, its spread over the rounds, bar."""
    rows = []
    for key, value in answer.items():
        if key in ABOUT:
            continue
        spread = " to ".join(f"{end:g}" for end in answer["spread"].get(key, []))
        bar = answer["bars"].get(key, "")
        shown = "not measured" if value is None else f"{value:g}"
        missed = bar and value is not None and not held(value, bar)
        rows.append(f"| {name} | `{key}` | {shown} | {spread} | {bar}{', **not met**' if missed else ''} |")
    return rows


def held(value: float, bar: str) -> bool:
    """Whether a value meets a bar such as ">= 2"."""
    relation, limit = bar.split()
    return value >= float(limit) if relation == ">=" else value <= float(limit)


def write_report(path: Path, answers: dict[str, dict]) -> None:
    """Writes the report of what was measured so far, and the same as JSON beside it.

    What was written by hand at the end of a former one, from the heading `REASONS` on, stays.
    """
    former = path.read_text(encoding="utf-8") if path.exists() else ""
    _, heading, reasons = former.partition(f"\n{REASONS}\n")
    answers = {name: answers[name] for name in BENCHMARKS if name in answers}
    ran = next((answer for answer in answers.values() if "device" in answer), {})
    versions = ", ".join(f"{package} {version}" for package, version in ran.get("versions", {}).items())
    lines = [
        f"# Benchmarks, {path.stem}", "",
        f"On {ran.get('device')}, Python {ran.get('python')}, {versions}.",
        "A ratio is that of medians; its spread is the lowest and highest of any round.", "",
        "| benchmark | figure | value | spread | bar |", "| --- | --- | --- | --- | --- |",
        *(row for name, answer in answers.items() for row in table(name, answer)), "",
    ]  # fmt: skip
    for name, answer in answers.items():
        commit = f"Commit {answer['commit']}." if "commit" in answer else "It failed."
        lines += [f"## {name}", "", commit, "", "```", answer["printed"].strip("\n"), "```", ""]
    path.write_text("\n".join(lines) + heading + reasons, encoding="utf-8")
    path.with_suffix(".json").write_text(json.dumps(answers, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names, separated by commas; else all")
    parser.add_argument("--photographs", type=Path, help="folder with JPEG files of about 500 pixels; else random ones")
    parser.add_argument("--cifar-dir", type=Path, help="folder that holds cifar-100-python; else random images")
    parser.add_argument("--reports", type=Path, default=FOLDER / "reports", help="where the report goes")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(BENCHMARKS)
    if unknown := set(names) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    given = {"photographs": options.photographs, "cifar-dir": options.cifar_dir}
    options.reports.mkdir(exist_ok=True)
    path = options.reports / f"{datetime.date.today().isoformat()}.md"
    former = path.with_suffix(".json")
    answers: dict[str, dict] = json.loads(former.read_text(encoding="utf-8")) if former.exists() else {}
    for name in names:
        answers[name] = run(name, given)
        write_report(path, answers)  # after each: what was measured stays, whatever becomes of the rest
    print(f"\nreport: {path}")
    return 0 if all("device" in answers[name] for name in names) else 1


if __name__ == "__main__":
    sys.exit(main())
