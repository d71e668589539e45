"""What a run's folder says of its jobs.

`ACTION.started` holds the job's fingerprint from its start. `ACTION.done` holds it from its good end, and below it the SHA-256 of each file
that the ablation reads from a test; one without them is taken as it is.
"""

import hashlib
from pathlib import Path

from deocc import runs
from deocc.apps.ablation.jobs import Job
from deocc.evaluation.scores import SCORES

_READ = (runs.RESULTS, SCORES)


def is_done(job: Job) -> bool:
    """Whether the job, with all that it depends on as it is now, has ended well and its files are as it left them."""
    return _lines(job, "done")[:1] == [job.fingerprint] and not altered_files(job)


def altered_files(job: Job) -> list[str]:
    """Of a test that ended well, the files that are gone or were changed since; of any other job nothing."""
    fingerprint, *recorded = _lines(job, "done") or [""]
    if job.action != "test" or fingerprint != job.fingerprint:
        return []
    digests = {runs.RESULTS: None, **dict(line.split(" ", 1)[::-1] for line in recorded)}
    return [name for name, digest in digests.items() if not _is_as_left(job.folder / name, digest)]


def is_begun(job: Job) -> bool:
    """Whether the job was started as it is now."""
    return _lines(job, "started") == [job.fingerprint]


def mark_started(job: Job) -> None:
    """Write down that the job starts."""
    _mark(job, "done").unlink(missing_ok=True)
    _mark(job, "started").write_text(job.fingerprint)


def mark_done(job: Job) -> None:
    """Write down that the job ended well."""
    files = [job.folder / name for name in _READ if job.action == "test"]
    lines = [f"{_digest(file)} {file.name}" for file in files if file.is_file()]
    _mark(job, "done").write_text("\n".join([job.fingerprint, *lines]))


def _is_as_left(file: Path, digest: str | None) -> bool:
    return file.is_file() and digest in (None, _digest(file))


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _lines(job: Job, state: str) -> list[str]:
    file = _mark(job, state)
    return file.read_text().splitlines() if file.is_file() else []


def _mark(job: Job, state: str) -> Path:
    return job.folder / f"{job.action}.{state}"
