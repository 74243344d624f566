"""What of Ray's errors is a loss, after which the same again may help, and what is code that raised."""

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
    from ray.exceptions import RayTaskError

    assert not faults.lost(RayTaskError("task", "Traceback", ValueError("a mistake")))
