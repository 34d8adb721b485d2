#!/usr/bin/env bash
# Makes .venv with everything that fastlsr needs, also for `make test` and `make check`; takes no time if it is there.
# PYTHON=... picks the interpreter; without it 3.13 is taken first, where it is there. CPU=1 takes torch without CUDA, from an
# index that pip has been told of; .venv stays so until CPU=0.
# Exit code 2: something is missing that the user must install; the last lines name it.
set -eu
cd "$(dirname "$0")/.."

venv=.venv
stamp=$venv/fastlsr-setup.sha256

note() { printf 'setup: %s\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2; exit 2; }

# Prints "3.11" for an interpreter that runs, else nothing (a pyenv shim may exist and not work).
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }

suitable() { case "$1" in 3.10 | 3.11 | 3.12 | 3.13 | 3.14) true ;; *) false ;; esac; }

# Prints the real interpreter behind a shim or a venv, so that .venv can be made again from itself.
base_of() { "$1" -c 'import sys; print(sys._base_executable)'; }

pick_python() {
    local candidate version=""
    local candidates=("$venv/bin/python" python3.13 python3.12 python3.11 python3.10 python3.14 python3)
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        version=$(version_of "$candidate")
        if suitable "$version"; then
            base_of "$candidate"
            return
        fi
    done
    fail "Python 3.10 to 3.14 is needed, and $candidate is ${version:-not there or does not run};" \
        "install one, or name it: make setup PYTHON=/path/to/python3.13"
}

# The key includes the folder: a copied .venv would still import fastlsr from the old one.
wanted_key() { { pwd -P; echo "CPU=$cpu"; cat pyproject.toml constraints.txt fastlsr/data/jpeg_window.c; } | sha256sum; }

ready() {
    local version
    version=$(version_of $venv/bin/python)
    [ -f "$stamp" ] && compgen -G 'fastlsr/data/_jpeg_window.*' >/dev/null && [ "$(cat "$stamp")" = "$(wanted_key)" ] && [ -n "$version" ] &&
        { [ -z "${PYTHON:-}" ] || [ "$(version_of "$PYTHON")" = "$version" ]; }
}

# Prints the prefix of commands that need root: none for root, else sudo, which asks for a password only at a terminal.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        echo ""
    elif [ -t 0 ]; then
        echo "sudo"
    else
        echo "sudo -n"
    fi
}

install_system_packages() {
    local python=$1 packages root
    packages=$("$python" -m fastlsr.system --apt || true)
    if [ -n "$packages" ] && command -v apt-get >/dev/null; then
        root=$(as_root)
        if [ -z "$root" ] || command -v sudo >/dev/null; then
            note "installing system packages (a minute or two): $packages"
            $root env DEBIAN_FRONTEND=noninteractive apt-get update -qq >/dev/null || note "apt-get update failed"
            # shellcheck disable=SC2086  # both are lists of words
            $root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
                -o DPkg::Lock::Timeout=120 $packages >/dev/null || note "apt-get install failed"
        fi
    fi
    missing=$("$python" -m fastlsr.system) || fail "system packages are missing and could not be installed from here.
$missing
Install them in one of these ways, then run the same command again."
}

# Prints the folder whose packages are used once .venv is activated: of a copy, the one that it was copied from.
# shellcheck disable=SC1091
activated() { (. $venv/bin/activate && echo "$VIRTUAL_ENV") 2>/dev/null || true; }

make_venv() {
    local python=$1
    if [ "$(version_of $venv/bin/python)" != "$(version_of "$python")" ] ||
        [ "$(activated)" != "$(pwd -P)/$venv" ] || [ "$(built_for_cpu)" != "$cpu" ] ||
        ! $venv/bin/python -m pip --version >/dev/null 2>&1; then
        note "making $venv with Python $(version_of "$python")"
        "$python" -m venv --clear $venv
        [ "$cpu" = 0 ] || touch $venv/fastlsr-cpu
    fi
}

# Prints the version of constraints.txt for a package and this .venv.
pinned() {
    "$venv/bin/python" - "$1" <<'EOF'
import sys
from pip._vendor.packaging.requirements import Requirement

for line in open("constraints.txt", encoding="utf-8"):
    requirement = line.strip() and not line.startswith("#") and Requirement(line.strip())
    if requirement and requirement.name == sys.argv[1] and (not requirement.marker or requirement.marker.evaluate()):
        print(str(requirement.specifier).removeprefix("=="))
EOF
}

install_packages() {
    local package packages=(-e '.[test]') size=6
    if [ "$cpu" = 1 ]; then
        size=2
        for package in torch torchvision; do packages+=("$package==$(pinned $package)+cpu"); done
    fi
    note "installing the packages of pyproject.toml at the versions of constraints.txt (about $size GB)"
    # Environment variables, because -c does not apply to FFCV's isolated build; newer pips read PIP_BUILD_CONSTRAINT.
    PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
        $venv/bin/python -m pip install --disable-pip-version-check --no-input "${packages[@]}" >&2 && return
    [ "$cpu" = 0 ] || fail "PyPI has no torch without CUDA for this machine; let pip find it where PyTorch's site says:" \
        "make setup CPU=1 PIP_EXTRA_INDEX_URL=..."
    fail "pip could not install the packages; its message is above"
}

built_for_cpu() { [ -f $venv/fastlsr-cpu ] && echo 1 || echo 0; }

cpu=${CPU:-$(built_for_cpu)}
case "$cpu" in 0 | 1) ;; *) fail "CPU=$cpu: expected 0 or 1" ;; esac

if ready; then
    exit 0
fi
python=$(pick_python)
install_system_packages "$python"
make_venv "$python"
rm -f "$stamp"
install_packages
wanted_key >"$stamp"
note "done; 'make doctor' checks that everything works"
