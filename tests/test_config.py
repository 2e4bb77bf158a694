import math
import re
import subprocess
import sys
import time

import pytest

from fiqa_ray.config import load_settings
from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.job import Job
from fiqa_ray.safe_yaml import parse_options, parse_yaml, yaml_text

GOOD = """
name: t
run_uri: runs/t
source: {kind: folder, uri: faces}
recognizer: {name: arcface_r50, weights: w.pth}
methods: [{name: faceqan}]
"""


def job(tmp_path, text=GOOD):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]\n" for i in range(1, 12)), "aliases"),
        ("a: &a [*a]", "aliases"),
        ("[" * 20_000, "nested too deeply"),
        ("{a: " * 20_000, "nested too deeply"),
        ("- " * 20_000, "nested too deeply"),
        ("[" * 9_000 + "]" * 9_000, "nested too deeply"),
        ("\n".join(f"k{i}: 1" for i in range(30_000)), "characters; settings may have"),
        ("name: " + "x" * 50_000_000, "characters; settings may have"),
        ("seed: " + "9" * 5_000, "not valid YAML"),
        ("seed: 0x" + "f" * 5_000, r"a whole number has 20,000 bits"),
        ("seed: " + ":".join(["59"] * 5_000), "versions of YAML do not agree"),
        ("name: 2026-13-01", "versions of YAML do not agree"),
    ],
    ids=[
        "alias bomb",
        "circle",
        "brackets",
        "braces",
        "dashes",
        "deep",
        "lines",
        "text",
        "digits",
        "hexadecimal",
        "sexagesimal",
        "date",
    ],
)
def test_yaml_that_would_take_all_memory_or_time_is_refused(tmp_path, text, words):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    started = time.process_time()
    with pytest.raises(UsageError, match=words):
        load_settings(str(path))
    assert time.process_time() - started < 2
    with pytest.raises(UsageError, match=words) as caught:
        parse_options([f"a={re.sub('^(seed|name): ', '', text)}"])
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("methods=[{nam: faceqan}]", "methods.0.nam: unknown key (did you mean 'name'?)"),
        ("methods=[{name: faceqan, optons: {}}]", "methods.0.optons: unknown key (did you mean 'options'?)"),
        ("methods=faceqan", "methods: give a list, such as methods=[{name: faceqan}] (found 'faceqan')"),
        ("evaluate.conventions=paper", "evaluate.conventions: give a list, such as evaluate.conventions=[paper]"),
        ("optimize=3", "optimize: give keys and values, of mode, theta, index_scale, ediff (found 3)"),
        ("methods=[]", "methods: is missing"),
    ],
)
def test_one_mistake_is_one_line(tmp_path, override, line):
    with pytest.raises(UsageError) as fault:
        load_settings(job(tmp_path), [override])
    first, *lines = str(fault.value).splitlines()
    assert first == "job.yaml: 1 wrong setting(s)"
    assert len(lines) == 1
    assert lines[0].strip().startswith(line)


def test_a_regressor_as_method_is_named_by_what_it_learned(tmp_path):
    folder = "runs/a/regressor/fr=m.onnx/fiqa=faceqan/labels=theta-0.1/v=86bdea26874e576f"
    (method,) = load_settings(job(tmp_path), [f"methods=[{{name: {folder}}}]"]).methods
    assert method.label == "faceqan-regressor-theta-0.1"


def test_yaml_bombs_take_less_than_500_mb(tmp_path):
    aliases = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]\n" for i in range(1, 12))
    for name, text in (("a", aliases), ("b", "[" * 20_000), ("c", "{a: " * 20_000), ("d", "[" * 9_000 + "]" * 9_000)):
        (tmp_path / f"{name}.yaml").write_text(text)
    program = (
        "import pathlib, re, sys\n"
        "from fiqa_ray.config import load_settings\n"
        "from fiqa_ray.errors import UsageError\n"
        "for path in pathlib.Path(sys.argv[1]).iterdir():\n"
        "    try: load_settings(str(path))\n"
        "    except UsageError: print('refused')\n"
        "status = pathlib.Path('/proc/self/status').read_text()\n"  # getrusage would tell the parent's peak too
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', status)[1]) // 1024)\n"
    )
    *refused, megabytes = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True
    ).stdout.split()
    assert refused == ["refused"] * 4
    assert int(megabytes) < 500


