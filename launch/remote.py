"""Shell commands for a TPU VM's workers, as `gcloud ... ssh --command=` takes them.

A worker's shell reads such a command once. Each is `bash -c SCRIPT nlhf ARGUMENT...`, quoted as a
whole, where SCRIPT is one of the constants below: what a user gave is only ever an argument.

A worker keeps everything in ~/nlhf_launch: a directory for each revision, and of the command that
runs or ran last

  lock      held as long as the command runs
  command   what it is
  log       all that it printed; log.before is that of the start before
  pid       of its process group
  code      its exit code, once it has ended
  stopped   it was told to stop by a user
"""

import shlex
from collections.abc import Sequence

from launch.common import NLHF

REFUSED = 90  # a script's exit code when trying again would not help
STOPPED = 256  # in place of an exit code: a user stopped it
REPORT = r"nlhf-worker \S+ (runs|stopped|[0-9]+)"  # what `report` prints for a worker

_BEGIN = """set -eEu
trap 'exit 90' ERR
mkdir -p "$HOME/nlhf_launch"
cd "$HOME/nlhf_launch"
"""

_INSTALL = """repository=$1 revision=$2 python=$3
exec 8>install.lock
flock 8
if [ -e "$revision/installed" ]; then exit 0; fi
if ! command -v "$python" >/dev/null; then
  sudo apt-get -o DPkg::Lock::Timeout=300 -qq update
  sudo apt-get -o DPkg::Lock::Timeout=300 -qq -y install "$python" "$python-venv"
fi
rm -rf "$revision"
mkdir -p "$revision"
cd "$revision"
GIT_TERMINAL_PROMPT=0 git clone --quiet "$repository" source
git -C source checkout --quiet --detach "$revision"
"$python" -m venv venv
(cd source && ../venv/bin/pip install --quiet --constraint requirements.lock '.[tpu,gcs]')
touch installed
"""

# The lock goes to the command by the open file 9; setsid and /dev/null make it independent of the
# connection. `trap` keeps the wrapper alive when SIGTERM comes to the group, so that it still
# writes the code.
_START = """exec 9>>lock
if ! flock --timeout 5 9; then
  if [ "$(cat command)" = "$*" ]; then echo "goes on already on $(hostname)"; exit 0; fi
  echo "another command runs on $(hostname): $(cat command)" >&2
  exit 90
fi
printf '%s' "$*" >command
rm -f code stopped pid
if [ -e log ]; then mv -f log log.before; fi
: >log
setsid --fork bash -c '
  trap : TERM
  echo $$ >pid
  code=0
  "$@" >>log 2>&1 || code=$?
  echo "$code" >code.partial
  mv -f code.partial code
' nlhf "$@" </dev/null >/dev/null 2>&1
"""

# `tail` ends when the one that waits for the lock has got it: the command has ended. Not `exec
# tail`: a child that nobody waits for does not look dead.
_FOLLOW = """flock --shared lock true &
waits=$!
code=0
timeout "$2" tail --lines="+$1" --follow --sleep-interval=0.2 --pid=$waits log || code=$?
if [ "$code" != 0 ]; then kill $waits; exit 0; fi
if [ -n "$(tail --bytes=1 log)" ]; then echo; fi
"""

_REPORT = """if ! flock --nonblock --shared lock true; then state=runs
elif [ -e stopped ] && [ "$(cat code)" != 0 ]; then state=stopped
elif [ -e code ]; then state=$(cat code)
else state=137
fi
echo "nlhf-worker $(hostname) $state"
"""

_STOP = """if flock --nonblock --shared lock true; then exit 0; fi
if [ "$1" = stopped ]; then touch stopped; fi
kill -TERM -- "-$(cat pid)"
if ! flock --shared --timeout "$2" lock true; then kill -KILL -- "-$(cat pid)"; fi
"""


def _quoted(script: str, *arguments: str) -> str:
    return shlex.join(["bash", "-c", _BEGIN + script, "nlhf", *arguments])


def install(repository: str, revision: str, python: str) -> str:
    """Installs the package at a revision, in an environment of its own, unless it is there."""
    return _quoted(_INSTALL, repository, revision, python)


def command(revision: str, environment: Sequence[str], job: Sequence[str]) -> list[str]:
    """The `nlhf` command as a worker runs it in ~/nlhf_launch; `environment` is NAME=VALUE."""
    return ["env", *environment, f"{revision}/venv/bin/python", "-m", NLHF, *job]


def start(arguments: Sequence[str]) -> str:
    """Starts a command, which outlives the connection; nothing if the same one runs already."""
    return _quoted(_START, *arguments)


def follow(line: int, seconds: int = 0) -> str:
    """Prints the log from a line, 1 the first, until the command ends, or for so many seconds."""
    return _quoted(_FOLLOW, str(line), str(seconds))


def report() -> str:
    """Prints a line as REPORT: whether the command runs, or how it ended."""
    return _quoted(_REPORT)


def stop(seconds: int, by_user: bool) -> str:
    """Sends SIGTERM to the command; SIGKILL after so many seconds."""
    return _quoted(_STOP, "stopped" if by_user else "failed", str(seconds))
