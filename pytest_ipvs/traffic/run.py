"""One client on one machine, started, followed and removed through testinfra.

Only ``host.run`` is used, so every testinfra backend will do (local, ssh, docker, kubectl).
On that machine live one process and one folder, ``/tmp/pytest-ipvs-XXXXXX``; both go at the end.
If we die, the client misses its heartbeat and removes itself.
"""

from __future__ import annotations

import base64
import json
import secrets
import shlex
import threading
import time
import zlib
from collections.abc import Callable
from importlib import resources
from types import TracebackType
from typing import Any, Protocol

from pytest_ipvs.traffic.collect import Collector
from pytest_ipvs.traffic.plan import Plan
from pytest_ipvs.traffic.results import Results

POLL_SECONDS = 2.0
RUN_SECONDS = 30.0
HEARTBEAT_SECONDS = 45.0
# Seconds before a command whose connection ended without a word is run again, one by one.
SILENT_PAUSES = (0.0, 0.5, 1.0)
PYTHONS = "python3 python /usr/bin/python3 /usr/local/bin/python3 /usr/libexec/platform-python"

# Understood by Python 2 as well, to say which Python is missing rather than "syntax error".
BOOT = """
import base64, sys, zlib
if sys.version_info < (3, 8):
    sys.exit("needs Python 3.8 or newer, this is " + sys.version.split()[0])
path = sys.argv[1]
code = zlib.decompress(base64.b64decode(open(path).read()))
sys.argv = sys.argv[1:]
exec(compile(code, path, "exec"))
"""

# Some shells greet, also those that are to run one command only. What we read begins here.
MARK = "pytest-ipvs-says:"

PREPARE = """
for python in {pythons} ""; do command -v "$python" >/dev/null 2>&1 && break; done
[ -n "$python" ] || {{ echo "{mark} NO-PYTHON"; exit 0; }}
umask 077
mkdir {folder} 2>/dev/null || [ -d {folder} ] || exit 4
: > {folder}/heartbeat || exit 4
echo "{mark} PYTHON $python"
"""

# May be run twice: what it says is lost where a connection ends at that moment.
START = """
umask 077
if [ ! -e {folder}/pid ]; then
  detach=$(command -v setsid || command -v nohup)
  $detach {python} -E -S -c {boot} {folder}/client.py {plan} \\
    > {folder}/out 2> {folder}/err < /dev/null &
  echo "$!" > {folder}/pid
fi
read -r pid < {folder}/pid
echo "{mark} PID $pid"
"""

# dropbear ends a session whose command is longer than 9000 bytes.
SHIPPED_AT_ONCE = 6000

# One program only, the rest is the shell's own: this runs every two seconds, also on slow nodes.
# A dead process without a parent that collects it (a container's PID 1) stays as a zombie.
POLL = """
cd {folder} || exit 5
echo >> heartbeat
read -r up rest < /proc/uptime
alive=0
if [ -e /proc/{pid}/stat ]; then
  read -r state < /proc/{pid}/stat
  case "$state" in *") Z "*) ;; *) alive=1 ;; esac
fi
echo "{mark} $up $alive"
tail -c +{position} out
"""

# The number may belong to another process by now, so it must still carry our folder's name.
REMOVE = """
grep -qs {folder} /proc/{pid}/cmdline && kill -9 {pid}
rm -rf -- {folder}
"""


class Host(Protocol):
    """The part of a testinfra host that is used here."""

    def run(self, command: str, *args: str) -> Any:
        """Runs a shell command whose %s are replaced by quoted arguments."""


class TrafficError(Exception):
    """A client could not be started; one sentence says where and why."""


class SilentEndError(TrafficError):
    """A connection to the client's machine ended without a word."""


