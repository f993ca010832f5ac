"""report.py: what it writes, its pictures, and what it says of mistakes."""

import csv
import os
import re
import shutil
from html.parser import HTMLParser

import pytest
import yaml
from conftest import ROOT, assert_one_line, run_process
from run_folders import COUNTS, METRICS, make_run, write_csv

from sparsereg.runs.find import find_runs
from sparsereg.runs.pictures import (
    PUBLISHED,
    accuracy_picture,
    channels_picture,
    curves_picture,
    gates_picture,
    pareto_front,
    read_csv,
    run_pictures,
)
from sparsereg.runs.table import group_seeds


class Tags(HTMLParser):
    """Every tag that was opened is closed, and nothing is loaded from elsewhere."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.sources = [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_command(command, tmp_path):
    """Two runs and their seeds, one unfinished and one broken run: all are said, exit code 0."""
    for seed in (1, 2):
        make_run(tmp_path / "a<b" / f"version_{seed}", {"seed": seed}, test_acc=(80 + seed) / 100)
    make_run(tmp_path / "version_3", {"lambda_l0": 2.0}, sparsity=0.75)
    (make_run(tmp_path / "version_4") / "summary.json").unlink()
    (make_run(tmp_path / "version_5") / "config.yaml").write_text("[")
    (tmp_path / "a<b" / "version_1" / "metrics.csv").write_text("step,L_C0\n1\n")
    out = tmp_path / "out"
    result = command("report.py", f"runs={tmp_path}", f"out={out}", "pictures=2")
    assert result.code == 0, result.err
    assert "1 unfinished: version_4" in result.out and "version_5 (broken)" in result.out
    assert {path.name for path in out.iterdir()} == {"report.html", "report.md", "report.csv"}
    assert "| 81.50 ± 0.71 |" in (out / "report.md").read_text()
    with open(out / "report.csv") as file:
        assert [row["test_acc"] for row in csv.DictReader(file)] == ["0.81", "0.82", "0.89"]

    page = (out / "report.html").read_text()
    sources = Tags(page).sources
    images = [source for source in sources if not source.startswith("#")]
    assert len(images) == 3, "of the run whose curves can be read"
    assert all(image.startswith("data:image/png;base64,") for image in images)
    assert page.count("<svg") == 1, "GoogleNet on cifar10"
    assert {source for source in sources if source.startswith("#row")} == {"#row-1", "#row-2"}
    assert page.count('href="#row-1"') == 3, "in the table, at the point, at its number"
    assert page.count("<details>") == 2, "unfinished, broken"
    assert "Runs with gates, the first 2 of 3" in page and "<h3>a&lt;b/version_2</h3>" in page
    assert "a&lt;b/version_1: no pictures: metrics.csv: line 2 is cut off" in page
    assert "3 finished, 1 unfinished, 1 broken" in page


def test_a_trained_run(command, trained, tmp_path):
    folder = trained["gated"].parents[1]
    counts = read_csv(folder / "qz_loga.csv")
    assert [row["step"] for row in counts] == ["3"]
    bins = {edge: int(n) for edge, n in counts[0].items() if edge != "step"}
    assert sum(bins.values()) == 832 and bins["-0.5"] + bins["0.0"] == 832, "ln α starts at 0"
    assert not (trained["ungated"].parents[1] / "qz_loga.csv").exists()
    roots = ",".join(str(path.parents[1]) for path in trained.values())
    result = command("report.py", f"runs=[{roots}]", f"out={tmp_path}")
    assert result.code == 0, result.err
    assert "lambda_l0=no gates" in result.out and str(trained["gated"].parent) in result.out
    page = (tmp_path / "report.html").read_text()
    images = [source for source in Tags(page).sources if not source.startswith("#")]
    assert len(images) == 2, "one epoch: L_C0 by step and the channels, no picture of ln α"
    [gated] = find_runs([str(folder)])
    assert gated.results["dense_params"] == 260_650 and gated.settings["data"] == "Digits"


def test_each_network_and_data_set_has_its_own_front(command, tmp_path):
    """By the network's own name; a point alone has no picture unless published ones are beside."""
    resnet = {"model": {"_target_": "sparsereg.networks.new_network", "name": "resnet18"}}
    for n, config in enumerate([{}, {"lambda_l0": 2.0}, resnet, resnet | {"lambda_l0": 2.0}]):
        dense_macs = {} if "model" not in config else {"dense_macs": 555_422_720}
        make_run(tmp_path / f"version_{n}", config, sparsity=n / 10, **dense_macs)
    digits = {"data": {"_target_": "sparsereg.data.Digits", "name": None}}
    make_run(tmp_path / "version_9", digits, dense_macs=1)
    out = tmp_path / "out"
    result = command("report.py", f"runs={tmp_path}", f"out={out}", "pictures=1")
    assert result.code == 0 and "model=resnet18" in result.out, result.err
    page = (out / "report.html").read_text()
    titles = re.findall("<h2>(.*?)</h2>", page)
    assert titles[:3] == ["GoogleNet on cifar10", "resnet18 on cifar10", "GoogleNet on Digits"]
    assert page.count("<svg") == 2 and "new_network" not in page
    google, resnet = page.split("<h2>")[1:3]
    assert "The same in all rows: data=Cifar · data.name=cifar10 · model=GoogleNet" in google
    rows = [re.findall('<span class="what">(.*?)</span>', part) for part in (google, resnet)]
    assert rows == [["lambda_l0=0.5", "lambda_l0=2"]] * 2
    assert re.findall('<a href="#row-([0-9])">', resnet) == ["3", "5"], "as in the terminal"
    narrow = re.findall("<th>([^<]+)", google.partition("</tr>")[0])
    assert narrow == ["what differs", "test, %", "sparsity", "params"]


