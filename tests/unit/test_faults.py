"""What of Ray's errors is a loss, after which the same again may help, and what is code that raised."""

import errno

import pytest

from finepseudo.errors import ClusterError, TrainingError
from finepseudo.runtime import faults, trainer


def failed(**ranks):
    from ray.train import WorkerGroupError

    return WorkerGroupError("the workers failed", dict(enumerate(ranks.values())))


def died():
    from ray.exceptions import ActorDiedError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    return WorkerHealthCheckFailedError("the worker does not answer", ActorDiedError())


def of_task(error):
    from ray.exceptions import RayTaskError

    return RayTaskError("task", "Traceback", error)


def test_a_worker_that_died_is_a_loss_whatever_its_peers_raise():
    error = failed(one=RuntimeError("Connection reset by peer"), two=died())
    assert faults.lost(error)
    assert type(trainer._own_error(error, "align/frame")) is ClusterError


@pytest.mark.parametrize("error", [ValueError("a mistake"), RuntimeError("out of range")])
def test_what_a_worker_raised_is_none(error):
    wrapped = failed(one=error)
    assert not faults.lost(wrapped)
    assert type(trainer._own_error(wrapped, "align/frame")) is TrainingError


def test_what_a_task_raised_is_none_though_ray_wraps_it():
    assert not faults.lost(of_task(ValueError("a mistake")))


@pytest.mark.parametrize(
    "wrapped",
    [lambda error: error, of_task, lambda error: of_task(error).as_instanceof_cause(), lambda error: failed(one=error)],
)
def test_a_full_disk_of_a_node_is_said_in_one_line(wrapped):
    error = wrapped(OSError(errno.ENOSPC, "No space left on device"))
    message = r"^no room is left on a disk of a node \(No space left on device\): .* same command continues$"
    with pytest.raises(ClusterError, match=message):
        raise trainer._own_error(error, "align/frame")
    assert faults.own(wrapped(ValueError("a mistake"))) is None
