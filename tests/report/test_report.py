"""The report page: complete, escaped, self-contained, deterministic; numbers as given. Sample data are made up."""

import base64
import hashlib
import html as markup
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from fiqa_ray.core.bootstrap import bootstrap_areas
from fiqa_ray.core.conventions import convention_of
from fiqa_ray.datasets.results import (
    AucRow,
    ConventionRow,
    CorrelationRow,
    DifferenceRow,
    EdcLine,
    ScorerKey,
    ThetaRow,
    VerificationRow,
)
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.report.answer import answer_lines, merged
from fiqa_ray.report.data import (
    EdiffSummary,
    Face,
    FaceRow,
    FaceStrip,
    LabelSummary,
    ModelRow,
    ReportData,
    SimilarityHistogram,
    StageRow,
)
from fiqa_ray.report.figures import curve_styles
from fiqa_ray.report.render import render_report

BENCHMARKS = ("LFW", "CFP-FP", "CPLFW", "CALFW", "XQLFW")
PRIOR, OLD, NEW = "CR-FIQA prior", "regressor on prior labels", "regressor on optimized labels"
SCORERS = {PRIOR: 0.14, OLD: 0.18, NEW: 0.10, "random": 3.0, "oracle": 0.0}
FR = "ArcFace R100"


def face(shade: float, blur: float, as_jpeg: bool = False) -> bytes:
    """A crude drawn head: no real face enters the repository."""
    picture = np.full((112, 112, 3), 225, np.uint8)
    cv2.ellipse(picture, (56, 60), (32, 42), 0, 0, 360, (int(120 * shade), int(150 * shade), int(200 * shade)), -1)
    for x in (44, 68):
        cv2.circle(picture, (x, 50), 4, (40, 40, 40), -1)
    cv2.ellipse(picture, (56, 78), (12, 5), 0, 0, 180, (60, 60, 120), 2)
    if blur:
        picture = cv2.GaussianBlur(picture, (0, 0), blur)
    return cv2.imencode(".jpg" if as_jpeg else ".png", picture)[1].tobytes()


def cell_key(benchmark: str, scorer: str, convention: str, fmr: float) -> tuple:
    return scorer, "", scorer, "given", np.nan, None, benchmark, FR, convention, fmr


def auc_row(scorer: str, auc: float = 0.0, **changes: object) -> AucRow:
    numbers = (0.0, 0.2, 0.95, True, auc, auc, auc, 1.0, auc, 0.1, 300, 300)
    return replace(AucRow(*cell_key("LFW", scorer, "paper", 1e-3), *numbers), **changes)


def meaning(name: str) -> ConventionRow:
    c = convention_of(name)
    choices = (c.pool, c.threshold, c.count, c.accept, np.nan, c.ties, c.curve, c.end, np.nan, c.error, c.summary)
    return ConventionRow(name, *choices)