def test_optunas_solutions_are_rows(command, tmp_path):
    for n, accuracy in ((0, 0.9), (1, 0.8), (2, 0.7)):
        folder = tmp_path / "search" / "lightning_logs" / f"version_{n}"
        make_run(folder, {"lambda_l0": n + 1.0}, val_acc=accuracy, sparsity=0.1 * n)
    solutions = [
        {"params": {"lambda_l0": n + 1.0}, "values": [v, 0.1 * n]} for n, v in ((0, 0.9), (2, 0.7))
    ]
    file = tmp_path / "search" / "optimization_results.yaml"
    file.write_text(yaml.dump({"name": "optuna", "solutions": solutions}))
    runs = find_runs([str(tmp_path)])
    assert [run.is_solution for run in runs] == [True, False, True]
    result = command("report.py", f"runs={tmp_path}", f"out={tmp_path / 'out'}", "pictures=0")
    assert result.out.count("optuna=solution") == 2 and result.code == 0
    file.write_text("name: optuna\nbest_params: {lambda_l0: 1.0}\nbest_value: 0.9\n")
    assert not any(run.is_solution for run in find_runs([str(tmp_path)]))
    file.write_text("[")
    [broken] = [run for run in find_runs([str(tmp_path)]) if run.status == "broken"]
    assert "optimization_results.yaml" in broken.why


def test_it_starts_without_torch(tmp_path):
    make_run(tmp_path / "version_0")
    code = "import runpy, sys; runpy.run_path('report.py', run_name='__main__'); "
    code += "sys.exit(3 if {'torch', 'pytorch_lightning'} & set(sys.modules) else 0)"
    (tmp_path / "start.py").write_text(code)
    arguments = (f"runs={tmp_path}", f"out={tmp_path / 'out'}", "pictures=0")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = run_process(str(tmp_path / "start.py"), *arguments, cwd=ROOT, env=environment)
    assert result.code == 0, result.err
    assert "<img" not in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    "argument, words",
    [
        ("runs=nowhere", ["runs=nowhere", "does not exist"]),
        ("runs=sparsereg/config", ["runs=sparsereg/config", "no run"]),
        ("runs=null", ["runs=null", "a folder"]),
        ("runs=[]", ["runs=[]"]),
        ("runs=3", ["runs=3"]),
        ("runz=outputs", ["runz", "did you mean 'runs'?"]),
        ("+run=outputs", ["+run=outputs", "did you mean 'runs'?"]),
        ("data=digits", ["unknown setting 'data'"]),
        ("pictures=-1", ["pictures=-1"]),
        ("pictures=many", ["pictures=many"]),
        ("out=null", ["out=null"]),
        ("out=README.md", ["out=README.md cannot be written"]),
        ("results=3", ["results=3"]),
        ("results=nowhere", ["results=nowhere", "notes.yaml"]),
    ],
)
def test_mistakes(command, monkeypatch, tmp_path, argument, words):
    monkeypatch.chdir(ROOT)
    runs = [] if "run" in argument else [f"runs={make_run(tmp_path / 'version_0')}"]
    out = [] if argument.startswith("out") else [f"out={tmp_path / 'out'}"]
    assert_one_line(command("report.py", *runs, *out, argument), *words)


