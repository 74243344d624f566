"""How a job ends: an exit code that says what to do, and no more than a line."""

import re
import signal
import subprocess
import sys
import time

import pytest

WAITING = """
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from finepseudo.cli import log, main, working_in
from finepseudo.storage.store import Store

def job(argv):
    with working_in(Store(argv[0])), ThreadPoolExecutor(1) as threads:  # as a driver waits for its trainings
        future = threads.submit(time.sleep, 600)
        log.info("first")
        log.info("last")
        print("waiting", flush=True)
        future.result()

main(job)
"""
FAILING = """
from finepseudo.cli import main
from finepseudo.errors import {0}

def job(argv):
    raise {0}("what is wrong")

main(job)
"""


def test_sigterm_ends_a_job_at_once_with_its_log_and_code_75(tmp_path):
    command = [sys.executable, "-c", WAITING, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        _, err = process.communicate(timeout=120)
    assert process.returncode == 75
    assert time.monotonic() - began < 60, "it waited for the thread"
    assert err.splitlines()[-1] == "stopped by SIGTERM; the same command continues from the last commit"
    (log,) = (tmp_path / "logs").iterdir()
    assert [line.split()[-1] for line in log.read_text().splitlines()] == ["first", "last"]


@pytest.mark.parametrize(("error", "code"), [("ClusterError", 75), ("TrainingError", 1), ("NotReadyError", 1)])
def test_the_code_tells_what_to_try_again_from_what_to_mend(error, code):
    done = subprocess.run([sys.executable, "-c", FAILING.format(error)], capture_output=True, text=True, timeout=120)
    assert done.returncode == code
    assert done.stderr == f"{error}: what is wrong\n"


def test_a_run_directory_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-c", WAITING, str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.match(
        f"StorageError: {tmp_path}/file/probe-[0-9a-f]+/probe: cannot be written: Not a directory; check", line
    )


LOGGING = """
import sys
from finepseudo.cli import log, main, working_in
from finepseudo.storage.store import Store

def job(argv):
    with working_in(Store(argv[0])):
        log.info("first")
        {0}

main(job)
"""


@pytest.mark.parametrize(("work", "code", "last"), [("log.info('last')", 0, ""), ("1 / 0", 1, "ZeroDivisionError: ")])
def test_a_log_that_cannot_be_kept_ends_no_job_and_hides_no_error(work, code, last, tmp_path):
    (tmp_path / "logs").write_text("in the way")
    command = [sys.executable, "-c", LOGGING.format(work), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == code
    (warning,) = (line for line in done.stderr.splitlines() if "cannot be kept" in line)
    assert warning.endswith("Not a directory; check the path and its rights")
    assert "cannot schedule new futures" not in done.stderr
    if last:
        assert done.stderr.splitlines()[-1].startswith(last)
