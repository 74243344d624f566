"""Who is taken for whom, and what a confidence is worth."""

import numpy as np
import pyarrow as pa
import pytest

from finepseudo.measures import reliability
from finepseudo.report.trust import confusion


def test_a_row_of_the_matrix_is_where_the_videos_of_a_class_went():
    table = pa.table({"truth": [0, 0, 0, 0, 2, 2], "finepseudo/fused": [0, 0, 0, 2, 1, 2]})
    share_KK = confusion(table, "finepseudo/fused", 4)
    np.testing.assert_allclose(share_KK[0], [0.75, 0, 0.25, 0])
    np.testing.assert_allclose(share_KK[2], [0, 0.5, 0.5, 0])
    assert np.isnan(share_KK[[1, 3]]).all(), "nothing is known of a class without a test video"


def test_labels_are_told_apart_by_confidence():
    confidence_N, right_N = np.array([0.05, 0.1, 0.55, 0.58, 1.0]), np.array([True, False, True, True, False])
    found = reliability(confidence_N, right_N)
    assert [(round(mean, 4), share, count) for mean, share, count in found] == [
        (0.075, 0.5, 2), (0.565, 1.0, 2), (1.0, 0.0, 1),
    ]  # fmt: skip
    assert sum(count for *_, count in found) == len(confidence_N)
    assert reliability(np.zeros(1), np.array([True]))[0] == pytest.approx((0, 1, 1))
