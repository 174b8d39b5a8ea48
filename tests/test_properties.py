"""What must hold for any input: metrics against other libraries, draws, plans, prompts."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from fairlearn.metrics import MetricFrame, equal_opportunity_difference
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from datasets import utkface
from datasets.base import GROUPS, ImageTable
from datasets.subsets import balanced_counts, biased_counts, draw_groups
from prompts import build, check
from prompts.answers import best_prompts
from prompts.instruction import STARTS_WITH
from stable_diffusion import generate, manifest
from stable_diffusion.prompt_set import PromptSet
from stable_diffusion.shares import share
from utils.metrics import METRICS, fairness_metrics, summary, table_style

quick = settings(deadline=None, max_examples=60)
bits = st.integers(0, 1)


# --- metrics -------------------------------------------------------------------------------------


@st.composite
def labelled(draw, full=True):
    """(prediction, y, a) of up to 40 images; `full`: at least one image in every group."""
    rows = draw(st.lists(st.tuples(bits, bits, bits), min_size=0 if full else 1, max_size=40))
    rows += [(draw(bits), y, a) for y, a in GROUPS] if full else []
    return np.array(draw(st.permutations(rows))).T


def figures(metrics: dict) -> dict:
    return {name: metrics[name] for name in METRICS}


@quick
@given(labelled())
def test_group_figures_are_fairlearns(case):
    h, y, a = case
    m = fairness_metrics(h, y, a)
    by_group = MetricFrame(
        metrics=accuracy_score, y_true=y, y_pred=h, sensitive_features=np.stack([y, a], axis=1)
    ).by_group
    assert m["wst"] == pytest.approx(by_group.min())
    assert m["std"] == pytest.approx(np.std(by_group.to_numpy()))
    assert m["eod"] == pytest.approx(equal_opportunity_difference(y, h, sensitive_features=a))
    mean_of_groups = np.mean([balanced_accuracy_score(y[a == s], h[a == s]) for s in (0, 1)])
    assert np.mean(list(m["group_acc"].values())) == pytest.approx(mean_of_groups)


@quick
@given(labelled(full=False), st.randoms(use_true_random=False))
def test_figures_do_not_depend_on_order_names_or_copies(case, random):
    h, y, a = case
    # another order of the groups may change the last bit of a standard deviation
    expected = pytest.approx(figures(fairness_metrics(h, y, a)), rel=1e-12, nan_ok=True)
    order = list(range(len(y)))
    random.shuffle(order)
    assert figures(fairness_metrics(h[order], y[order], a[order])) == expected
    assert figures(fairness_metrics(h, y, 1 - a)) == expected
    twice = fairness_metrics(*np.concatenate([case, case], axis=1))
    assert figures(twice) == expected
    swapped = fairness_metrics(1 - h, 1 - y, a)
    for name in ("acc", "wst", "eo_mean", "eo_worst", "ad", "aod"):  # eod speaks of y = 1 alone
        assert swapped[name] == pytest.approx(fairness_metrics(h, y, a)[name], nan_ok=True)


@quick
@given(labelled(full=False))
def test_nan_exactly_where_a_group_is_empty(case):
    h, y, a = case
    m = fairness_metrics(h, y, a)
    for group in GROUPS:
        count = int(((y == group[0]) & (a == group[1])).sum())
        assert m["group_count"][group] == count
        assert math.isnan(m["group_acc"][group]) == (count == 0)
    empty = 0 in m["group_count"].values()
    assert {math.isnan(m[name]) for name in ("wst", "std", "eo_mean", "eo_worst")} == {empty}
    assert all(math.isnan(m[name]) or 0 <= m[name] <= 1 for name in METRICS)
    assert m["acc"] == pytest.approx(accuracy_score(y, h))


@quick
@given(st.lists(labelled(), min_size=1, max_size=4))
def test_tables_over_seeds(cases):
    runs = [fairness_metrics(*case) for case in cases]
    table, spread = table_style(runs), summary(runs)
    assert repr(table_style(runs[:1])) == repr(runs[0])
    assert table["wst"] >= np.mean([run["wst"] for run in runs]) - 1e-12
    assert table["std"] <= np.mean([run["std"] for run in runs]) + 1e-12
    back = table_style(runs[::-1])
    for name in METRICS:
        assert back[name] == pytest.approx(table[name])
        assert min(r[name] for r in runs) - 1e-12 <= spread[name][0]
        assert spread[name][0] <= max(r[name] for r in runs) + 1e-12


# --- draws ---------------------------------------------------------------------------------------


def table_of(counts: list[int]) -> ImageTable:
    group = np.random.default_rng(sum(counts)).permutation(np.repeat(np.arange(4), counts))
    return ImageTable("t", [f"/x/{i}.png" for i in range(len(group))], group // 2, group % 2)


@quick
@given(st.lists(st.integers(8, 40), min_size=4, max_size=4), st.integers(0, 9), st.data())
def test_a_smaller_draw_is_part_of_a_larger_one(counts, seed, data):
    table = table_of(counts)
    larger = {c: data.draw(st.integers(0, n)) for c, n in zip(GROUPS, counts, strict=True)}
    smaller = {c: data.draw(st.integers(0, n)) for c, n in larger.items()}
    big, small = draw_groups(table, larger, seed), draw_groups(table, smaller, seed)
    assert big.counts() == larger
    assert small.counts() == smaller
    assert set(small.paths) <= set(big.paths)
    assert len(set(big.paths)) == len(big)


@quick
@given(st.integers(1, 40), st.integers(1, 8), st.sampled_from([0.0, 0.1, 0.5, 1.0]),
       st.integers(0, 9))
def test_utkface_draws_are_disjoint_and_the_test_set_is_fixed(size, test, minority, seed):
    table = table_of([60, 60, 60, 60])
    train, tests = biased_counts(size, minority), balanced_counts(4 * test)
    held = {group: train[group] // 10 for group in GROUPS}
    parts = utkface.draw(table.y, table.a, train, held, tests, seed, "this")
    rows = np.concatenate(parts)
    assert len(set(rows.tolist())) == len(rows) == size + 4 * test
    for part, counts in zip(
        parts, ({c: train[c] - held[c] for c in GROUPS}, held, tests), strict=True
    ):
        assert table.take(part).counts() == counts
        assert part.tolist() == sorted(part.tolist())
    none = dict.fromkeys(GROUPS, 0)
    other = utkface.draw(table.y, table.a, biased_counts(4, 0.5), none, tests, seed, "that")
    assert np.array_equal(other[2], parts[2])


# --- plans ---------------------------------------------------------------------------------------

prompt_sets = st.builds(
    lambda groups: PromptSet("plain", "Smiling", "Male", dict(zip(GROUPS, groups))),
    st.lists(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4), min_size=4,
             max_size=4),
)


@quick
@given(prompt_sets, st.integers(1, 25), st.integers(1, 12), st.integers(1, 9), st.data())
def test_any_sharding_makes_the_whole_plan_once(prompts, images, batch_size, world, data):
    rows = manifest.plan(prompts, images, 42)
    assert len({row.path for row in rows}) == len(rows) == 4 * images
    parts = [list(generate._own_batches(rows, batch_size, i, world, None)) for i in range(world)]
    made = [row for part in parts for batch in part for row in batch]
    assert sorted(made, key=lambda row: row.path) == rows
    whole = manifest.cut_batches(rows, batch_size)
    for batch in (batch for part in parts for batch in part):
        assert batch in whole  # a batch is the same whoever makes it
        assert len({(row.y, row.a) for row in batch}) == 1
    groups = data.draw(st.lists(st.sampled_from([f"{y}_{a}" for y, a in GROUPS]), unique=True))
    if groups:
        chosen = [row for i in range(world)
                  for batch in generate._own_batches(rows, batch_size, i, world, groups)
                  for row in batch]  # fmt: skip
        wanted = [row for row in rows if f"{row.y}_{row.a}" in groups]
        assert sorted(chosen, key=lambda row: row.path) == wanted


@quick
@given(prompt_sets, st.integers(1, 20), st.integers(0, 20), st.integers(0, 2**63 - 1))
def test_a_plan_for_fewer_images_is_part_of_one_for_more(prompts, images, more, seed):
    small, large = manifest.plan(prompts, images, seed), manifest.plan(prompts, images + more, seed)
    assert small == [row for row in large if row.number < images]
    for row in large:
        texts = prompts.groups[row.y, row.a]
        assert row.prompt == texts[row.number % len(texts)]


@quick
@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 50), st.integers(1, 5))
def test_an_array_of_launchers_covers_every_share_once(tasks, ranks, first, step):
    shares = [
        share(None, {
            "RANK": str(rank), "WORLD_SIZE": str(ranks), "SLURM_ARRAY_TASK_COUNT": str(tasks),
            "SLURM_ARRAY_TASK_ID": str(first + step * task), "SLURM_ARRAY_TASK_MIN": str(first),
            "SLURM_ARRAY_TASK_MAX": str(first + step * (tasks - 1)),
            "SLURM_ARRAY_TASK_STEP": str(step),
        })
        for task in range(tasks) for rank in range(ranks)
    ]  # fmt: skip
    assert sorted(shares) == [(i, tasks * ranks) for i in range(tasks * ranks)]


@quick
@given(st.integers(4, 30), st.integers(0, 99), st.data())
def test_the_two_sets_are_of_the_size_asked_for(images, seed, data):
    rows = [{"path": f"{y}_{a}/{i:05d}.png", "y": str(y), "a": str(a)}
            for y, a in GROUPS for i in range(images)]  # fmt: skip
    sizes = data.draw(st.tuples(*[st.integers(1, images)] * 3))
    balanced, biased = manifest.draw_sets(rows, seed, *sizes)
    for table, wanted in ((balanced, (sizes[0],) * 4), (biased, (*sizes[:0:-1], *sizes[1:]))):
        found = [sum(r["path"].startswith(f"{y}_{a}/") for r in table) for y, a in GROUPS]
        assert found == list(wanted)
        assert [r for r in rows if r in table] == table  # manifest order, none twice
    assert manifest.draw_sets(rows, seed, *sizes) == (balanced, biased)
    fewer, _ = manifest.draw_sets(rows, seed, 1, *sizes[1:])
    assert all(row in balanced for row in fewer)


# --- prompts -------------------------------------------------------------------------------------

SMILES = (("serious", "stern-faced", "pensive"), ("smiling", "grinning"))
PEOPLE = (("woman", "lady", "girl"), ("man", "guy", "gentleman"))
EXTRAS = ("with wavy hair", "wearing a hat", "in soft light", "with a pointy nose", "with bangs")


@quick
@given(st.sampled_from(GROUPS), st.data())
def test_a_prompt_fits_its_own_group_alone(group, data):
    smile = data.draw(st.sampled_from(SMILES[group[0]]))
    person = data.draw(st.sampled_from(PEOPLE[group[1]]))
    extras = data.draw(st.lists(st.sampled_from(EXTRAS), unique=True, max_size=3))
    prompt = f"{STARTS_WITH} {smile} {person} {', '.join(extras)}".strip() + "."
    for other in GROUPS:
        rules = {
            failure.rule
            for failure in check.check_prompt(
                prompt, dataset="celeba", target="Smiling", protected="Male", group=other,
                set_name="contextual_50",
            )
        }  # fmt: skip
        wrong = {name for name, i in (("target", 0), ("protected", 1)) if group[i] != other[i]}
        assert rules == wrong


@quick
@given(st.lists(st.text(), max_size=8), st.integers(0, 400))
def test_half_an_answer_gives_whole_prompts_only(prompts, length):
    expected = [f"P {' '.join(prompt.split())}".strip() for prompt in prompts]
    whole = json.dumps({"prompts": expected})
    usable = lambda texts: sum(text.startswith("P") for text in texts)  # noqa: E731
    assert best_prompts(whole, usable) == expected
    half = best_prompts(whole[:length], usable)
    assert [text for text in half if text.startswith("P")] == expected[: len(half)]


@quick
@given(st.text() | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
).map(json.dumps))  # fmt: skip
def test_any_answer_is_a_list_of_texts(text):
    assert all(isinstance(prompt, str) for prompt in best_prompts(text, len))


@quick
@given(st.lists(st.sampled_from([f"{STARTS_WITH} smiling woman {extra}." for extra in EXTRAS]
                                + [f"{STARTS_WITH} smiling man.", "A cat.", ""]), max_size=14))
def test_what_is_accepted_passes_the_check(prompts):
    document = build.new_document("celeba", "Smiling", "Male", 4, False, "m")
    refused = build.accept(document, (1, 0), prompts)
    kept = document["cells"]["1_0"]
    assert kept == list(dict.fromkeys(p for p in prompts if "woman" in p))[:4]
    assert {p for p, _ in refused} <= set(prompts)
    assert not [f for f in check.check_groups(document) if f.group == "1_0" and f.rule != "groups"]