def test_aliases_that_save_typing_are_read(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("a: &shared {x: 1}\nb: *shared\nc: [*shared, *shared]\n")
    with pytest.raises(UsageError, match=r"a: unknown key"):  # which is to say that it was parsed
        load_settings(str(path))


def test_overrides_and_defaults(tmp_path):
    s = load_settings(
        job(tmp_path), ["optimize.theta=[1e-3, 0.03]", "pair.n_clusters=5", "methods.0.label=q", "seed=7"]
    )
    assert s.optimize.theta == (0.001, 0.03)
    assert (s.pair.n_clusters, s.pair.n_repeats, s.seed, s.methods[0].label) == (5, 10, 7, "q")
    assert load_settings(job(tmp_path), ["optimize.theta=1e-2"]).optimize.theta == (0.01,)


def test_every_mistake_is_listed_with_value_and_hint(tmp_path):
    text = GOOD.replace("methods:", "optimise: {}\npair: {n_cluster: 5, n_repeats: 0}\nmethods:") + "seed: minus\n"
    with pytest.raises(UsageError) as error:
        load_settings(job(tmp_path, text))
    message = str(error.value)
    assert error.value.exit_code == 2
    assert "job.yaml: 4 wrong setting(s)" in message
    assert "optimise: unknown key (did you mean 'optimize'?)" in message
    assert "pair.n_cluster: unknown key (did you mean 'n_clusters'?)" in message
    assert "pair.n_repeats: Input should be greater than or equal to 1 (found 0)" in message
    assert "seed: " in message
    assert "(found 'minus')" in message


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["theta"], "not of the form key=value"),
        (["optimize.thetas=1"], "optimize.thetas: unknown key (did you mean 'theta'?)"),
        (["optimize.theta=2"], "less than or equal to 1"),
        (["methods=[]"], "methods:"),
        (["methods=[{name: a}, {name: a}]"], "a is given twice"),
        (["methods=[{name: a, label: oracle}]"], "the name 'oracle' is taken"),
        (["name.x=1"], "'name.x=1': name has no key 'x'"),
    ],
)
def test_wrong_overrides(tmp_path, overrides, words):
    with pytest.raises(UsageError) as error:
        load_settings(job(tmp_path), overrides)
    assert words in str(error.value)


def test_unreadable_jobs(tmp_path):
    with pytest.raises(UsageError, match="not valid YAML"):
        load_settings(job(tmp_path, "a: [1"))
    with pytest.raises(UsageError, match="must hold settings"):
        load_settings(job(tmp_path, "- 1"))
    with pytest.raises(FiqaRayError, match=r"nothing\.yaml: not found"):
        load_settings(str(tmp_path / "nothing.yaml"))
    with pytest.raises(UsageError, match="not valid YAML"):  # safe loading: no objects from YAML
        load_settings(job(tmp_path, "name: !!python/object/apply:os.system [echo]"))


def test_mistakes_in_what_belongs_together(tmp_path):
    for change, words in (
        ("methods.0.recognizer={name: a}", "faceqan has scores of its own: leave out its recognizer"),
        ("methods.0.fuse={of: [a, b]}", "faceqan is fused of others: leave out its weights"),
        ("methods.0={name: faceqan, options: {seed: 1}}", "an option cannot be called 'seed', which the job gives"),
    ):
        with pytest.raises(UsageError, match=words):
            load_settings(job(tmp_path), ["methods.0.scores=s.csv", change])
    bench = "benchmarks=[{name: b, source: {kind: folder, uri: x}, pairs: {kind: lfw, uri: p}, scores: {mix: m.csv}}]"
    fused = "methods=[{name: a}, {name: b}, {name: mix, fuse: {of: [a, b]}}]"
    with pytest.raises(UsageError, match="b has scores for mix, which is fused of others"):
        load_settings(job(tmp_path), [fused, bench])


def test_fingerprints_hold_what_a_models_name_points_to(tmp_path):
    """A regressor's folder by its card, an ONNX file by its bytes, however it is written."""
    found = set()
    for content in ("one", "two"):
        root = tmp_path / content
        (root / "reg").mkdir(parents=True)
        (root / "reg" / "card.json").write_text(content)
        (root / "M.ONNX").write_text(content)
        for name in ("reg", "M.ONNX"):
            settings = load_settings(
                job(tmp_path), [f"methods=[{{name: {root / name}, label: x}}]", "recognizer.weights=null"]
            )
            made = Job(settings)
            found.add(made.prior_scores("train", settings.methods[0]).fingerprint)
    assert len(found) == 4


