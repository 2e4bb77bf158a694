"""Names of two files that should meet; the expected rules are those by which the names were changed."""

import itertools
import unicodedata

import numpy as np
import pyarrow as pa
import pytest

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources.keys import KEY_RULES, find_rules, rows_of_keys
from fiqa_ray.sources.protocols import VerificationPairs, pair_rows
from fiqa_ray.sources.scores import read_scores, scores_by_id

NAMES = [f"{p}/{p}_{i:04d}.jpg" for p in ("José_Muñoz", "Anna_Lee", "per son", "a.b", "[x] (1)") for i in range(3)]
CHANGES = {
    "dot_slash": lambda n: "./" + n,
    "slash": lambda n: n.replace("/", "\\"),
    "unicode": lambda n: unicodedata.normalize("NFD", n),
    "ending": lambda n: n[:-4],
    "prefix": lambda n: "/data/set (2)/faces/" + n,
}
IDS = pa.array([unicodedata.normalize("NFC", n) for n in NAMES])


def changed(rules, names=NAMES):
    for rule in ("unicode", "ending", "prefix", "dot_slash", "slash"):
        if rule in rules:
            names = [CHANGES[rule](n) for n in names]
    return pa.array(names)


@pytest.mark.parametrize("rules", [r for n in (1, 2, 3) for r in itertools.combinations(KEY_RULES, n)], ids="+".join)
def test_the_rules_by_which_names_were_changed_are_named(rules):
    keys = changed(rules)
    if {"prefix", "slash"} <= set(rules) or {"prefix", "dot_slash"} <= set(rules):
        wanted = [set(rules), set(rules) - {"dot_slash"}]  # ./ is one more folder in front
    else:
        wanted = [set(rules)]
    assert set(find_rules(keys, IDS)) in wanted
    assert (rows_of_keys(keys, IDS) < 0).sum() == sum(k not in IDS.to_pylist() for k in keys.to_pylist())
    assert rows_of_keys(keys, IDS, rules).tolist() == list(range(len(NAMES)))
    # the other way round: the images have what the file lacks
    assert rows_of_keys(IDS, keys, rules).tolist() == list(range(len(NAMES)))


def test_names_that_meet_under_no_rule():
    assert find_rules(pa.array(["x", "y"]), IDS) is None
    assert find_rules(pa.array([NAMES[0], "other/z.jpg"]), IDS) is None


def test_a_rule_that_makes_two_images_one_is_refused():
    with pytest.raises(FiqaRayError, match="two images of the data set have one name"):
        rows_of_keys(pa.array(["a"]), pa.array(["a.jpg", "a.png"]), ["ending"])


@pytest.mark.parametrize("rule", KEY_RULES)
def test_scores_and_pairs_say_one_name_of_each_side_and_the_setting(tmp_path, rule):
    file = tmp_path / "scores.csv"
    keys = changed([rule]).to_pylist()
    file.write_text("image_id,score\n" + "".join(f"{k},{i}\n" for i, k in enumerate(keys)))
    with pytest.raises(FiqaRayError) as info:
        scores_by_id(IDS, str(file))
    text = str(info.value)
    assert f"set scores.key_rule: [{rule}]" in text
    bad = [i for i, k in enumerate(keys) if k not in IDS.to_pylist()]
    assert repr(keys[bad[0]]) in text or keys[bad[0]] in text
    assert str(IDS[bad[0]]) in text
    assert scores_by_id(IDS, str(file), key_rule=[rule]).tolist() == list(range(len(NAMES)))

    half = len(keys) // 2
    pairs = VerificationPairs(
        np.array(keys[:half], object), np.array(keys[-half:], object), np.ones(half, bool), np.zeros(half, np.int64)
    )
    where = {"list_uri": "pairs.csv", "source_uri": "faces/"}
    with pytest.raises(FiqaRayError) as info:
        pair_rows(pairs, IDS, (), **where)
    for words in ("pairs.csv", "faces/", f"set pairs.key_rule: [{rule}]", keys[bad[0]]):
        assert words in str(info.value)
    a, b = pair_rows(pairs, IDS, [rule], **where)
    assert a.tolist() == list(range(half))
    assert b.tolist() == list(range(len(keys) - half, len(keys)))


def test_a_trial_on_fewer_people_may_have_scores_of_all(tmp_path):
    (tmp_path / "x.csv").write_text("image_id,score\na,1\nb,2\n")
    with pytest.raises(FiqaRayError, match="not in the data set, such as b"):
        scores_by_id(pa.array(["a"]), str(tmp_path / "x.csv"))
    assert scores_by_id(pa.array(["a"]), str(tmp_path / "x.csv"), allow_others=True).tolist() == [1.0]


def test_scores_that_float32_cannot_tell_apart_are_said(tmp_path, caplog):
    for name, step, is_said in (("close", 1e-12, True), ("far", 1e-3, False)):
        rows = "".join(f"{i}.jpg,{1 + i * step!r}\n" for i in range(16))
        (tmp_path / f"{name}.csv").write_text("image_id,score\n" + rows)
        caplog.clear()
        read_scores(str(tmp_path / f"{name}.csv"))
        assert ("of 16 different scores only 1 differ as float32" in caplog.text) == is_said
