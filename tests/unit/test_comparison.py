"""Label seeds side by side."""

from types import SimpleNamespace

import pytest

from finepseudo.report.comparison import compare


def result(f_E, fused):
    def measured(less):
        parts = {"f_E": f_E, "fused": fused, "p_A": fused}
        return SimpleNamespace(
            **{name: SimpleNamespace(top1=SimpleNamespace(value=value - less)) for name, value in parts.items()}
        )

    return SimpleNamespace(measured={"finepseudo": measured(0.0), "supervised": measured(0.1)})


def test_comparison_takes_differences_seed_by_seed():
    compared = compare({0: result(0.8, 0.9), 1: result(0.6, 0.9)})
    assert compared.top1["finepseudo"]["f_E"].mean == pytest.approx(0.7)
    assert compared.top1["finepseudo"]["f_E"].se == pytest.approx(0.1)
    gain = compared.differences["finepseudo f_E - supervised f_E"]
    assert gain.mean == pytest.approx(0.1)
    assert gain.se == pytest.approx(0.0, abs=1e-12)
    assert "+0.100" in compared.table()


def test_one_seed_has_no_error_of_its_mean():
    compared = compare({3: result(0.8, 0.9)})
    assert compared.top1["finepseudo"]["fused"].se is None
    assert compared.table().splitlines()[2].endswith("  -")