def test_what_a_run_accepts_is_part_of_no_result(tmp_path):
    """Another detector makes other results; accepting mixed crops or more bad images does not."""
    (tmp_path / "d.onnx").write_bytes(b"detector")
    strict = load_settings(job(tmp_path), ["recognizer.weights=null"])
    lenient = load_settings(
        job(tmp_path), ["recognizer.weights=null", "source.allow_mixed_crops=true", "max_bad_fraction=0.5"]
    )
    detected = load_settings(job(tmp_path), ["recognizer.weights=null", f"source.detector={tmp_path / 'd.onnx'}"])
    assert lenient.identity() == strict.identity() != detected.identity()
    fingerprints = [Job(s).embeddings("train").fingerprint for s in (strict, lenient, detected)]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


@pytest.mark.parametrize(
    ("overrides", "theta", "scale"),
    [
        ([], ("heldout",), "normalized"),
        (["optimize.theta=0.001"], (0.001,), "raw"),
        (["optimize.theta=[0.001, 0.1]"], (0.001, 0.1), "normalized"),
        (["optimize.theta=0.1", "optimize.index_scale=raw"], (0.1,), "raw"),
        (["optimize.theta=[heldout, 0.1]"], ("heldout", 0.1), "normalized"),
    ],
)
def test_the_scale_is_raw_only_for_the_papers_theta(tmp_path, overrides, theta, scale):
    optimize = load_settings(job(tmp_path), ["recognizer.weights=null", *overrides]).optimize
    assert (optimize.theta, optimize.index_scale) == (theta, scale)


def test_heldout_has_its_own_names_and_scale(tmp_path):
    made = Job(load_settings(job(tmp_path), ["recognizer.weights=null"]))
    assert [s.key for s in made.label_sets()] == ["prior", "theta-heldout"]
    assert made.scorer_name(made.label_sets()[1]) == "faceqan, regressor on optimized labels"
    with pytest.raises(UsageError, match=r"theta: heldout chooses on the scale normalized"):
        load_settings(job(tmp_path), ["optimize.theta=heldout", "optimize.index_scale=raw"])


def test_modes_of_labels(tmp_path):
    """What a run without mode ediff records of its settings is what it recorded before there was one."""
    weights = "recognizer.weights=null"
    plain = load_settings(job(tmp_path), [weights])
    assert not {"mode", "ediff"} & plain.identity()["optimize"].keys()
    assert plain.identity() == load_settings(job(tmp_path), [weights, "optimize.mode=rank"]).identity()
    both = Job(load_settings(job(tmp_path), [weights, "optimize.mode=[rank, ediff]", "optimize.theta=[0.1, 0.3]"]))
    assert both.settings.identity()["optimize"]["ediff"] == {"epsilon": 0.5, "best": 0.2, "least": 10}
    sets = both.label_sets()
    assert [(s.kind, s.key) for s in sets] == [
        ("prior", "prior"), ("optimized", "theta-0.1"), ("optimized", "theta-0.3"), ("ediff", "ediff"),
    ]  # fmt: skip
    assert both.scorer_name(sets[3]) == "faceqan, regressor on eDifFIQA labels"
    assert "/labels=ediff/" in both.regressor(sets[3]).uri
    alone = Job(load_settings(job(tmp_path), [weights, "optimize.mode=ediff"]))
    assert alone.index_thetas() == ()
    assert not alone.settings.needs_pairs
    assert alone.regressor(alone.label_sets()[0]) == both.regressor(sets[0])
    for wrong, message in (
        ("[rank, rank]", "rank is given twice"),
        ("[]", "at least 1 item"),
        ("rule", "optimize.mode"),
    ):
        with pytest.raises(UsageError, match=message):
            load_settings(job(tmp_path), [weights, f"optimize.mode={wrong}"])


def test_finetune_has_one_seed_and_the_published_head(tmp_path):
    for wrong, message in (("seeds=3", "trains one network per label set, not 3"), ("head=norm", "published head")):
        with pytest.raises(UsageError, match=message):
            load_settings(job(tmp_path), ["train.mode=finetune", f"train.{wrong}"])