def sample(n_pairs: int = 1200, n_draws: int = 30, benchmarks: tuple[str, ...] = BENCHMARKS) -> ReportData:
    rng = np.random.default_rng(7)
    lines, areas, differences, verification, similarities = [], [], [], [], []
    for b, benchmark in enumerate(benchmarks):
        mated = np.arange(n_pairs) < n_pairs // 2
        utility = rng.beta(6 - b, 2, size=(2, n_pairs))
        similarity = np.where(mated, 0.02 + 0.5 * utility.min(axis=0), 0) + 0.09 * rng.normal(size=n_pairs)
        qualities = {name: tuple(utility + noise * rng.normal(size=utility.shape)) for name, noise in SCORERS.items()}
        counts = [np.histogram(similarity[kind], bins=50, range=(-0.4, 1))[0] for kind in (mated, ~mated)]
        edges = np.linspace(-0.4, 1, 51)
        verification.append(VerificationRow(benchmark, FR, 0.99 - b / 50, 0.004, 0.97, 1e-3, 0.31, 0.012, 600, 600))
        similarities.append(SimilarityHistogram(benchmark, FR, 0.31, edges, *counts))
        draws = bootstrap_areas(
            similarity, mated, qualities, fmrs=[1e-2], conventions=["paper", "dasec"], limits=[0.3], n_draws=n_draws
        )
        for convention, limits in (("paper", (0.95,)), ("dasec", (1.0, 0.3))):
            cell = (convention, 1e-2)
            for name in SCORERS:
                c = draws.curves[name, cell]
                lines.append(
                    EdcLine(
                        *cell_key(benchmark, name, convention, 1e-2),
                        c.discard_fraction,
                        c.fnmr,
                        c.threshold,
                        c.n_mated,
                        c.n_nonmated,
                        c.n_false_nonmatches,
                        c.n_allowed,
                        c.n_false_matches,
                    )
                )
                for limit in limits:
                    i = draws.interval(name, cell, limit)
                    area = {"auc": i.value, "auc_low": i.low, "auc_high": i.high, "n_draws": n_draws}
                    area |= {
                        "is_own_limit": limit == limits[0],
                        "interval": i.kind,
                        "reason": i.reason,
                        "discard_limit": limit,
                        "fmr_achieved": 8.3e-3,
                    }
                    areas.append(auc_row(name, benchmark=benchmark, convention=convention, fmr=1e-2, **area))
            d = draws.difference(NEW, OLD, cell)
            differences.append(
                DifferenceRow(
                    benchmark, FR, convention, NEW, OLD, d.value, d.low, d.high, 1e-2, p_holm=d.p_value, reason=d.reason
                )
            )
    labels = []
    for m, method in enumerate(("CR-FIQA", "SER-FIQ", "FaceQAN")):
        prior = np.clip(rng.beta(9 - m, 3, size=8000), 0, 1)
        moved = np.sort(prior)[np.argsort(np.argsort(prior + 0.06 * rng.normal(size=prior.size)))]
        histogram = np.histogram(prior, bins=60, range=(0, 1))
        labels.append(LabelSummary(method, 1e-3, 0.0192, prior, moved, *histogram, 3_141_890, 12_345 + m, 0.0815))
    kinds = ("all", "blur", "occlusion", "illumination", "pose", "compression", "resolution")
    correlations = [
        CorrelationRow("LFW", s, k, float(np.round(rng.uniform(-0.95, -0.1), 3)), 4000 if k == "all" else 650)
        for s in (PRIOR, OLD, NEW)
        for k in kinds
    ]
    strips = [
        FaceStrip(
            name,
            [
                FaceRow(
                    "best", [Face(face(1.0 - i / 40, 0, i % 2 == 0), 0.98 - i / 100, f"n{i:06d}") for i in range(10)]
                ),
                FaceRow(
                    "worst", [Face(face(0.35 + i / 40, 4 - i / 4), 0.02 + i / 100, f"n{90 + i:06d}") for i in range(10)]
                ),
            ],
        )
        for name in (PRIOR, NEW)
    ]
    return ReportData(
        title="Label optimization on VGGFace2",
        code_version="0.1.0 (commit 0123abc)",
        created="2030-01-02 03:04 UTC",
        settings={
            "data set": "VGGFace2 train, 8,631 identities",
            "recogniser": FR,
            "methods": ["CR-FIQA", "SER-FIQ", "FaceQAN"],
            "label": {"theta": 0.001, "n_clusters": 20, "n_repeats": 10, "index_scale": "raw"},
            "seed": 0,
            "output": "s3://bucket/a/long/prefix/that/does/not/break/anywhere/vggface2-arcface-r100-3f9c2a7b51",
        },
        stages=[
            StageRow("pack", 3_141_890, 37, {"no face found": 30, "not an image": 7}, 7421.0),
            StageRow("embed", 3_141_853, 0, {}, 1834.5),
            StageRow("pair", 3_141_853, 0, {}, 301.2),
            StageRow("optimize", 3_141_853, 0, {}, 42.31),
        ],
        models=[
            ModelRow(FR, "ms1mv3_arcface_r100_fp16/backbone.pth", "3f9c2a7b51d0e4c8" * 4, "non-commercial research"),
            ModelRow("CR-FIQA(L)", "181952backbone.pth", "9b1d" * 16, "CC BY-NC-SA 4.0"),
            ModelRow("FaceQAN"),
        ],
        labels=labels,
        edc=lines,
        conventions=[meaning("paper"), meaning("dasec"), replace(meaning("dasec"), convention="mine", error="fmr")],
        auc=areas,
        differences=differences,
        verification=verification,
        similarities=similarities,
        correlations=correlations,
        faces=strips,
        notes=["Similarities use no mirror image.", "CFP-FP has 3.5 allowed false matches at FMR 1e-3."],
    )


