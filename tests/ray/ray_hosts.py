"""Hosts of the test's own making: network, process, mount and name spaces on this machine, joined by a switch.

Each has an address, a home, /tmp and /dev/shm of its own, and answers ssh; /mnt/shared is one folder for all. No
address of theirs exists outside of them. `made` leaves nothing behind, whatever happens within.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

PROGRAMS = ("setpriv", "unshare", "nsenter", "ip", "ssh", "ssh-keygen", "sshd", "rsync", "mount", "hostname")
#: a place for programs that Debian keeps from ordinary users
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: what it starts dies with the tests, even if these are killed
BOUND = ("setpriv", "--pdeathsig", "KILL")
SHARED, HOME, KEY = "/mnt/shared", "/mnt/home", "/mnt/key"

INIT = """
set -eu
mount --make-rprivate /
mkdir -p {folder}/home {folder}/tmp
mount -t tmpfs tmpfs /mnt
mkdir /mnt/shared /mnt/home /mnt/ssh /mnt/etc
mount --bind {shared} /mnt/shared
mount --bind {folder}/home /mnt/home
install -m 600 {keys}/key /mnt/key
install -m 600 {keys}/key.pub /mnt/ssh/authorized
install -m 600 {keys}/host /mnt/ssh/host
hostname {name}
printf '127.0.0.1 localhost\\n%s %s\\n' {address} {name} > /mnt/etc/hosts
sed 's#^root:.*#root:x:0:0:root:/mnt/home:/bin/bash#' /etc/passwd > /mnt/etc/passwd
mount --bind /mnt/etc/hosts /etc/hosts
mount --bind /mnt/etc/passwd /etc/passwd
mount --bind {prefix} {prefix}
mount -o remount,ro,bind {prefix}
printf '%s\\n' {exports} > /mnt/home/.bashrc
cp /mnt/home/.bashrc /mnt/home/.profile
mount -t tmpfs tmpfs /run
mkdir /run/sshd
mount -t tmpfs -o size=1g tmpfs /dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts /dev/pts
mount --bind /dev/pts/ptmx /dev/ptmx
cat > /mnt/ssh/config <<END
Port 22
HostKey /mnt/ssh/host
AuthorizedKeysFile /mnt/ssh/authorized
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
StrictModes no
PidFile none
END
touch {folder}/ready
mount --bind {folder}/tmp /tmp
cd /
{service}
exec sleep infinity
"""


class Host:
    """One of them. `run` executes a command in it, as root with a bare environment."""

    def __init__(self, name: str, address: str, folder: Path, holder: subprocess.Popen[bytes]):
        self.name, self.address, self.folder, self._holder = name, address, folder, holder
        self.init = 0  # the process that is 1 in it, as numbered outside
        self.space = ""  # its process namespace

    def enter(self, words: Sequence[str], **environment: str) -> list[str]:
        """The command line that runs `words` in it."""
        given = [f"{key}={value}" for key, value in environment.items()]
        bare = ["env", "-i", f"HOME={HOME}", "USER=root", "LANG=C.UTF-8", *given]
        into = ["nsenter", "-t", str(self.init), "-m", "-n", "-p", "-u", "-i"]
        return [*into, *bare, "bash", "-c", f". {HOME}/.bashrc; cd {HOME}; exec {shlex.join(words)}"]

    def run(self, *words: object, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command, to its end; what it prints is in .stdout, both streams together."""
        return subprocess.run(
            self.enter([str(w) for w in words], **environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=timeout,
            check=False,
        )

    def processes(self) -> list[psutil.Process]:
        """All that runs in it, but for its own first process and its sshd."""
        found = []
        for process in psutil.process_iter():
            try:
                if os.readlink(f"/proc/{process.pid}/ns/pid") != self.space or process.pid == self.init:
                    continue
                if process.name() != "sshd" and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (OSError, psutil.Error):
                continue
        return found


def why_not() -> str | None:
    """Why hosts cannot be made here; None if they can."""
    if os.geteuid() != 0:
        return "hosts are made of namespaces, which needs root"
    missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if missing:
        return f"hosts need {', '.join(missing)} (Debian: openssh-server rsync iproute2 util-linux)"
    probe = "unshare -n -p -m -u -i --fork --kill-child --mount-proc sh -c 'mount -t tmpfs tmpfs /mnt && ip link'"
    tried = subprocess.run(["sh", "-c", probe], capture_output=True, text=True, timeout=30, check=False)
    if tried.returncode:
        return f"the kernel refuses namespaces: {tried.stderr.strip()[-200:]}"
    tried = subprocess.run(
        ["unshare", "-n", "ip", "link", "add", "probe", "type", "bridge"], capture_output=True, text=True, check=False
    )
    return f"the kernel has no bridge: {tried.stderr.strip()[-200:]}" if tried.returncode else None


@contextmanager
def made(folder: Path, names: Sequence[str], exports: Sequence[str] = ()) -> Iterator[list[Host]]:
    """Hosts of these names; those whose name begins with "client" answer no ssh.

    Args:
        exports: lines for the .bashrc of each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "shared").mkdir()
    keys = folder / "keys"
    keys.mkdir(mode=0o700)
    for name in ("key", "host"):
        _must("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / name))
    mounts = Path("/proc/mounts").read_text()
    hosts: list[Host] = []
    holders: list[subprocess.Popen[bytes]] = []
    try:
        switch = subprocess.Popen([*BOUND, "unshare", "-n", "--fork", "--kill-child", "sleep", "infinity"])
        holders.append(switch)
        inside = _child(switch)
        into = ("nsenter", "-t", str(inside), "-n", "ip", "link")
        _must(*into, "add", "br0", "type", "bridge")
        _must(*into, "set", "br0", "up")
        for number, name in enumerate(names, 1):
            host = _start(folder, name, f"10.77.0.{number}", exports)
            holders.append(host._holder)
            hosts.append(host)
            _must(*into, "add", f"h{number}", "type", "veth", "peer", "name", "eth0", "netns", str(host.init))
            _must(*into, "set", f"h{number}", "master", "br0", "up")
            for words in (
                ("addr", "add", f"{host.address}/24", "dev", "eth0"),
                ("link", "set", "lo", "up"),
                ("link", "set", "eth0", "up"),
                ("route", "add", "default", "dev", "eth0"),
            ):
                _must("nsenter", "-t", str(host.init), "-n", "ip", *words)
        _until(lambda: all((h.folder / "ready").exists() for h in hosts), "hosts that are up", 30)
        yield hosts
    finally:
        _end(hosts, holders)
    spaces = {h.space for h in hosts}
    left = [p for p in psutil.pids() if _space(p) in spaces]
    assert not left, f"processes of the hosts are left: {left}"
    assert Path("/proc/mounts").read_text() == mounts, "a mount was left"


def _start(folder: Path, name: str, address: str, exports: Sequence[str]) -> Host:
    own = folder / name
    own.mkdir()
    lines = [f"export PATH={Path(sys.prefix) / 'bin'}:{PATH}", *exports]
    sshd = f"{shutil.which('sshd', path=PATH)} -f /mnt/ssh/config -E /tmp/sshd.log"
    values = {
        "folder": own, "shared": folder / "shared", "keys": folder / "keys", "name": name, "address": address,
        "prefix": sys.prefix, "service": "" if name.startswith("client") else sshd,
    }  # fmt: skip
    quoted = {key: str(value) if key == "service" else shlex.quote(str(value)) for key, value in values.items()}
    text = INIT
    for key, value in {**quoted, "exports": " ".join(shlex.quote(line) for line in lines)}.items():
        text = text.replace("{" + key + "}", value)
    (own / "init").write_text(text)
    with (own / "init.log").open("wb") as log:
        holder = subprocess.Popen(
            [*BOUND, "env", "-i", f"PATH={PATH}", "unshare", "-n", "-p", "-m", "-u", "-i", "--fork", "--kill-child",
             "--mount-proc", "--", "bash", str(own / "init")],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    host = Host(name, address, own, holder)
    host.init = _child(holder)
    host.space = _space(host.init)
    assert host.space not in ("", _space(os.getpid())), "it has no process namespace of its own"
    return host


def _end(hosts: Sequence[Host], holders: Sequence[subprocess.Popen[bytes]]) -> None:
    """Kills the first process of each host, with which all others end, then what held them."""
    own = _space(os.getpid())
    for host in hosts:
        if host.space not in ("", own) and _space(host.init) == host.space:
            os.kill(host.init, signal.SIGKILL)
    for holder in reversed(holders):
        if holder.poll() is None:
            holder.kill()  # --kill-child ends what it holds
        holder.wait(30)
    end = time.monotonic() + 30
    spaces = {h.space for h in hosts}
    while time.monotonic() < end and any(_space(p) in spaces for p in psutil.pids()):
        time.sleep(0.1)


def _child(holder: subprocess.Popen[bytes]) -> int:
    """The process that `unshare --fork` has started."""
    _until(lambda: holder.poll() is not None or psutil.Process(holder.pid).children(), "a namespace", 10)
    children = psutil.Process(holder.pid).children() if holder.poll() is None else []
    assert children, f"unshare ended with {holder.poll()}"
    own = _space(os.getpid())
    child = children[0].pid
    if "-p" in holder.args:  # type: ignore[operator]
        _until(lambda: _space(child) not in ("", own), "a process namespace", 10)
    return child


def _space(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def _must(*words: str) -> None:
    ran = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert ran.returncode == 0, f"{shlex.join(words)}: {ran.stderr}"


def _until(condition: object, what: str, timeout: float) -> None:
    end = time.monotonic() + timeout
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, f"no sign of {what} in {timeout} s"
        time.sleep(0.05)
