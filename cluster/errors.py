"""The errors that reach a person, each with its exit code.

RayliftError
├── UsageError                  2   the job file or the command line is wrong; nothing was created
│   ├── RunNotFoundError
│   └── RunExistsError
├── TrainingError               1   the user's data or code, or the training itself
│   └── UserCodeError               an exception in the user's code, with their traceback
├── InfrastructureError         3   credentials, quota, capacity, a cluster that did not come up
│   ├── StorageError                storage answered, but not as asked
│   │   ├── ObjectNotFoundError
│   │   ├── ObjectExistsError       a conditional create lost against another writer
│   │   ├── CorruptObjectError      the bytes read are not the bytes written
│   │   ├── StorageDeniedError      wrong or missing credentials
│   │   ├── BucketMissingError      there is no such bucket, or no longer
│   │   ├── StorageFullError        no space left
│   │   ├── SupersededError         a newer attempt has taken over: this one may commit nothing more
│   │   └── NewerFormatError        a newer raylift wrote it
│   ├── DeviceError                 an accelerator failed, or cannot be used; another one may do
│   ├── PreemptedError              a machine was taken away, with a notice; what was done is saved
│   ├── MaybeLaunchedError          a launch failed, and it is not known whether its job is there all the same
│   └── MissingExtraError           an optional package is not installed
└── StoppedError                4   a person or the budget ended the run
"""


class RayliftError(Exception):
    """An error whose message is all that a person needs: what happened, the value, what to type next."""

    exit_code = 1


class UsageError(RayliftError):
    """The job file or the command line is wrong; nothing was created."""

    exit_code = 2


class RunNotFoundError(UsageError):
    """No run of that name where we looked."""


class RunExistsError(UsageError):
    """Another run has this id."""


class TrainingError(RayliftError):
    """The training itself, its data or the user's code failed; a retry would fail again."""

    exit_code = 1


class UserCodeError(TrainingError):
    """The user's own code raised; the message says what and where, `traceback` shows it without our frames."""

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback


class InfrastructureError(RayliftError):
    """What the run stands on failed; a retry may help."""

    exit_code = 3


class StorageError(InfrastructureError):
    """Storage answered, but not as asked."""


class ObjectNotFoundError(StorageError):
    """There is no object at this path."""


class ObjectExistsError(StorageError):
    """A conditional create found an object that somebody else wrote."""


class CorruptObjectError(StorageError):
    """The bytes read are not the bytes that were written."""


class StorageDeniedError(StorageError):
    """The credentials are missing, wrong, or not allowed to do this."""


class BucketMissingError(StorageError):
    """There is no such bucket, or somebody has deleted it."""


class StorageFullError(StorageError):
    """No space is left where the bytes should go."""


class SupersededError(StorageError):
    """A newer attempt has been claimed: this one may commit nothing more."""


class NewerFormatError(StorageError):
    """A newer raylift wrote this: it may mean what this one does not know."""


class DeviceError(InfrastructureError):
    """An accelerator failed, or cannot be used; another one may do."""


class PreemptedError(InfrastructureError):
    """A machine is taken away; what was done is saved, and goes on elsewhere or later."""


class MaybeLaunchedError(InfrastructureError):
    """A launch failed, and nobody could be asked whether its job is there all the same; so its run is kept."""


class MissingExtraError(InfrastructureError):
    """A command needs a package that an extra of raylift brings."""


class StoppedError(RayliftError):
    """A person or the budget ended the run."""

    exit_code = 4


def is_outage(error: StorageError) -> bool:
    """Whether storage may take it later: it does not answer, where others refuse for good."""
    answers = (CorruptObjectError, NewerFormatError, ObjectExistsError, ObjectNotFoundError)
    refuses = (BucketMissingError, StorageDeniedError, StorageFullError, SupersededError)
    return not isinstance(error, (*answers, *refuses))