class Page(HTMLParser):
    """Ids, tags, attribute values that load something, and visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.loads: list[str] = []
        self.targets: list[str] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("src", "srcset", "data", "poster", "action"):
                self.loads.append(value or "")
            elif name == "href":
                self.targets.append(value or "")
            assert not name.startswith("on"), f"{tag} carries a script in {name}"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not (self.open and self.open[-1] == "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


@pytest.fixture(scope="module")
def data() -> ReportData:
    return sample(n_pairs=600, n_draws=8, benchmarks=BENCHMARKS[:2])


@pytest.fixture(scope="module")
def html(data: ReportData) -> str:
    return render_report(data)


def svgs(html: str) -> list[str]:
    return [base64.b64decode(x).decode() for x in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", html)]


@pytest.mark.slow
def test_page_is_whole_and_loads_nothing(html: str) -> None:
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert page.open == []
    sections = ["labels", "faces", "degradation", "recogniser", "notes", "run", "flow"]
    points = ["point-0", "point-1", "panel-point-0", "panel-point-1"]
    assert page.ids == ["results", *points, *sections]
    assert {target.partition(";")[0] for target in page.targets} == {"data:text/csv", "data:application/x-tex"}
    assert all(value.startswith("data:image/") for value in page.loads)
    assert not {"link", "iframe", "object", "base"} & set(page.tags)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.S)
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{allowed}'\">" in html  # no other script runs
    assert "url(" not in html
    assert "@import" not in html
    for text in (html, *svgs(html)):
        links = set(re.findall(r"https?://[^\"'\s<>]+", text))
        assert links <= {
            "http://www.w3.org/2000/svg",
            "http://www.w3.org/1999/xlink",
            "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd",
        }
    # 3 label figures, 2 histograms, 2 conventions x 2 benchmarks, 2 strips of 20 faces
    assert len(svgs(html)) == 3 + 2 + 4
    assert html.count("data:image/png;base64,") + html.count("data:image/jpeg;base64,") == 40
    assert html.count("data:image/jpeg;base64,") == 10


def test_page_prints_the_numbers_given(html: str, data: ReportData) -> None:
    text = Page(html).text
    assert {row.interval for row in data.auc} == {"interval"}
    for row in data.auc:
        assert f"{1000 * row.auc:.1f} {1000 * row.auc_low:.1f} – {1000 * row.auc_high:.1f}" in text
    assert "Intervals: 95 %, 8 draws of pairs, seed 0." in text
    for row in data.differences:
        signed = [f"{1000 * v:+.2f}".replace("-", "−") for v in (row.difference, row.low, row.high)]
        assert re.search(
            re.escape(row.benchmark) + r" [a-z ]+ " + re.escape(f"{signed[0]} {signed[1]} to {signed[2]}"), text
        )
    for row in data.correlations:
        assert f"{row.spearman:.2f}".replace("-", "−") in text
    for model in data.models:
        assert model.sha256 in text
        assert model.licence in text
    for wanted in (
        "fiqa_ray 0.1.0 (commit 0123abc) · 2030-01-02 03:04 UTC",
        "label.theta 0.001",
        "methods CR-FIQA, SER-FIQ, FaceQAN",
        "pack 3,141,890 3,141,853 37 2 h 03 min no face found: 30; not an image: 7",
        "CR-FIQA 0.001 0.0192 3,141,890 12,345 (0.39 %) 8.15 %",
        "LFW ArcFace R100 99.00 % ± 0.40 97.00 % 0.001 1.20 % 0.310",
        "300 + 300 pairs",
        "FMR 0.0083",
        "Convention paper, FMR 0.01, ArcFace R100",
        "Convention dasec, FMR 0.01, ArcFace R100",
        "Partial area over [0, 0.3]",
        "Area over [0, 0.95] × 1000, lower is better",
        "Dotted: end of the partial areas (30 %)",
        "n = 4,000",
        "0.980 n000000",
        "CFP-FP has 3.5 allowed false matches",
    ):
        assert wanted in text, wanted


def test_figures_carry_their_labels(html: str) -> None:
    joined = " ".join(svgs(html))
    for label in (
        "Discarded pairs [%]",
        "Discarded mated pairs [%]",
        "FNMR",
        "Prior quality",
        "Optimized quality",
        "Similarity",
        "same person",
        "different persons",
        "threshold",
    ):
        assert label in joined, label
    # A dense scatter is one picture, not thousands of paths.
    assert all(len(svg) < 200_000 for svg in svgs(html))


def test_figures_tell_their_values(html: str, data: ReportData) -> None:
    """What the script shows under the pointer are the curve's own values at its levels."""
    readings = [json.loads(markup.unescape(text)) for text in re.findall(r'data-readings="([^"]*)"', html)]
    assert len(readings) == 4  # 2 conventions x 2 benchmarks
    first = readings[0]
    assert first["x"] == list(range(0, 96, 5))
    assert (first["what"], first["error"]) == ("Discarded pairs [%]", "FNMR")
    assert 0 < first["ends"][0] < 0.3 < 0.9 < first["ends"][1] <= 1
    lines = {line.scorer: line for line in data.edc if (line.benchmark, line.convention) == ("LFW", "paper")}
    for scorer, values in first["curves"]:
        defined = lines[scorer].fnmr  # levels 0, 0.05, ...; pairs may run out before the end
        assert values[: defined.size] == pytest.approx(defined.tolist(), abs=1e-5, nan_ok=True)


