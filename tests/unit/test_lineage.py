"""Lineages: what is compared, what names a configuration for long, and what a new field changes."""

from dataclasses import dataclass, field, make_dataclass, replace

import pytest

from finepseudo.errors import ArtefactError
from finepseudo.recipe import Recipe, digest
from finepseudo.recipes import find
from finepseudo.storage import artefacts
from finepseudo.storage.lineage import chosen, differences, fingerprint, plain
from finepseudo.storage.store import Store

# A change here orphans every run directory of these recipes: say so where changes are listed, if it is meant.
FROZEN = {"rehearsal": "b477620869da", "rehearsal_long": "c07c5c9677ce", "rehearsal_smoke": "da64231443e6"}


@dataclass(frozen=True)
class Loss:
    margin: float = 0.1
    steps: int = 3


@dataclass(frozen=True)
class Training:
    lr: float
    loss: Loss = field(default_factory=Loss)
    words: tuple[str, ...] = ("a",)


# The same classes as a later version would have them: one field more, and one default that changed.
LaterLoss = make_dataclass("LaterLoss", [("margin", float, 0.1), ("steps", int, 3), ("tau", float, 0.5)])
OtherLoss = make_dataclass("OtherLoss", [("margin", float, 0.2), ("steps", int, 3)])


@pytest.mark.parametrize("name", FROZEN)
def test_digests_of_recipes_are_frozen(name):
    assert digest(find(name)) == FROZEN[name]


def test_a_new_field_with_its_default_changes_no_digest_and_no_lineage():
    recipe = find("rehearsal")
    section = make_dataclass("LaterAlign", [("later", int, 7)], bases=(type(recipe.align),), frozen=True, kw_only=True)
    later = replace(recipe)
    object.__setattr__(later, "align", section(**vars(recipe.align)))
    assert digest(later) == digest(recipe)
    assert differences(Training(1.0, LaterLoss()), plain(Training(1.0))) == []
    assert fingerprint(chosen(LaterLoss())) == fingerprint(chosen(Loss()))


def test_a_new_field_that_is_set_is_a_difference():
    assert differences(LaterLoss(tau=0.2), plain(Loss())) == ["tau: '(absent)' -> 0.2"]
    assert differences({"loss": LaterLoss(tau=0.2)}, {"loss": plain(Loss())}) == ["loss.tau: '(absent)' -> 0.2"]


def test_a_default_that_changed_is_a_difference_although_the_digest_is_the_same():
    assert chosen(OtherLoss()) == chosen(Loss()) == {}
    assert differences(OtherLoss(), plain(Loss())) == ["margin: 0.1 -> 0.2"]


def test_a_field_that_is_gone_and_a_key_without_default_are_differences():
    assert differences(Loss(), plain(LaterLoss())) == ["tau: 0.5 -> '(absent)'"]
    assert differences({"seed": 1}, {}) == ["seed: '(absent)' -> 1"]


def test_plain_values():
    assert plain(Training(1, Loss(2))) == {"lr": 1.0, "loss": {"margin": 2.0, "steps": 3}, "words": ["a"]}
    assert isinstance(plain(Training(1))["lr"], float)
    assert isinstance(plain(Loss())["steps"], int)
    assert chosen(Training(1.0, Loss(steps=4))) == {"lr": 1.0, "loss": {"steps": 4}}
    assert fingerprint(Training(1)) == fingerprint(Training(1.0)) != fingerprint(Training(2.0))


def test_an_artefact_is_checked_by_its_dataclass(tmp_path):
    store = Store(str(tmp_path))
    artefacts.commit(store, "x", {}, {"loss": Loss()})
    assert artefacts.ensure(store, "x", {"loss": LaterLoss()}, dict)["lineage"] == {"loss": {"margin": 0.1, "steps": 3}}
    with pytest.raises(ArtefactError, match=r"loss.margin: 0.1 -> 0.2"):
        artefacts.ensure(store, "x", {"loss": OtherLoss()}, dict)


def test_every_section_of_a_recipe_has_defaults():
    assert chosen(Recipe(name="x")) == {"name": "x"}
