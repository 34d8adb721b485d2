"""fastlsr: a fast, traceable trainer for label-smoothing research (TSLA, COLAM and their kin)."""

import os
import signal
import sys

# A command begins. Until `cli.interrupts_raised` there is nothing to save, and Ctrl-C ends the process at once: as an
# exception it would print the traceback of some import, or be swallowed there.
_name = os.path.basename(sys.argv[0]) if sys.argv else ""
_starts = _name in ("fastlsr", "write_ffcv.py") or (
    _name == "-m" and any(word.partition(".")[0] == "fastlsr" for word in sys.orig_argv)
)
if _starts and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a script's `&` has it ignored
    signal.signal(signal.SIGINT, signal.SIG_DFL)

__version__ = "0.1.0"

# Before torch loads OpenMP: on a CPU its threads share the cores with the loader's, and threads that spin while they
# wait for one another then take the cores from those they wait for (measured: an epoch in 8 s instead of 0.5 s).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# By default torch keeps compiled code in /tmp, which a reboot empties: the first step of a compiled run would take half
# a minute again instead of seconds.
_cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
if os.access(_cache if os.path.isdir(_cache) else os.path.dirname(_cache), os.W_OK):
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(_cache, "fastlsr", "inductor"))