def test_curves_of_many_methods_are_told_apart() -> None:
    """Colour and marker say the method, dashes the labels: no two of 20 methods x 4 variants look alike."""
    level = np.zeros(2)
    variants = (("baseline", np.nan), ("unoptimized", np.nan), ("optimized", 0.1), ("optimized", 0.3))
    lines = [
        EdcLine(
            **dict.fromkeys(EdcLine.LEVELS, level),
            **vars(ScorerKey(f"m{k} {variant} {theta}", "fr", f"m{k}", variant, theta, np.nan)),
            benchmark="LFW", recognizer="fr", convention="paper", fmr=0.1,
        )
        for k in range(20)
        for variant, theta in variants
    ]  # fmt: skip
    styles = curve_styles(lines)
    assert len(set(styles.values())) == 80
    assert len({(styles[line.scorer].colour, styles[line.scorer].marker) for line in lines}) == 20
    assert len({styles[line.scorer].dashes for line in lines}) == 4


def test_reasons_that_differ_in_a_number_are_told_once() -> None:
    reasons = ["647 of 800 draws have no value", "5 of 800 draws have no value", "no draws", "no draws", "9 errors"]
    assert merged(reasons) == ["5 to 647 of 800 draws have no value", "no draws", "9 errors"]


def marked_scorers(rows: list[AucRow], mark: str) -> list[str]:
    html = render_report(ReportData("t", "v", auc=rows))
    return [
        re.search(r'<th scope="row">(.*?)</th>', line)[1]
        for line in html.splitlines()
        if re.search(rf'class="n {mark}"', line)
    ]


