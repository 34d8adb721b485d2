"""Runs every benchmark and writes a dated report.

    python benchmarks/run.py [--only loss,step] [--photographs FOLDER] [--cifar-dir FOLDER]

The benchmarks run one after the other, each in a new process. The report is benchmarks/reports/DATE.md, with a table of
all figures and their bars and the output of each benchmark, and DATE.json beside it. A report of the same day is
updated: the results of a benchmark that is run again replace its former ones, and each part has its commit. If a
benchmark fails or is not done after half an hour, the report records it, the others still run, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path

import timing  # noqa: F401  SIGTERM then ends the benchmark under way, too

FOLDER = Path(__file__).parent
# Benchmark -> which of the options below are passed on to it.
BENCHMARKS = {
    "writer": ["photographs"], "loader": ["photographs"], "loss": [], "colam": [], "step": [],
    "trainer": ["cifar-dir"], "growth": [], "gpu": ["cifar-dir"],
}  # fmt: skip
ABOUT = ("spread", "bars", "work", "device", "python", "versions", "commit", "printed")  # keys that are not figures
MOST_SECONDS, SECONDS_TO_END = 1800, 20
REASONS = "## Bars that were not met"


def run(name: str, given: dict[str, Path | None]) -> dict:
    """The JSON object of one benchmark, with the output before it, which is also shown, as `printed`.

    If the benchmark fails, `printed` is the only key.
    """
    options = [f"--{option}={given[option]}" for option in BENCHMARKS[name] if given[option]]
    print(f"\n=== {name} {' '.join(options)}", flush=True)
    command = [sys.executable, str(FOLDER / f"{name}.py"), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            out, errors = process.communicate(timeout=MOST_SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()  # not killed at once, so that it can end its own subprocesses
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


def table(name: str, result: dict) -> list[str]:
    """The rows of the report's table: benchmark, figure, value, spread over the rounds, bar."""
    rows = []
    for key, value in result.items():
        if key in ABOUT:
            continue
        spread = " to ".join(f"{end:g}" for end in result["spread"].get(key, []))
        bar = result["bars"].get(key, "")
        shown = "not measured" if value is None else f"{value:g}"
        missed = bar and value is not None and not meets(value, bar)
        rows.append(f"| {name} | `{key}` | {shown} | {spread} | {bar}{', **not met**' if missed else ''} |")
    return rows


def meets(value: float, bar: str) -> bool:
    """True if a value meets a bar such as ">= 2"."""
    relation, limit = bar.split()
    return value >= float(limit) if relation == ">=" else value <= float(limit)


def write_report(path: Path, results: dict[str, dict]) -> None:
    """Writes the report of all results so far, and a JSON file beside it.

    The end of a former report, from the heading `REASONS` on, which is written by hand, is kept.
    """
    former = path.read_text(encoding="utf-8") if path.exists() else ""
    _, heading, reasons = former.partition(f"\n{REASONS}\n")
    results = {name: results[name] for name in BENCHMARKS if name in results}
    ran = next((result for result in results.values() if "device" in result), {})
    versions = ", ".join(f"{package} {version}" for package, version in ran.get("versions", {}).items())
    lines = [
        f"# Benchmarks, {path.stem}", "",
        f"On {ran.get('device')}, Python {ran.get('python')}, {versions}.",
        "A ratio is that of medians; its spread is the lowest and highest of any round.", "",
        "| benchmark | figure | value | spread | bar |", "| --- | --- | --- | --- | --- |",
        *(row for name, result in results.items() for row in table(name, result)), "",
    ]  # fmt: skip
    for name, result in results.items():
        commit = f"Commit {result['commit']}." if "commit" in result else "It failed."
        lines += [f"## {name}", "", commit, "", "```", result["printed"].strip("\n"), "```", ""]
    path.write_text("\n".join(lines) + heading + reasons, encoding="utf-8")
    path.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


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
    results: dict[str, dict] = json.loads(former.read_text(encoding="utf-8")) if former.exists() else {}
    for name in names:
        results[name] = run(name, given)
        write_report(path, results)  # after each, so that a later failure loses nothing
    print(f"\nreport: {path}")
    return 0 if all("device" in results[name] for name in names) else 1


if __name__ == "__main__":
    sys.exit(main())
