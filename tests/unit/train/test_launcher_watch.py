"""A worker ends with the process that started it, as if it had been asked to."""

import subprocess
import sys
import textwrap

WORKER = """
import signal, sys, time
from mora.train import launcher_watch
launcher_watch.EVERY_S = 0.1
signal.signal(signal.SIGTERM, lambda *_: (open(sys.argv[1], "w").write("stopped"), sys.exit(0)))
launcher_watch.watch()
print("watching", flush=True)
time.sleep(60)
"""
LAUNCHER = """
import os, subprocess, sys
worker = subprocess.Popen([sys.executable, "-c", {worker!r}, sys.argv[1]], stdout=subprocess.PIPE, start_new_session=True,
                          env=os.environ | {{"MORA_LAUNCHER": str(os.getpid())}})
worker.stdout.readline()
print(worker.pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_worker_whose_launcher_is_killed_is_stopped(tmp_path):
    mark = tmp_path / "mark"
    launcher = textwrap.dedent(LAUNCHER).format(worker=WORKER)
    ended = subprocess.run([sys.executable, "-c", launcher, str(mark)], capture_output=True, text=True, timeout=60)
    assert ended.returncode == -9
    gone = subprocess.run(["timeout", "20", "tail", f"--pid={int(ended.stdout)}", "-f", "/dev/null"])
    assert gone.returncode == 0, "it lives on"
    assert mark.read_text() == "stopped"
