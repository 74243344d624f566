#!/usr/bin/env python3
"""Submit a job to a Ray cluster, follow its log, and end as it ends.

    python cluster/submit.py [--address URL] [--token-file FILE] [--resubmit N] -- python jobs/run.py RECIPE --run URI

The exit code is the job's. 75 says that the same command, started again, continues; with --resubmit such a job, and one
that was killed, is submitted again. Ctrl-C leaves the job running and says how to follow or stop it. A lost connection
is made anew, for as long as --deadline-s says. Needs ray[default] alone, and nothing of finepseudo.

    0 done   1 failed   2 wrong options   75 continues when started again   others: the job's
    130 Ctrl-C, the job runs on   143 stopped by `ray job stop`   69 the cluster does not answer, or refuses the token
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

AGAIN, KILLED, UNAVAILABLE, INTERRUPTED, STOPPED = 75, 137, 69, 130, 143
ANSWER_S = 30.0  # longest wait for one answer of the cluster
QUIET_S = 60.0  # without a line of the log until it is asked for anew: the connection may have died unnoticed
PAUSE_S = 5.0  # before the cluster is asked again, and before a job is submitted again

T = TypeVar("T")


class LostError(Exception):
    """The cluster refuses, or did not answer for the whole deadline."""


def main(argv: list[str]) -> int:
    """Parse, submit, follow; submit again where that is the remedy."""
    options = parse(argv)
    authenticate(options.token_file)
    jobs, name = Jobs(options.address, options.deadline_s), options.follow
    try:
        for left in range(options.resubmit, -1, -1):
            if not options.follow:
                name = f"finepseudo-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
                jobs.submit(name, shlex.join(options.command), options.working_dir)
                say(f"submitted {name}; Ctrl-C leaves it running")
            code, again, why = jobs.follow(name)
            if not (again and left):
                say(f"{name} {why}")
                return code
            say(f"{name} {why}; it is submitted again in {PAUSE_S:g} s, up to {left} more times")
            time.sleep(PAUSE_S)
    except KeyboardInterrupt:
        say(f"{name} is left running; {advice(options.address, name)}" if jobs.reached else "nothing was submitted")
        return INTERRUPTED
    except LostError as error:
        say(f"{error}; {advice(options.address, name)}" if jobs.reached else str(error))
        return UNAVAILABLE
    raise AssertionError("the last attempt returns")


def parse(argv: list[str]) -> argparse.Namespace:
    """Options, and the command behind `--`."""
    end = argv.index("--") if "--" in argv else len(argv)
    api = os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--address", default=api, metavar="URL", help="where the cluster takes jobs (%(default)s)")
    add("--token-file", metavar="FILE", help="the cluster's token; without it RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH")
    add("--resubmit", type=int, default=0, metavar="N", help="times that a job is submitted again (%(default)s)")
    add("--working-dir", default=".", metavar="DIR", help="folder that is uploaded, and that the job runs in (.)")
    add("--follow", default="", metavar="ID", help="submit nothing; follow this job, and end as it ends")
    add("--deadline-s", type=float, default=300.0, metavar="S", help="longest time without an answer (%(default)s)")
    options = parser.parse_args(argv[:end])
    options.command = argv[end + 1 :]
    if bool(options.command) == bool(options.follow):
        parser.error("expected either a command behind `--`, or --follow ID")
    if not options.address.startswith(("http://", "https://")):
        parser.error(f"--address {options.address}: expected http://HOST:PORT, by default port 8265 of the head")
    if options.token_file and not Path(options.token_file).is_file():
        parser.error(f"--token-file {options.token_file}: no such file")
    if not Path(options.working_dir).is_dir():
        parser.error(f"--working-dir {options.working_dir}: no such folder")
    return options


def authenticate(token_file: str | None) -> None:
    """Ray reads these when it is imported. The token itself is never an argument, and never said."""
    if token_file:
        os.environ.pop("RAY_AUTH_TOKEN", None)
        os.environ["RAY_AUTH_TOKEN_PATH"] = token_file
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # they would win over --address
        os.environ.pop(name, None)


class Jobs:
    """The job server of a cluster. Where it does not answer it is asked again, until the deadline."""

    def __init__(self, address: str, deadline_s: float) -> None:
        self.address, self.deadline_s = address, deadline_s
        self.reached, self.answered = False, time.monotonic()
        self.shown = 0  # characters of the log
        self._client: Any = None

    def submit(self, name: str, entrypoint: str, working_dir: str) -> None:
        """Once, also where an answer gets lost: the name is chosen here."""

        def attempt(client: Any) -> None:
            if known(client, name) is None:
                client.submit_job(entrypoint=entrypoint, submission_id=name, runtime_env={"working_dir": working_dir})

        self.shown = 0
        self._patiently(lambda client: within(self.deadline_s, lambda: attempt(client)))

    def follow(self, name: str) -> tuple[int, bool, str]:
        """Print the log until the job has ended. Its exit code, whether to submit it again, and what to say."""
        seen = False
        while True:
            info = self._patiently(lambda client: within(ANSWER_S, lambda: known(client, name)))
            if info is None:
                return (
                    (KILLED, True, "is gone: the cluster was restarted") if seen else (1, False, "is not known there")
                )
            seen = True
            self._patiently(lambda client: asyncio.run(self._tail(client, name)))
            if info.status.is_terminal():
                return ended(info)

    async def _tail(self, client: Any, name: str) -> None:
        """Print what is new of the log; returns when it ends, or nothing has come for a while."""
        at, chunks = 0, client.tail_job_logs(name)
        while True:
            try:
                chunk = await asyncio.wait_for(anext(chunks), QUIET_S)
            except (StopAsyncIteration, TimeoutError):
                await chunks.aclose()
                return
            self.answered = time.monotonic()
            new = chunk[max(0, self.shown - at) :]  # the log comes from its beginning again
            at += len(chunk)
            self.shown = max(self.shown, at)
            print(new, end="", flush=True)

    def _patiently(self, ask: Callable[[Any], T]) -> T:
        import aiohttp
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        told = False
        while True:
            try:
                if self._client is None:
                    self._client = within(ANSWER_S, lambda: JobSubmissionClient(self.address))
                result = ask(self._client)
                self.reached, self.answered = True, time.monotonic()
                return result
            except AuthenticationError as error:
                raise LostError(f"{self.address} refuses the token: {str(error).splitlines()[0]}") from error
            except (OSError, TimeoutError, aiohttp.ClientError, RuntimeError) as error:
                why = " ".join(str(error).split())[:200] or type(error).__name__
                if isinstance(error, RuntimeError) and "status code 4" in why:
                    raise LostError(f"{self.address} refuses: {why}") from error
            if time.monotonic() - self.answered > self.deadline_s:
                raise LostError(f"{self.address} has not answered for {self.deadline_s:g} s: {why}")
            if not told:
                say(f"{self.address} does not answer ({why}); it is asked again for {self.deadline_s:g} s")
                told = True
            time.sleep(PAUSE_S)


def known(client: Any, name: str) -> Any:
    """What the cluster says of a job; None if it has none of that name."""
    try:
        return client.get_job_info(name)
    except RuntimeError as error:
        if "status code 404" in str(error):
            return None
        raise


def ended(info: Any) -> tuple[int, bool, str]:
    """Exit code of a job that has ended, whether to submit it again, and what to say."""
    code = info.driver_exit_code
    if info.status == "SUCCEEDED":
        return 0, False, "is done"
    if info.status == "STOPPED":
        return STOPPED, False, "was stopped"
    if code is None:  # its driver did not end by itself, or never began
        died = info.error_type == "JOB_SUPERVISOR_ACTOR_DIED"
        return KILLED if died else 1, died, f"failed: {' '.join((info.message or '').split())[:300]}"
    code = 128 - code if code < 0 else code
    why = {AGAIN: ": the same command continues", KILLED: ": killed, for want of memory perhaps"}.get(code, "")
    return code, code in (AGAIN, KILLED), f"failed with exit code {code}{why}"


def within(deadline_s: float, do: Callable[[], T]) -> T:
    """What Ray's client waits for without a deadline. Raises TimeoutError, and leaves it to itself."""
    results, errors = list[T](), list[BaseException]()

    def work() -> None:
        try:
            results.append(do())
        except BaseException as error:  # noqa: BLE001  raised below
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(deadline_s)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {deadline_s:g} s")
    return results[0]


def advice(address: str, name: str) -> str:
    """How to come back to a job."""
    return (
        f"follow it: python cluster/submit.py --address {address} --follow {name}   "
        f"stop it: ray job stop --address {address} {name}"
    )


def say(text: str) -> None:
    """For people, beside the log of the job."""
    print(f"submit: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
