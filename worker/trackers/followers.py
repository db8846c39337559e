"""Which jobs of a worker are followed to which trackers."""

from collections.abc import Collection

from app.core.jobs.queue import JobLease
from app.core.settings import Settings
from app.core.specs.tracking import Tracker
from app.core.storage.database import Database
from worker.trackers.follower import Follower
from worker.trackers.process import TRACKING_MODULE
from worker.trackers.runs import find_installed

_SHUTDOWN_SECONDS = 15.0


class Followers:
    """The runs of a worker's jobs in trackers: a thread and a process for each."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        *,
        installed: Collection[Tracker] | None = None,
        module: str = TRACKING_MODULE,
    ) -> None:
        self._settings = settings
        self._database = database
        self._installed = find_installed() if installed is None else installed
        self._module = module
        self._followers: list[Follower] = []

    def follow(self, lease: JobLease) -> None:
        """Bring what this attempt at a job records to the trackers that the job names. Returns at once."""
        self._followers = [one for one in self._followers if one.is_alive()]
        followed = {(one.lease.token, one.tracker) for one in self._followers}
        for tracker in lease.spec.report_to:
            if tracker is Tracker.TENSORBOARD or (lease.token, tracker) in followed:
                continue
            is_installed = tracker in self._installed
            follower = Follower(
                self._settings,
                self._database,
                lease,
                tracker,
                module=self._module if is_installed else None,
            )
            self._followers.append(follower)
            follower.start()

    def close(self) -> None:
        """End all runs, as those of jobs that go on later, within some seconds."""
        for follower in self._followers:
            follower.hurry(min(_SHUTDOWN_SECONDS, self._settings.tracker_end_seconds))
        for follower in self._followers:
            follower.join()
