"""The gallery: validation, balancing, slices, bytes."""

import math

import pytest
import torch

from finepseudo.align.gallery import Embeddings, Gallery
from finepseudo.errors import ArtefactError

torch.set_num_threads(1)


def gallery(label=(0, 0, 0, 1, 3, 3), num_classes=4, dtype=torch.float32, prefix="v") -> Gallery:
    emb = torch.randn(len(label), 3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    return Gallery(emb, torch.tensor(label), tuple(f"{prefix}{g}" for g in range(len(label))), num_classes)


def test_counts_include_classes_without_members():
    assert gallery().counts() == [3, 1, 0, 2]
    assert len(gallery()) == 6


def test_take_keeps_rows_together():
    part = gallery().take([4, 0])
    assert part.video_ids == ("v4", "v0")
    assert part.label_G.tolist() == [3, 0]
    assert torch.equal(part.emb_GTD, gallery().emb_GTD[[4, 0]])


def test_balanced_bounds_every_class_and_keeps_the_order():
    part = gallery().balanced(2, seed=0)
    assert part.counts() == [2, 1, 0, 2]
    assert list(part.video_ids) == sorted(part.video_ids)
    assert gallery().balanced(3, seed=5).video_ids == gallery().video_ids


def test_balanced_depends_on_seed_and_names_and_not_on_the_order_of_rows():
    many = gallery([0] * 20 + [1] * 20, 2)
    chosen = set(many.balanced(4, seed=1).video_ids)
    assert chosen == set(many.take(range(39, -1, -1)).balanced(4, seed=1).video_ids)
    assert chosen != set(many.balanced(4, seed=2).video_ids)
    fewer = many.take([g for g in range(40) if many.video_ids[g] not in chosen or g < 20])
    assert {v for v in fewer.balanced(4, seed=1).video_ids if int(v[1:]) < 20} == {v for v in chosen if int(v[1:]) < 20}


@pytest.mark.parametrize(("n", "sizes"), [(1, [6]), (2, [3, 3]), (4, [1, 2, 1, 2]), (6, [1] * 6), (99, [1] * 6)])
def test_slices_hold_each_member_once(n, sizes):
    parts = gallery().slices(n)
    assert [len(p) for p in parts] == sizes
    assert sum((p.video_ids for p in parts), ()) == gallery().video_ids
    assert torch.equal(torch.cat([p.emb_GTD for p in parts]), gallery().emb_GTD)
    assert all(p.num_classes == 4 for p in parts)


def embeddings(dtype=torch.float32, prefix="v") -> Embeddings:
    first = gallery(dtype=dtype, prefix=prefix)
    return Embeddings(first.emb_GTD, first.video_ids)


def test_gallery_takes_the_labelled_ones_with_their_labels():
    labelled = embeddings().gallery({"v4": 2, "v1": 0, "elsewhere": 1}, num_classes=3)
    assert labelled.video_ids == ("v1", "v4")
    assert labelled.label_G.tolist() == [0, 2]
    assert torch.equal(labelled.emb_GTD, embeddings().emb_NTD[[1, 4]])
    assert labelled.counts() == [1, 0, 1]
    assert embeddings().among({"v5", "v0"}).video_ids == ("v0", "v5")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_bytes_bring_everything_back(dtype):
    first = embeddings(dtype=dtype, prefix='ä"\n')
    again = Embeddings.from_bytes(first.to_bytes())
    assert again.emb_NTD.dtype == dtype
    assert torch.equal(again.emb_NTD, first.emb_NTD)
    assert again.video_ids == first.video_ids
    assert again.to_bytes() == first.to_bytes()


def test_equal_embeddings_give_equal_bytes_and_others_do_not():
    assert len({embeddings().to_bytes() for _ in range(20)}) == 1
    first = embeddings()
    turned = Embeddings(first.emb_NTD.transpose(1, 2).contiguous().transpose(1, 2), first.video_ids)
    assert turned.to_bytes() == first.to_bytes()
    assert embeddings(prefix="w").to_bytes() != first.to_bytes()


@pytest.mark.parametrize("cut", [0, 7, 40, -1])
def test_damaged_bytes_are_refused(cut):
    with pytest.raises(ArtefactError, match=r"bytes are not embeddings .* embed the videos again"):
        Embeddings.from_bytes(embeddings().to_bytes()[:cut])


def test_broken_embeddings_are_named():
    emb = embeddings().emb_NTD.clone()
    emb[1, 0, 0], emb[5, 2, 4] = math.nan, math.inf
    with pytest.raises(ArtefactError, match=r"finite values, got 2 bad rows: 1 \(v1\), 5 \(v5\)"):
        Embeddings(emb, embeddings().video_ids)
    with pytest.raises(ArtefactError, match=r"embeddings: expected 6 video_ids .* got 1"):
        Embeddings(embeddings().emb_NTD, ("v1",))


def test_broken_members_are_named():
    emb = gallery().emb_GTD.clone()
    emb[1, 0, 0], emb[5, 2, 4] = math.nan, math.inf
    with pytest.raises(ArtefactError, match=r"finite embeddings, got 2 bad rows: 1 \(v1, label 0\), 5 \(v5, label 3\)"):
        Gallery(emb, gallery().label_G, gallery().video_ids, 4)
    with pytest.raises(ArtefactError, match=r"labels within 0..2, got 2 bad rows: 4 \(v4, label 3\)"):
        Gallery(gallery().emb_GTD, gallery().label_G, gallery().video_ids, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"emb_GTD": torch.zeros(6, 3)}, r"non-empty floating emb \(G,T,D\), got torch.float32 \(6, 3\)"),
        ({"emb_GTD": torch.zeros(6, 3, 5, dtype=torch.long)}, "floating emb .* got torch.int64"),
        ({"emb_GTD": torch.zeros(0, 3, 5)}, r"got torch.float32 \(0, 3, 5\)"),
        ({"label_G": torch.zeros(5, dtype=torch.long)}, r"label int64 \(6,\) .* got torch.int64 \(5,\)"),
        ({"label_G": torch.zeros(6)}, r"got torch.float32 \(6,\)"),
        ({"video_ids": ("a",)}, "expected 6 video_ids .* got 1"),
        ({"video_ids": ("a", "b", "a", "c", "d", "b")}, r"got twice: \['a', 'b'\]"),
    ],
)
def test_misfits_are_named(change, words):
    first = gallery()
    fields = {"emb_GTD": first.emb_GTD, "label_G": first.label_G, "video_ids": first.video_ids, "num_classes": 4}
    with pytest.raises(ArtefactError, match=words):
        Gallery(**{**fields, **change})


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="per_class_max >= 1, got 0"):
        gallery().balanced(0, seed=0)
    with pytest.raises(ValueError, match="n >= 1 slices, got 0"):
        gallery().slices(0)
