"""Scripts in processes of their own, to be stopped or killed, that need not import torch again.

A server that has imported it forks them; what they print goes into files.
"""

import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from conftest import run_here

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["sparsereg.training.module", "sparsereg.training.results", "conftest"]
)


class Forked:
    """A script that has been started; `folder` is empty, and takes its output."""

    def __init__(self, folder: Path, script: str, *arguments: str, largest_file: int = -1):
        folder.mkdir()
        self.out, self.err = folder / "out", folder / "err"
        arguments = (script, *arguments)
        files = (str(self.out), str(self.err))
        self.process = FORKS.Process(target=run, args=(arguments, files, os.getcwd(), largest_file))
        self.process.start()
        self.signal = lambda signum: os.kill(self.process.pid, signum)

    def running(self) -> bool:
        return self.process.exitcode is None

    def lines(self) -> Iterator[str]:
        """What it prints, line by line, until it ends."""
        read = 0
        while True:
            running = self.running()
            text = self.out.read_text() if self.out.exists() else ""
            complete = text.rfind("\n") + 1
            yield from text[read:complete].splitlines()
            read = complete
            if not running:
                return
            time.sleep(0.01)

    def end(self) -> int:
        """Its exit code; minus the signal that has killed it."""
        self.process.join(120)
        assert not self.running(), "it had not ended after 120 s"
        return self.process.exitcode


def run(arguments: tuple[str, ...], files: tuple[str, str], cwd: str, largest_file: int) -> None:
    for stream, path in zip((sys.stdout, sys.stderr), files, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream.fileno())
    os.chdir(cwd)
    if largest_file >= 0:  # as on a disk that is full then
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    sys.exit(run_here(*arguments))
