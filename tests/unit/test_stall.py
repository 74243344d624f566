"""Work that must not stand still for ever."""

import threading
import time

import pytest

from finepseudo.runtime import stall


@pytest.fixture
def ended(monkeypatch):
    """What the job would have ended with."""
    said, over = [], threading.Event()
    monkeypatch.setattr(stall, "end_for_now", lambda why: (said.append(why), over.set()))
    monkeypatch.setattr(stall, "LOOK_S", 0.01)
    return said, over


def test_waiting_for_who_does_not_answer_counts_too(ended):
    said, over = ended
    asked = []

    def progress():
        asked.append(time.sleep(0.2))
        raise TimeoutError

    with stall.kept_moving("a training", progress, 0.3):
        assert over.wait(60)
    assert said[0] == "ClusterError: a training has stood still for 0.3 s (scale.stall-deadline-s)"
    assert len(asked) < 10, "a turn is as long as it takes"


def test_what_moves_goes_on(ended):
    said, _ = ended
    counted = iter(range(1_000_000))
    done = threading.Event()

    def progress():
        if (at := next(counted)) == 50:
            done.set()
        return at

    with stall.kept_moving("a pass", progress, 0.2):
        assert done.wait(60)
    assert said == []