def test_pareto_front():
    points = [(0.0, 80), (0.0, 79), (0.3, 81), (0.5, 70), (0.4, 65), (0.9, 20), (0.5, 69)]
    assert pareto_front(points) == [(0.3, 81), (0.5, 70), (0.9, 20)]


def test_the_accuracy_picture_shows_means_front_and_published_points(tmp_path):
    for seed, accuracy in ((1, 0.8), (2, 0.9)):
        make_run(tmp_path / f"version_{seed}", {"seed": seed}, test_acc=accuracy)
    rows = group_seeds(find_runs([str(tmp_path)]))
    figure = accuracy_picture({"ours": rows})
    points, *_, front, published = (line.get_xydata().tolist() for line in figure.axes[0].lines)
    assert points[0] == pytest.approx((0.25, 85)) and front == [pytest.approx((0.25, 85))]
    assert [100 * x for x, _ in published] == pytest.approx([0, 0, 6, 10, 22, 39, 55, 64, 81.5])
    assert published[3][1] == 90.00 and published[8][1] == 80.22
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [
        "ours",
        "Pareto front of these runs",
        "published (sparsity counted differently)",
    ]

    rows[0].runs[0].results["dense_macs"] = rows[0].runs[1].results["dense_macs"] = 19_911_936
    assert len(accuracy_picture({"ours": rows}).axes[0].lines) == len(figure.axes[0].lines) - 1


def test_the_pictures_of_a_run_show_its_numbers(tmp_path):
    [run] = find_runs([str(make_run(tmp_path / "version_0"))])
    curves, channels, gates = run_pictures(run).values()
    l_c0, sparsity = (line.get_xydata().tolist() for line in curves.axes[0].lines)
    assert l_c0 == [[0, 0.8], [10, 0.5]] and sparsity == [[9, 0.1], [19, 0.25]]
    assert [bar.get_height() for bar in channels.axes[0].patches] == [16, 3, 0, 8]
    [mesh] = gates.axes[0].collections[:1]
    assert mesh.get_array().tolist() == [[0, 0.5], [1, 0], [0, 0.25], [0, 0.25]]
    for figure in (curves, channels, gates):
        assert figure.axes[0].get_xlabel() and figure.axes[0].get_ylabel()


def test_layers_that_are_no_branches_are_drawn():
    ax = channels_picture({"layer1.0": 5, "layer2.0": 7}).axes[0]
    assert [bar.get_height() for bar in ax.patches] == [5, 7]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["layer1.0", "layer2.0"]


@pytest.mark.parametrize("draw, rows", [(curves_picture, METRICS), (gates_picture, COUNTS)])
def test_one_row_is_enough_for_a_picture(tmp_path, draw, rows):
    write_csv(tmp_path / "rows.csv", rows[:1])
    draw(read_csv(tmp_path / "rows.csv")).savefig(tmp_path / "a.png")


def test_the_published_points_are_in_percent_and_shares():
    rows = [row for row in read_csv(PUBLISHED) if row["table"] == "googlenet"]
    assert [row["test"] for row in rows][:4] == ["89.57", "89.70", "87.87", "90.00"]
    assert [row["L_C0"] for row in rows if row["L_C0"]] == ["0.8283", "0.5902", "0.3151"]


def test_docs_results_is_what_the_command_writes(command, tmp_path):
    import matplotlib

    shutil.copytree(ROOT / "docs" / "results", tmp_path / "results")
    result = command("report.py", f"results={tmp_path / 'results'}")
    assert result.code == 0, result.err
    for page in ("results.md", "beside-other-tools.md"):
        assert (tmp_path / page).read_bytes() == (ROOT / "docs" / page).read_bytes()
    stored = (ROOT / "docs/results.svg").read_text(encoding="utf-8")
    if f"Matplotlib v{matplotlib.__version__}," in stored:
        assert (tmp_path / "results.svg").read_text(encoding="utf-8") == stored


def test_one_more_record_is_one_more_section(command, tmp_path):
    results = shutil.copytree(ROOT / "docs" / "results", tmp_path / "results")
    shutil.copy(results / "tried.csv", results / "published_short.csv")
    assert command("report.py", f"results={results}").code == 0
    before, after = (
        re.findall("^## (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        for page in (ROOT / "docs" / "results.md", tmp_path / "results.md")
    )
    assert len(before) >= 3 and after == [*before, "published short"]
    (results / "published_short.csv").write_text((results / "tried.csv").read_text()[:-99])
    assert_one_line(command("report.py", f"results={results}"), "published_short.csv", "line")
