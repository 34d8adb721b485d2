"""The processes of a sweep's trials: started, shared out over the devices, stopped, and waited for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from fastlsr.config import Config
from fastlsr.cores import cores
from fastlsr.errors import InputError
from fastlsr.runs import Summary
from fastlsr.sweep.file import Sweep
from fastlsr.sweep.jobs import Jobs
from fastlsr.sweep.plan import PlannedTrial, finished_run
from fastlsr.sweep.results import metric_of
from fastlsr.trials import mean_and_std


class Runner:
    """Runs trials, several at a time.

    Attributes:
        summaries: trial number to the summary of its finished run.
        failed: numbers of the trials that failed.
    """

    def __init__(
        self, sweep: Sweep, trials: Sequence[PlannedTrial], folder: Path, *, jobs: Jobs, ranks: int, lock: int
    ):
        """A runner of one or more trials.

        Args:
            folder: of the trials' logs.
            jobs: how many trials run at a time, and on which share of the cores.
            ranks: processes of each trial, with a CUDA device each where there are any.
            lock: a file descriptor that the trials inherit.
        """
        self.summaries: dict[int, Summary] = {}
        self.failed: list[int] = []
        self._metric, self._folder, self._lock = metric_of(sweep)[1], folder, lock
        self._jobs, self._ranks = jobs, ranks
        self._waiting = deque(trials)
        self._last = trials[-1].number
        self._running: set[asyncio.subprocess.Process] = set()
        self._signal = 0

    async def run(self) -> int:
        """Runs all trials; returns the signal that stopped it, or 0."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, number)
        devices = cuda_devices() if self._jobs.at_once > 1 else []
        check_devices(devices, self._jobs.at_once, self._ranks)
        workers = [loop.create_task(self._work(slot, devices)) for slot in range(self._jobs.at_once)]
        try:
            await asyncio.gather(*workers)
        except BaseException:  # such as nobody reading what is printed any more: leaves no trial behind
            self._stop(signal.SIGTERM)
            await asyncio.gather(*workers, return_exceptions=True)
            raise
        return self._signal

    def _stop(self, number: int) -> None:
        self._signal = self._signal or number
        for process in self._running:  # each is a session of its own, so that a terminal's Ctrl-C reaches it once
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    async def _work(self, slot: int, devices: Sequence[str]) -> None:
        """Runs waiting trials, one after the other, until none is left."""
        while self._waiting and not self._signal:
            trial = self._waiting.popleft()
            summary, _ = finished_run(trial)
            if summary:
                self._keep(trial, summary, "was finished before")
            else:
                await self._run(trial, trial_environment(trial.config, slot, self._jobs.shares, devices, self._ranks))

    async def _run(self, trial: PlannedTrial, variables: dict[str, str]) -> None:
        """Runs a trial and keeps its summary, or prints why there is none."""
        log = self._folder / f"trial_{trial.number:03d}.log"
        self._print(trial, f"started: {trial}, log {log}")
        start = time.monotonic()
        try:
            code = await self._exit_code(trial, log, variables)
        except OSError as error:
            self._fail(trial, f"could not start: {error}")
            return
        summary, reason = finished_run(trial)
        if summary:
            self._keep(trial, summary, f"finished after {time.monotonic() - start:.0f} s")
        elif self._signal:
            self._print(trial, "stopped; the same sweep goes on with it")
        elif code == 0 and reason:
            self._fail(trial, f"failed: {reason}")
        else:
            self._fail(trial, f"failed with {_ending(code)}; the last line of {log}: {last_line_of_log(log)}")

    async def _exit_code(self, trial: PlannedTrial, log: Path, variables: dict[str, str]) -> int:
        """The exit code of a trial's process.

        Raises:
            OSError: if it cannot be started, or its log cannot be written.
        """
        with open(log, "ab") as output:
            process = await asyncio.create_subprocess_exec(
                *trial.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=variables,
                start_new_session=True,
                pass_fds=(self._lock,),
            )
        self._running.add(process)
        if self._signal:  # it came while the process was being started
            process.send_signal(self._signal)
        code = await process.wait()
        self._running.remove(process)
        return code

    def _keep(self, trial: PlannedTrial, summary: Summary, how: str) -> None:
        self.summaries[trial.number] = summary
        numbers = {"last": summary["last"].get(self._metric), "best": summary["best"].get(self._metric)}
        shown = [f"{row} {mean_and_std([number])}" for row, number in numbers.items() if number is not None]
        self._print(trial, f"{how}: {self._metric} {', '.join(shown) or 'no number'}, {trial.folder.path}")

    def _fail(self, trial: PlannedTrial, why: str) -> None:
        self.failed.append(trial.number)
        self._print(trial, why)

    def _print(self, trial: PlannedTrial, text: str) -> None:
        print(f"trial {trial.number}/{self._last} {text}", flush=True)


def cuda_devices() -> list[str]:
    """The CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    import torch  # takes seconds

    return [str(number) for number in range(torch.cuda.device_count())]


def check_devices(devices: Sequence[str], jobs: int, ranks: int) -> None:
    """Checks that simultaneous trials of several ranks each get CUDA devices of their own, where there are any.

    Raises:
        InputError: if there are too few.
    """
    if devices and ranks > 1 and jobs * ranks > len(devices):
        raise InputError(f"--jobs={jobs}, --devices-per-trial={ranks} need {jobs * ranks} of {len(devices)} devices")


def trial_environment(config: Config, slot: int, shares: int, devices: Sequence[str], ranks: int = 1) -> dict[str, str]:
    """A trial's environment variables: the sweep's, this Python first in PATH, and its share of cores and devices.

    Args:
        config: the trial's; one that names its CUDA device sees all of them.
        slot: which of the simultaneous trials it is, from 0.
        shares: into how many the cores are divided.
        devices: CUDA devices, shared out in turn; of trials of several ranks, each has its own.
        ranks: of the trial.
    """
    variables = dict(os.environ)
    variables["PATH"] = os.pathsep.join(filter(None, (str(Path(sys.executable).parent), variables.get("PATH"))))
    variables.setdefault("PYTHONUNBUFFERED", "1")  # so that the log can be followed, and has its end if it is killed
    if shares > 1:
        share = cores() // shares
        variables.setdefault("OMP_NUM_THREADS", str(max(1, share // ranks)))
        variables.setdefault("NUMBA_NUM_THREADS", str(max(1, share)))  # its ranks divide it
        if devices and config.train.device in ("auto", "cuda"):
            own = [devices[(slot * ranks + rank) % len(devices)] for rank in range(ranks)]
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    return variables


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    names = {number.value: number.name for number in signal.Signals}  # without most real-time signals
    return f"signal {names.get(-code, -code)}"


def last_line_of_log(log: Path) -> str:
    """The last line of a file, of its last 16 KiB, in which the trainer says why it failed; else the last not empty."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - (1 << 14)))
        lines = [line.strip() for line in file.read().decode(errors="replace").split("\n") if line.strip()]
    reasons = [line for line in lines if line.startswith(("error: ", "failed: "))]  # torchrun prints pages after it
    return ["(empty)", *lines, *reasons][-1]
