"""Jobs of a sweep that fail, while the others go on, or that must be stopped with it."""

import shutil
import sys
import uuid
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from sparsereg.errors import printable


class FailedJobs(Callback):
    """Lets a sweep with a failed job run to its end, and then exit with code 1.

    Hydra alone raises the first failure and forgets the others; Optuna's sweeper counts failures
    and ends with 0. Jobs may run in other processes or on other machines, so a failed one leaves
    a note in the sweep's folder, which all of them see.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs) -> None:
        self.notes = Path(config.hydra.sweep.dir) / f"failed_{uuid.uuid4().hex}"

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs) -> None:
        if config.hydra.mode != RunMode.MULTIRUN or job_return.status != JobStatus.FAILED:
            return
        self.notes.mkdir(parents=True, exist_ok=True)
        note = self.notes / str(config.hydra.job.num)
        note.write_text(" ".join(job_return.overrides))
        job_return.status, job_return.return_value = JobStatus.COMPLETED, None

    def on_multirun_end(self, config: DictConfig, **kwargs) -> None:
        failed = sorted(self.notes.glob("*"), key=lambda note: int(note.name))
        if not failed:
            return
        for note in failed:
            print(printable(f"job {note.name} failed: {note.read_text()}"), file=sys.stderr)
        shutil.rmtree(self.notes)
        sys.exit(1)


def stop_jobs() -> None:
    """Stop submitit's local jobs, which would outlive this process; joblib's have ended already."""
    if "submitit" not in sys.modules:
        return
    import psutil  # from the same requirements-sweeps.txt

    for child in psutil.Process().children():
        child.terminate()