def test_label_sets_and_their_names(tmp_path):
    made = Job(load_settings(job(tmp_path), ["recognizer.weights=null", "optimize.theta=[0.001, 0.03]"]))
    sets = made.label_sets()
    assert [s.key for s in sets] == ["prior", "theta-0.001", "theta-0.03"]
    assert [made.scorer_name(s) for s in sets] == [
        "faceqan, regressor on prior labels",
        "faceqan, regressor on optimized labels (theta 0.001)",
        "faceqan, regressor on optimized labels (theta 0.03)",
    ]
    assert "/labels=theta-0.03/" in made.regressor(sets[2]).uri
    assert "/scorer=faceqan-regressor-prior/" in made.regressor_scores("train", sets[0]).uri
    assert made.labels(sets[0]).uri == made.labels(sets[1]).uri  # prior labels are a column beside the optimized ones
    assert made.labels(sets[2]).uri != made.labels(sets[1]).uri


@pytest.mark.parametrize(
    ("text", "line"),
    [("seed: 1\nname: a\nseed: 2\n", 3), ("a: {b: 1, b: 2}\n", 1), ("methods:\n- name: x\n  name: y\n", 3)],
)
def test_a_key_that_stands_twice_is_refused(text, line):
    """By YAML's rules; its loader takes the last one."""
    with pytest.raises(
        UsageError, match=rf"job\.yaml is not valid YAML: the key '\w+' stands twice \(line {line}\); keep one"
    ):
        parse_yaml(text, "job.yaml")


VERSIONS_AGREE = [
    ("10", 10), ("-3", -3), ("+5", 5), ("0", 0), ("0x1F", 31), ("0.1", 0.1), (".5", 0.5), ("1.", 1.0), ("00.5", 0.5),
    ("1e-3", 0.001), ("1E+3", 1000.0), ("2.5e6", 2.5e6), (".5e1", 5.0), ("-.inf", -math.inf), ("true", True),
    ("False", False), ("null", None), ("~", None), ("'010'", "010"), ("!!str 010", "010"), ("'no'", "no"), ("=", "="),
    ("nobody", "nobody"), ("10.0.0.1:80", "10.0.0.1:80"), ("a:1", "a:1"), ("0abc", "0abc"), ("NaN", "NaN"), ("1e", "1e"),
    ("b/0010", "b/0010"),
]  # fmt: skip
"""Plain values and what YAML 1.2 (chapter 10.3) says of them; of 1e-3, YAML 1.1 says text, which nobody means."""


@pytest.mark.parametrize(("text", "value"), VERSIONS_AGREE)
def test_plain_values_are_those_of_yaml_1_2(text, value):
    got = parse_yaml(f"k: {text}", "job.yaml")["k"]
    assert got == value
    assert type(got) is type(value)
    assert parse_options([f"k={text}"])["k"] == value


@pytest.mark.parametrize(
    "text",
    # octal, thousands, minutes, binary, yes and no, dates, and a leading zero, which one version takes for a number only
    [
        "010",
        "-010",
        "0_1",
        "1_000",
        "1.0_0",
        "1:30",
        "1:30:00.5",
        "0b11",
        "0o17",
        "08",
        "yes",
        "No",
        "ON",
        "off",
        "2020-01-01",
    ],
)
def test_values_on_which_versions_of_yaml_differ_are_refused(text):
    words = rf"job\.yaml is not valid YAML: versions of YAML do not agree on '{text}' \(line 2\); write a number"
    for line in (f"k: {text}", f"k: [1, {text}]", f"{text}: 1"):
        with pytest.raises(UsageError, match=words):
            parse_yaml(f"a: 1\n{line}", "job.yaml")
    assert parse_yaml(f"k: '{text}'", "job.yaml") == {"k": text}
    values = {"k": text, "list": [text, "1e-3", 1e-3, 1e300, 0.1, 10, None, True, "=", "é"]}
    assert parse_yaml(yaml_text(values), "job.yaml") == values


@pytest.mark.parametrize(
    ("text", "kind"), [("!!set {a, b}", "set"), ("!!binary aGk=", "bytes"), ("!!omap [a: 1]", "tuple")]
)
def test_values_that_are_no_settings_are_refused(text, kind):
    with pytest.raises(
        UsageError, match=rf"job\.yaml is not valid YAML: it holds .* of the kind {kind}; settings are texts"
    ):
        parse_yaml(f"k: {text}", "job.yaml")


def test_a_merge_may_be_overridden():
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\n", "job.yaml")["b"] == {"x": 3, "y": 2}
