"""When a notice that a node goes calls for a commit. tests/integration/test_elastic.py gives a real one."""

from finepseudo.runtime.preemption import LAST_S, Notices

NOW = 1000.0


def test_a_notice_calls_for_a_commit_when_it_is_heard_of_and_before_the_node_goes():
    notices, goes = Notices(), {"a": int((NOW + 240) * 1000)}
    seconds = [after for after in range(0, 250, 2) if notices.due(goes, NOW + after)]
    assert seconds == [0, 240 - LAST_S]


def test_a_short_notice_calls_for_one():
    notices, goes = Notices(), {"a": int((NOW + 10) * 1000)}
    assert [notices.due(goes, NOW + after) for after in range(0, 20, 2)] == [{"a": 10.0}] + 9 * [{}]


def test_each_node_has_its_own():
    notices = Notices()
    assert notices.due({"a": int((NOW + 100) * 1000)}, NOW) == {"a": 100.0}
    both = {"a": int((NOW + 100) * 1000), "b": int((NOW + 200) * 1000)}
    assert notices.due(both, NOW + 5) == {"b": 195.0}


def test_an_idle_node_that_ray_gives_back_calls_for_none():
    assert Notices().due({"a": 0}, NOW) == {}