def test_one_leader_is_the_best_and_several_are_tied() -> None:
    rows = [auc_row("a", 0.012, is_leading=True), auc_row("b", 0.013), auc_row("oracle", 0.001)]
    assert marked_scorers(rows, "best") == ["a"]
    assert marked_scorers(rows, "tied") == []
    rows[1] = replace(rows[1], is_leading=True)
    assert marked_scorers(rows, "best") == []
    assert marked_scorers(rows, "tied") == ["a", "b"]
    # each benchmark on its own
    elsewhere = [auc_row("b", 0.5, is_leading=True, benchmark="XQLFW")]
    assert marked_scorers([auc_row("a", 0.1, is_leading=True), *elsewhere], "best") == ["a", "b"]


def test_what_is_no_interval_is_said_with_its_reason() -> None:
    few = auc_row("a", 0.001, auc_high=0.0042, interval="upper limit", reason="3 errors are too few", n_draws=2000)
    none = auc_row("b", 0.5, benchmark="XQLFW", fmr_achieved=1e-3, reason="40 identities are too few", n_draws=2000)
    undefined = auc_row("c", float("nan"), n_undefined=7, n_draws=2000)
    text = Page(render_report(ReportData("t", "v", auc=[few, none, undefined]))).text
    assert "a 1.0 at most 4.2 /" in text  # a has no row on XQLFW
    assert "b / 500.0 no interval" in text
    assert "c undefined no interval /" in text
    assert "Intervals: 95 %, 2,000 draws of pairs, seed 0. Up to 7 draws had no value" in text
    assert "3 errors are too few. 40 identities are too few." in text
    people = auc_row("b", 0.5, benchmark="XQLFW", unit="identities", n_draws=2000)
    text = Page(render_report(ReportData("t", "v", auc=[few, people]))).text
    assert (
        "Intervals on LFW: 95 %, 2,000 draws of pairs, seed 0. Intervals on XQLFW: 95 %, 2,000 draws of identities"
        in text
    )
    text = Page(render_report(ReportData("t", "v", auc=[few, none, undefined]))).text
    assert "FMR 0 (below 1/300)" in text
    assert text.count("below 1/") == 1


def test_a_table_is_saved_as_latex() -> None:
    rows = [
        auc_row("a_1", 0.0123, is_leading=True, auc_low=0.011, interval="interval", n_draws=2000),
        auc_row("b", 0.04, auc_high=0.05, interval="upper limit", reason="3 errors < 20", n_draws=2000),
        auc_row("b", 0.5, benchmark="X&Y"),
    ]
    (uri,) = re.findall(r"data:application/x-tex;base64,([^\"]+)", render_report(ReportData("t", "v", auc=rows)))
    text = base64.b64decode(uri).decode()
    assert r"a\_1 & \shortstack[r]{\textbf{12.3}\\{\scriptsize [11.0, 12.3]}} & / &  \\" in text
    assert r"b & \shortstack[r]{40.0\\{\scriptsize [$\leq$ 50.0]}} & 500.0 & 1.0 \\" in text
    assert r"convention paper, FMR 0.001, ArcFace R100, up to 95 \% discarded" in text
    assert (
        r"LFW 300 + 300; X\&Y 300 + 300. Intervals: 95 \%, 2,000 draws of pairs, seed 0. 3 errors \textless{} 20."
        in text
    )


@pytest.mark.parametrize(
    ("difference", "low", "high", "p_holm", "verdict"),
    [
        (-0.002, -0.003, -0.001, 0.01, "improves"),
        (-0.002, -0.003, -0.001, 0.06, "no clear difference"),  # among many comparisons
        (0.0005, -0.001, 0.002, 0.4, "no clear difference"),
        (0.0015, 0.001, 0.002, 0.01, "worsens"),
        (0.0015, float("nan"), float("nan"), float("nan"), "no interval"),
        (float("nan"), float("nan"), float("nan"), float("nan"), "undefined"),
    ],
)
def test_difference_in_words(difference: float, low: float, high: float, p_holm: float, verdict: str) -> None:
    row = DifferenceRow("LFW", FR, "paper", NEW, OLD, difference, low, high, p_holm=p_holm, n_draws=2000)
    text = Page(render_report(ReportData("t", "v", differences=[row]))).text
    assert f"{NEW} against {OLD}" in text
    assert re.search(rf"LFW {verdict} \S+ (no interval|\S+ to \S+) \S+", text)