class TrafficRun:
    """A client at work. ``with TrafficRun(host, plan, where="node-1") as run: ...``

    Inside the block the client runs and is polled by a thread of ours; leaving the block stops
    it, reads its last lines and removes its folder. ``results()`` may be called at any time.
    """

    def __new__(cls, host: Any, *_: Any, **__: Any) -> TrafficRun:
        """A place that is no shell brings its own kind of run, with the same methods."""
        kind: type[TrafficRun] = getattr(host, "client_class", cls)
        return super().__new__(kind)

    def __init__(self, host: Any, plan: Plan, *, where: str = "the client's machine") -> None:
        self.host: Host = host
        self.plan = plan
        self.where = where
        self._collector = Collector(plan.target)
        self._lock = threading.Lock()
        self._polling = threading.Lock()
        self._stopping = threading.Event()
        self._given_up = threading.Event()
        self._thread: threading.Thread | None = None
        self._folder = ""
        self._pid = 0
        self._position = 0
        self._died = ""
        self._poll_error = ""
        self._alive = True

    def start(self, timeout: float = 60.0) -> TrafficRun:
        """Ship and start the client; returns once it says that it runs."""
        self._folder = folder = f"/tmp/pytest-ipvs-{secrets.token_hex(6)}"
        files = [f"{folder}/{name}" for name in ("client.py", "heartbeat", "out", "err", "pid")]
        plan = self.plan.to_dict() | {
            "heartbeat_file": f"{folder}/heartbeat",
            "heartbeat_age": HEARTBEAT_SECONDS,
            "stop_file": f"{folder}/stop",
            "cleanup": [*files, folder],
        }
        answer = self._ask(PREPARE.format(pythons=PYTHONS, folder=folder, mark=MARK)).split()
        if answer[:1] != ["PYTHON"]:
            self._folder = ""
            raise TrafficError(
                f"the client cannot run on {self.where}: there is no python3 or python on the PATH"
            )
        try:
            self._ship(folder)
            self._go_on()
            script = START.format(
                python=shlex.quote(answer[1]),
                folder=folder,
                mark=MARK,
                plan=shlex.quote(json.dumps(plan)),
                boot=shlex.quote(BOOT),
            )
            self._started(self._ask(script).split(), timeout)
        except BaseException:
            self.abort()
            raise
        self._thread = threading.Thread(target=self._follow, name="ipvs-traffic", daemon=True)
        self._thread.start()
        return self

    def _ship(self, folder: str) -> None:
        source = (resources.files("pytest_ipvs.traffic") / "client.py").read_bytes()
        code = base64.b64encode(zlib.compress(source, 9)).decode()
        parts: list[str] = []
        for at in range(0, len(code), SHIPPED_AT_ONCE):
            self._go_on()
            parts.append(f"{folder}/part-{len(parts)}")
            self._run(f"printf %s {code[at : at + SHIPPED_AT_ONCE]} > {parts[-1]}")
        whole = " ".join(parts)
        # A command whose connection ended is sent again, while the first one may still be at work.
        self._run(
            f"t={folder}/part.$$; "
            f"cat {whole} > $t && mv $t {folder}/client.py && rm -f {whole} || "
            f"{{ rm -f $t; [ -e {folder}/client.py ]; }}"
        )

    def _started(self, answer: list[str], timeout: float) -> None:
        """Until the client says that it runs."""
        if len(answer) < 2 or not answer[1].isdigit():
            raise TrafficError(
                f"the client cannot run on {self.where}: starting it answered {answer!r}, "
                "expected its process number"
            )
        self._pid = int(answer[1])
        deadline = time.monotonic() + timeout
        while self._collector.started is None:
            self._poll()
            if self._collector.started is None:
                if not self._alive or time.monotonic() > deadline:
                    raise TrafficError(self._how_it_died("did not start"))
                self._given_up.wait(0.2)
                self._go_on()

    def give_up(self) -> None:
        """Let a start in another thread end at its next step, with a `TrafficError`."""
        self._given_up.set()

    def _go_on(self) -> None:
        if self._given_up.is_set():
            raise TrafficError(f"the start of the client on {self.where} was given up")

    def wait(self, timeout: float | None = None) -> bool:
        """Until the client has come to its end by itself; false if ``timeout`` came first."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.running:
            if deadline is not None and time.monotonic() > deadline:
                return False
            threading.Event().wait(0.1)
        return True

    @property
    def running(self) -> bool:
        """Whether the client was alive and at work when last seen."""
        return self._alive and self._collector.end_reason is None

    def results(self) -> Results:
        """What is known so far; after the block all there is."""
        with self._lock:
            problems = [text for text in (self._died, self._poll_error) if text]
            return self._collector.results(tuple(problems))

    def refresh(self) -> Results:
        """Read what is there now; what could not be read is told in ``problems``."""
        try:
            self._poll()
            self._poll_error = ""
        except TrafficError as error:
            self._poll_error = str(error)
        return self.results()

    def stop(self) -> Results:
        """End the client in good order, read what is left, remove its folder."""
        self._stop_following()
        if not self._folder:
            return self.results()
        try:
            self._run(f": > {self._folder}/stop")
            patience = self.plan.connect_timeout + self.plan.read_timeout + self.plan.close_wait
            deadline = time.monotonic() + patience + 15.0
            self._poll()
            while self.running and time.monotonic() < deadline:
                threading.Event().wait(0.3)
                self._poll()
            if self._collector.end_reason is None:
                self._died = self._how_it_died("died before its end")
        except TrafficError as error:
            self._poll_error = str(error)
        finally:
            self.abort()
        return self.results()

    def abort(self) -> None:
        """Kill the client and remove its folder, whatever state they are in."""
        self._stop_following()
        folder, self._folder = self._folder, ""
        if folder:
            try:
                self._run(REMOVE.format(folder=folder, pid=self._pid))
            except TrafficError:
                # It is out of reach; there it ends itself when its heartbeat stays away.
                pass

    def __enter__(self) -> TrafficRun:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None or issubclass(kind, Exception):
            self.stop()
        else:
            self.abort()

    def _stop_following(self) -> None:
        self._stopping.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _follow(self) -> None:
        while not self._stopping.wait(POLL_SECONDS):
            try:
                self._poll()
            except TrafficError as error:
                self._poll_error = str(error)
            else:
                # The output waits in a file: a poll that succeeds later has lost nothing.
                self._poll_error = ""
            if not self.running:
                return

    def _poll(self) -> None:
        # The position of the next piece is known only when this one has been taken.
        with self._polling:
            self._poll_alone()

    def _poll_alone(self) -> None:
        if not self._folder:
            return
        position = self._position + 1
        script = POLL.format(folder=self._folder, pid=self._pid, position=position, mark=MARK)
        before = time.time()
        head, _, text = self._ask(script).partition("\n")
        after = time.time()
        up, _, alive = head.partition(" ")
        try:
            uptime = float(up)
        except ValueError:
            raise TrafficError(
                f"{self.where} told the client's state as {head[:100]!r}, "
                "expected its uptime and 0 or 1"
            ) from None
        with self._lock:
            self._collector.feed(text)
            self._collector.measure_clock(uptime, before, after)
            self._position += len(text.encode())
            self._pid = self._collector.pid or self._pid
            self._alive = alive == "1"

    def _how_it_died(self, what: str) -> str:
        try:
            words = self._run(f"tail -n 3 {self._folder}/err").strip()
        except TrafficError as error:
            words = str(error)
        last = words.splitlines()[-1] if words else "it left no message"
        return f"the client on {self.where} {what}: {last[:300]}"

    def _ask(self, script: str) -> str:
        """What a script says after our mark."""
        text = self._run(script)
        _, mark, answer = text.partition(f"{MARK} ")
        if not mark:
            raise TrafficError(
                f"the shell on {self.where} answered {text[:100]!r}, "
                f"expected a line with {MARK!r}: it does not run our commands as they are"
            )
        return answer

    def _run(self, script: str) -> str:
        """Run a script that may be run twice.

        A shared connection that is used at the moment in which it ends says nothing at all. Nor
        does a session that an ssh server without processor time loses beside another one.
        """
        for pause in (*SILENT_PAUSES, None):
            try:
                answer = within(RUN_SECONDS, lambda: self.host.run("sh -c %s", script), self.where)
                break
            except SilentEndError:
                if pause is None:
                    raise
                time.sleep(pause)
        # Not .stdout: for text that is not ASCII testinfra asks the machine for its locale.
        text: str = answer.stdout_bytes.decode(errors="replace")
        if answer.rc == 0:
            return text
        words = (answer.stderr_bytes.decode(errors="replace") or text).strip().splitlines()
        raise TrafficError(
            f"a command of the client on {self.where} ended with {answer.rc}: "
            f"{words[-1][:300] if words else 'no message'}"
        )


def within(seconds: float, work: Callable[[], Any], where: str) -> Any:
    """What ``work`` returns; testinfra has no time limit of its own, so this is one."""
    done: list[Any] = []
    errors: list[Exception] = []

    def body() -> None:
        try:
            done.append(work())
        except Exception as error:  # every backend raises its own
            errors.append(error)

    thread = threading.Thread(target=body, name="ipvs-traffic-command", daemon=True)
    thread.start()
    thread.join(seconds)
    if done:
        return done[0]
    if not errors:
        raise TrafficError(f"{where} did not answer within {seconds:.0f} s")
    # testinfra's way to say "ssh ended with 255" is a RuntimeError with the result as its text.
    result = errors[0].args[0] if errors[0].args else None
    if isinstance(code := getattr(result, "rc", None), int):
        told = getattr(result, "stderr_bytes", b"").decode(errors="replace")
        if not told.strip():
            told = f"{where} cannot be reached: the connection ended with {code} and no message"
            raise SilentEndError(told) from None
    else:
        told = str(errors[0])
    lines = told.strip().splitlines() or [type(errors[0]).__name__]
    raise TrafficError(f"{where} cannot be reached: {lines[-1][:300]}") from None
