"""One pass over one tree: walks both sides, feeds the copier, and says at the end whether the copy is clean.

Touches files only through its parts. Keeps their order: copies are durable before they are published, deletions come
after everything else and after another proof of both sides, times of directories last of all; and `clean` is only said
of a pass in which nothing was torn, missed, put off or refused.
"""

from __future__ import annotations

import os

from nfs_provisioner.errors import RefusedForSafety, RetryLater
from nfs_provisioner.export import filesystem as fs
from nfs_provisioner.replication import tree
from nfs_provisioner.replication.batch import Batch
from nfs_provisioner.replication.course import Course
from nfs_provisioner.replication.ending import Ending
from nfs_provisioner.replication.job import Job
from nfs_provisioner.replication.tally import Counts, Result
from nfs_provisioner.replication.walk import Walk

__all__ = ["Counts", "Job", "Result", "run_pass"]


def run_pass(job: Job) -> Result:
    """Make the target equal to the source, once.

    Raises RetryLater, RefusedForSafety or LostLeadership when the pass had to end; what was published until then stays,
    and nothing is half published.
    """
    job.guard()
    job.prove()
    began = job.clock() if job.clock is not None else tree.moment()
    if job.dry_run:
        return _run(Course(job, began, -1))
    synced = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=job.target)
    try:
        _same_filesystem(job)
        return _run(Course(job, began, synced))
    finally:
        os.close(synced)


def _same_filesystem(job: Job) -> None:
    device = os.fstat(job.target).st_dev
    for name, fd in (("staging", job.staging), ("trash", job.trash)):
        if fd is not None and os.fstat(fd).st_dev != device:
            raise RefusedForSafety(
                f"the {name} directory is on another file system than the target, so nothing can be renamed between "
                f"them (EXDEV): put it on the target's"
            )


def _run(course: Course) -> Result:
    """All of it, in the order that docs/replication.md gives."""
    job, batch = course.job, Batch(course)
    walk = Walk(course, batch)
    ending = Ending(course, batch)
    try:
        with course.workers:
            if not job.dry_run and fs.is_local(job.source):
                course.sync(job.source, "source")  # so that a later store through mmap moves the mtime
            walk.run()
            ending.link()
            ending.remove(walk)
            if not job.dry_run:
                ending.finish()
    finally:
        walk.close()
        course.copier.close()
    if course.full:
        copied = course.tally.copied_files
        raise RetryLater(
            f"the target is full: {copied} files were copied, the rest waits for room", reason="TargetFull"
        )
    if job.only is not None and course.links.incomplete():
        course.tally.doubts = True  # names of a set lie in directories that were not asked for
    return course.tally.result(
        course.began, course.counts(), walk.directories, walk.usage, measured=not walk.overlooked
    )