EVIL = "<script>alert('x')</script>\"&$\\frac{"


def test_everything_printed_is_escaped() -> None:
    rows = auc_row(EVIL, 0.01, benchmark=EVIL, recognizer=EVIL, convention=EVIL)
    curve = np.array([0.0, 0.5])
    histogram = {"histogram_counts": [1, 2], "histogram_edges": [0.0, 0.5, 1.0]}
    html = render_report(
        ReportData(
            title=EVIL,
            code_version=EVIL,
            created=EVIL,
            settings={EVIL: {EVIL: [EVIL]}},
            stages=[StageRow(EVIL, 2, 1, {EVIL: 1}, 1.0)],
            models=[ModelRow(EVIL, EVIL, EVIL, EVIL)],
            labels=[
                LabelSummary(EVIL, 1e-3, 1e-3, [0.1], [0.2], n_images=2, n_without_pairs=1, mean_move=0, **histogram)
            ],
            edc=[EdcLine(*cell_key(EVIL, EVIL, EVIL, 1e-3), *[curve] * 8)],
            auc=[rows],
            differences=[DifferenceRow(EVIL, EVIL, EVIL, EVIL, EVIL, 0.0, -1.0, 1.0)],
            verification=[VerificationRow(EVIL, EVIL, 0.9, 0.1, 0.9, 1e-3, 0.2, 0.1, 3, 3)],
            similarities=[SimilarityHistogram(EVIL, EVIL, 0.2, [0, 0.5, 1], [1, 2], [2, 1])],
            correlations=[CorrelationRow(EVIL, EVIL, EVIL, -0.5, 10), CorrelationRow("x", EVIL, EVIL, -0.5, 10)],
            faces=[FaceStrip(EVIL, [FaceRow(EVIL, [Face(face(1, 0), 0.9, EVIL)])])],
            notes=[EVIL],
        )
    )
    page = Page(html)
    assert html.count("<script") == page.tags.count("script") == 1  # the page's own
    assert all("<script" not in svg for svg in svgs(html))
    assert page.text.count("<script>alert('x')</script>") > 25
    assert all(value.startswith("data:image/") for value in page.loads)


def test_empty_run_renders_and_says_what_is_missing() -> None:
    text = Page(render_report(ReportData("A run", "0.1.0"))).text
    for what in ("settings", "stages", "label optimization", "recogniser sanity", "benchmarks", "face strips"):
        assert f"Not part of this run: {what}." in text


def test_equal_data_give_equal_pages(data: ReportData, html: str) -> None:
    assert render_report(data) == html


def test_pictures_of_other_kinds_are_refused() -> None:
    strip = FaceStrip("q", [FaceRow("best", [Face(b"GIF89a", 0.5, "n1")])])
    with pytest.raises(FiqaRayError, match="picture 'n1' begins with b'GIF8': give PNG or JPEG"):
        render_report(ReportData("t", "v", faces=[strip]))


def test_each_benchmark_has_its_correlations() -> None:
    rows = [CorrelationRow("LFW", "a", "all", 0.25, 9), CorrelationRow("CFP-FP", "a", "all", 0.75, 8)]
    text = Page(render_report(ReportData("t", "v", correlations=rows))).text
    assert re.search(r"LFW Scorer all a 0\.25 n = 9 CFP-FP Scorer all a 0\.75 n = 8", text)


def method_rows(method: str, benchmark: str, own: float, optimized: float) -> list[AucRow]:
    """Areas of a method's own scores and of a regressor on optimized labels."""
    changes = {"method": method, "benchmark": benchmark}
    regressor = f"{method}, regressor on optimized labels"
    return [
        auc_row(regressor, optimized, variant="optimized", theta=0.1, **changes),
        auc_row(method, own, variant="baseline", **changes),
    ]


