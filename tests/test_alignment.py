"""Tests of the alignment: names first, order and shapes where names fail, and nothing is paired twice or dropped."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portproof.alignment import Pairing, normalised, pair_layers, pair_names, pair_parameters
from portproof.trace import ParameterRecord


def record(name: str, shape: tuple[int, ...] = (3,), role: str = "") -> ParameterRecord:
    layer, _, last = name.rpartition(".")
    return ParameterRecord(name, layer, role or last, shape, True)


def records(*rows: tuple[str, tuple[int, ...]]) -> list[ParameterRecord]:
    return [record(*row) for row in rows]


def assert_everything_is_placed_once(pairing: Pairing, a: Sequence[str], b: Sequence[str]) -> None:
    assert sorted([*pairing.pairs, *pairing.only_a]) == sorted(a)
    assert sorted([*pairing.pairs.values(), *pairing.only_b]) == sorted(b)
    assert pairing.by_order <= set(pairing.pairs)


# --- Names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("features.0.conv", "features/0/conv"),
        ("layer1.0.bn", "layer1_0_bn"),
        ("Block.Conv", "block.conv"),
        ("blocks.0.attn", "block_s0.attn"),  # without separators, the last resort of names
        (".x.", "x"),
    ],
)
def test_habits_of_naming_are_no_difference(a: str, b: str) -> None:
    assert pair_names([a, "unrelated"], ["something", b]) == {a: b}


def test_an_exact_name_wins_over_a_similar_one() -> None:
    assert pair_names(["conv.1", "conv_1"], ["conv_1", "conv.1"]) == {"conv.1": "conv.1", "conv_1": "conv_1"}
    assert pair_names(["conv.1", "x"], ["Conv.1", "conv.1"]) == {"conv.1": "conv.1"}


AMBIGUOUS = [(["c.1", "c_1"], ["c/1"]), (["c/1"], ["c.1", "c_1"]), (["a.bc"], ["ab.c", "abc"])]


@pytest.mark.parametrize(("a", "b"), AMBIGUOUS)
def test_a_name_with_two_counterparts_is_left_alone(a: list[str], b: list[str]) -> None:
    assert pair_names(a, b) == {}


def test_a_prefix_that_is_the_same_for_all_pairs_them() -> None:
    bare = ["features.0", "features.1", "head"]
    wrapped = ["backbone.features.0", "backbone.features.1", "backbone.head", "loss"]
    expected = {name: f"backbone.{name}" for name in bare}
    assert pair_names(bare, wrapped) == expected
    assert pair_names(wrapped, bare) == {second: first for first, second in expected.items()}
    # Together with the habits of naming.
    assert pair_names(["Features_0", "head"], ["net/features/0", "net/head"]) == {
        "Features_0": "net/features/0", "head": "net/head",
    }  # fmt: skip


def test_the_last_word_alone_pairs_no_strangers() -> None:
    # Two names end in conv.weight: which of them is meant cannot be told.
    assert pair_names(["conv.weight"], ["head.conv.weight", "stem.conv.weight"]) == {}
    # One prefix has to fit more than half of the names.
    assert pair_names(["conv", "norm"], ["a.conv", "b.norm"]) == {}
    assert pair_names(["odd", "conv", "norm"], ["a.conv", "a.norm"]) == {"conv": "a.conv", "norm": "a.norm"}
    assert pair_names(["conv"], ["preconv"]) == {}


def test_pairs_come_in_the_order_of_the_first_side() -> None:
    assert list(pair_names(["a.x", "b", "c"], ["c", "a_x", "b"])) == ["a.x", "b", "c"]


@pytest.mark.parametrize(("name", "plain"), [("(model)", "model"), ("A.b_C/d:0", "a.b.c.d.0"), ("..", "")])
def test_normalised(name: str, plain: str) -> None:
    assert normalised(name) == plain


# --- Parameters -------------------------------------------------------------------------------------------------------


def test_layers_of_other_names_are_paired_by_order_and_shapes() -> None:
    a = records(("stem.weight", (8, 3)), ("stem.bias", (8,)), ("body.weight", (8, 8)), ("head.weight", (2, 8)))
    b = records(("l1.weight", (8, 3)), ("l1.bias", (8,)), ("l2.weight", (8, 8)), ("head.weight", (2, 8)))
    pairing = pair_parameters(a, b)
    assert pairing.pairs == {
        "stem.weight": "l1.weight", "stem.bias": "l1.bias", "body.weight": "l2.weight", "head.weight": "head.weight",
    }  # fmt: skip
    assert pairing.by_order == {"stem.weight", "stem.bias", "body.weight"}
    assert (pairing.only_a, pairing.only_b) == ((), ())


def test_what_shapes_do_not_support_stays_alone_and_is_listed() -> None:
    a = records(("one.weight", (4, 4)), ("extra.weight", (9,)), ("two.weight", (2, 4)))
    b = records(("p.weight", (4, 4)), ("q.weight", (2, 4)), ("rest.gamma", (2, 4)))
    pairing = pair_parameters(a, b)
    assert pairing.pairs == {"one.weight": "p.weight", "two.weight": "q.weight"}
    assert (pairing.only_a, pairing.only_b) == (("extra.weight",), ("rest.gamma",))


def test_order_decides_between_layers_of_one_shape() -> None:
    a, b = records(("a.w", (2,)), ("b.w", (2,)), ("c.w", (2,))), records(("x.w", (2,)), ("y.w", (2,)))
    pairing = pair_parameters(a, b)
    assert pairing.pairs == {"a.w": "x.w", "b.w": "y.w"}
    assert pairing.only_a == ("c.w",)


def test_a_pair_by_name_may_differ_in_shape() -> None:
    assert pair_parameters([record("l.weight", (2, 3))], [record("l.weight", (3, 2))]).pairs == {"l.weight": "l.weight"}


def test_several_tensors_of_one_role_in_a_layer_are_paired_one_to_one() -> None:
    # Keras' kernel and gamma of one layer are both a "weight".
    a = [record("l.kernel", (4,), "weight"), record("l.gamma", (2,), "weight"), record("l.third", (2,), "weight")]
    b = [record("m.p", (2,), "weight"), record("m.q", (4,), "weight"), record("m.r", (2,), "weight")]
    pairing = pair_parameters(a, b)
    assert pairing.pairs == {"l.kernel": "m.q", "l.gamma": "m.p", "l.third": "m.r"}


def test_bookkeeping_is_left_out_of_everything() -> None:
    counter = record("bn.num_batches_tracked", ())
    pairing = pair_parameters([record("bn.weight"), counter], [record("bn.weight")])
    assert (pairing.pairs, pairing.only_a) == ({"bn.weight": "bn.weight"}, ())


# --- Layers -----------------------------------------------------------------------------------------------------------

SIGNATURES = {"c": ("conv", (2, 8)), "d": ("conv", (2, 4)), "g": ("gelu", (2, 8)), "n": None}


def layers(a: str, b: str, known: dict[str, str] | None = None) -> Pairing:
    """Pair layers whose first letter says what they are; in capitals on the second side, to have other names."""
    first, second = a.split(), b.split()

    def signature(name: str) -> tuple[str, tuple[int, ...]] | None:
        return SIGNATURES[name[0].lower()]

    return pair_layers(first, second, known or {}, signature, signature)


def test_layers_are_paired_in_order_between_what_is_known() -> None:
    # The activations have no parameters; each stands between two known convolutions.
    found = layers("c1 g1 c2 g2", "Cone Gx Ctwo Gy", {"c1": "Cone", "c2": "Ctwo"})
    assert found.pairs == {"c1": "Cone", "g1": "Gx", "c2": "Ctwo", "g2": "Gy"}
    assert found.by_order == {"g1", "g2"}


def test_known_layers_keep_others_from_crossing_them() -> None:
    found = layers("c1 g1", "Gx Cone", {"c1": "Cone"})
    assert (found.pairs, found.only_a, found.only_b) == ({"c1": "Cone"}, ("g1",), ("Gx",))


def test_layers_need_kind_and_shape_in_common() -> None:
    assert layers("c1", "Dx").only_a == ("c1",)
    assert layers("c1 d1", "Cx Dx").pairs == {"c1": "Cx", "d1": "Dx"}


def test_containers_are_paired_by_name_alone() -> None:
    assert layers("n1", "Nx").pairs == {}
    assert layers("n1 nblock", "Nx NBlock").pairs == {"nblock": "NBlock"}
    assert layers("n1", "Nx", {"n1": "Nx"}).pairs == {"n1": "Nx"}


def test_known_pairs_of_absent_layers_are_ignored() -> None:
    assert layers("c1", "Cx", {"gone": "Cx", "c1": "gone"}).pairs == {"c1": "Cx"}


# --- Whatever the names are -------------------------------------------------------------------------------------------

WORDS = st.text("aB1._/", min_size=1, max_size=5)
SHAPES = st.sampled_from([(2,), (3,), (2, 3)])
SIDE = st.lists(st.tuples(WORDS, SHAPES), max_size=8, unique_by=lambda row: row[0])


@given(SIDE, SIDE)
def test_nothing_is_paired_twice_and_nothing_is_dropped(a: list, b: list) -> None:
    pairing = pair_parameters(records(*a), records(*b))
    assert_everything_is_placed_once(pairing, [name for name, _ in a], [name for name, _ in b])
    names = pair_names([name for name, _ in a], [name for name, _ in b])
    assert len(set(names.values())) == len(names)
    shapes_b = dict(b)
    assert all(dict(a)[name] == shapes_b[pairing.pairs[name]] for name in pairing.by_order)
    shape = dict(a).get, shapes_b.get
    known = dict(zip([name for name, _ in a][:2], [name for name, _ in b][:2], strict=False))
    found = pair_layers([name for name, _ in a], [name for name, _ in b], known, *shape)
    assert_everything_is_placed_once(found, [name for name, _ in a], [name for name, _ in b])
    assert known.items() <= found.pairs.items()


MODEL = [(f"block{i}.{layer}.{role}", (i + 1, *shape)) for i in range(3) for layer, role, shape in
         (("conv", "weight", (3,)), ("bn", "weight", ()), ("bn", "running_var", ()))]  # fmt: skip


@given(
    order=st.permutations(MODEL),
    separator=st.sampled_from(["/", "_", "."]),
    prefix=st.sampled_from(["", "Backbone."]),
    upper=st.booleans(),
)
def test_renamed_and_reordered_models_pair_completely(order: list, separator: str, prefix: str, upper: bool) -> None:
    def renamed(name: str) -> str:
        changed = (prefix + name).replace(".", separator)
        return changed.upper() if upper else changed

    b = [ParameterRecord(renamed(name), "", name.rpartition(".")[2], shape, True) for name, shape in order]
    pairing = pair_parameters(records(*MODEL), b)
    assert pairing.pairs == {name: renamed(name) for name, _ in MODEL}
    assert pairing.by_order == frozenset()


@given(st.lists(st.tuples(st.booleans(), SHAPES), min_size=1, max_size=10))
def test_strangers_in_between_do_not_disturb_the_order(rows: list[tuple[bool, tuple[int, ...]]]) -> None:
    # The port lacks some layers and calls the others something else; every shape stands once.
    a = [(f"l{i}.weight", (i, *shape)) for i, (_, shape) in enumerate(rows)]
    b = [(f"other{chr(97 + i)}.weight", (i, *shape)) for i, (kept, shape) in enumerate(rows) if kept]
    pairing = pair_parameters(records(*a), records(*b))
    assert len(pairing.pairs) == len(b)
    assert all(dict(a)[first] == dict(b)[second] for first, second in pairing.pairs.items())