def test_first_sentence_answers_and_cells_show_the_change() -> None:
    rows = [*method_rows("a", "LFW", 0.03, 0.02), *method_rows("a", "CFP", 0.05, 0.06), auc_row("random", 0.1)]
    change = DifferenceRow(
        "LFW", FR, "paper", "a, regressor on optimized labels", "a", -0.01, -0.012, -0.008, 1e-3, 0.95,
        method="a", family="baseline", p_holm=0.01,
    )  # fmt: skip
    gain = replace(change, scorer_b="a, regressor on prior labels", family="unoptimized")
    text = Page(render_report(ReportData("t", "v", auc=rows, differences=[change, gain]))).text
    assert "Do optimized labels help? Yes for a." in text
    # own scores before optimized ones, the change below the area, the mean rank over both benchmarks
    assert re.search(r"Mean rank a 30\.0 .{1,40} 50\.0 .{1,40} 1\.5 a, regressor on optimized labels 20\.0", text)
    assert "−10.00 (−12.00 to −8.00)" in text


def test_labels_by_another_rule_have_their_own_answer_and_table() -> None:
    rows = method_rows("a", "LFW", 0.03, 0.02)
    rows.append(auc_row("a, regressor on eDifFIQA labels", 0.025, variant="ediff", method="a"))
    gain = DifferenceRow(
        "LFW", FR, "paper", "a, regressor on optimized labels", "a, regressor on prior labels", -0.01, -0.012, -0.008, 1e-3,
        0.95, method="a", theta=0.1, family="unoptimized", p_holm=0.01,
    )  # fmt: skip
    loss = replace(gain, scorer_a="a, regressor on eDifFIQA labels", theta=np.nan, difference=0.02, low=0.01, high=0.03)
    against = replace(gain, scorer_b=loss.scorer_a, family="ediff", difference=-0.005, low=-0.007, high=-0.003)
    lines = list(answer_lines(rows, [gain, loss, against]))
    assert lines[0] == "Do optimized labels help? Yes for a."
    assert lines[2] == "    against the regressor on labels by eDifFIQA's rule, 25.0: -5.0 [-7.0, -3.0], a clear gain"
    assert lines[3] == "Do labels by eDifFIQA's rule help? They harm a."
    assert next(iter(answer_lines(rows, [loss]))) == lines[3]
    page = render_report(ReportData("t", "v", auc=rows, differences=[gain, loss, against]))
    assert (
        "-10.0 [-12.0, -8.0], a clear gain; against the regressor on labels by eDifFIQA" in page
    )  # details in one line
    data = ReportData("t", "v", auc=rows, ediff=[EdiffSummary("a", 0.75, 1000, 201, 950, 0.625)])
    assert re.search(r"a\s+0\.75\s+1,000\s+201\s+950 \(95\.00 %\)\s+0\.625", Page(render_report(data)).text)


def test_without_comparisons_the_best_scores_are_named() -> None:
    rows = [auc_row("a", 0.012, is_leading=True), auc_row("b", 0.013)]
    text = Page(render_report(ReportData("t", "v", auc=rows))).text
    assert "Best on LFW: a (12.0)." in text
    rows[1] = replace(rows[1], is_leading=True)
    text = Page(render_report(ReportData("t", "v", auc=rows))).text
    assert "Best on LFW, not to be told apart: a (12.0), b (13.0)." in text


def test_a_chosen_theta_is_told_with_its_curve():
    def row(theta: float, area: float, gain: float, chosen: bool) -> ThetaRow:
        low, high = (gain - 0.004, gain + 0.004) if theta else (np.nan, np.nan)
        return ThetaRow("norm", theta, area, gain, low, high, chosen, "norm gains.", 40, 400, 900, 9000, 0.001, 0.2)

    text = Page(render_report(ReportData("t", "v", thetas=[row(0, 0.1, 0.0, False), row(0.3, 0.08, -0.02, True)]))).text
    assert text.count("norm gains.") == 1
    assert "Theta on held-out training people" in text
    assert re.search(r"norm\s+0\.3\s+80\.0\s+.20\.00\s+.24\.00 to .16\.00\s+chosen", text), text
