"""The documentation says what the code does, and its pictures are the ones the script draws."""

import math
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from docs.figures import network, pictures, targets
from sparsereg.commands.overrides import CONFIG
from sparsereg.model.basic_l0_blocks import (
    deterministic_gate,
    prob_nonzero,
    sample_hard_concrete,
)
from sparsereg.model.googlenet import GoogleNet
from sparsereg.sparsity.size import measure

ROOT = Path(__file__).parents[1]
METHOD = " ".join((ROOT / "docs" / "method.md").read_text(encoding="utf-8").split())
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "README.md"]
RECIPES = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
PICTURES = ("hard_concrete.svg", "inception_block.svg")


def without_code(markdown: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", markdown, flags=re.DOTALL)


def formulas(markdown: str) -> list[str]:
    return re.findall(r"\$\$.+?\$\$|\$[^$\n]+\$", without_code(markdown), flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_are_there(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"\b(?:tests|benchmarks|experiments|sparsereg)/[\w/]+\.(?:py|yaml)", text)
    assert [name for name in named if not (ROOT / name).exists()] == []
    links = re.findall(r"\[(\w+\.py)\]\(([\w/.]+\.py)\)", text)
    assert [link for link in links if Path(link[1]).name != link[0]] == []


def test_the_stated_threshold_is_where_gates_open():
    threshold = torch.tensor(math.log(1 / 11), dtype=torch.float64)
    assert deterministic_gate(threshold - 1e-9) == 0 < deterministic_gate(threshold + 1e-9)
    assert rf"\log \frac{{1}}{{11}} \approx {threshold:.3f}" in METHOD
    probability = prob_nonzero(threshold).item()
    assert probability == pytest.approx(1 / (1 + 11 ** (1 / 3)))
    assert rf"\frac{{1}}{{1 + 11^{{1/3}}}} \approx {probability:.3f}" in METHOD


@pytest.mark.parametrize("d", [0.5, 0.05])
def test_the_table_of_initial_values(d):
    log_alpha = math.log((1 - d) / d)
    exact = torch.tensor(log_alpha, dtype=torch.float64)
    p = prob_nonzero(exact).item()
    at_zero, at_one = pictures.point_masses(log_alpha)
    assert at_zero == pytest.approx(1 - p)
    gate = deterministic_gate(exact).item()
    numbers = f"{log_alpha:.4g} | {at_zero:.4f} | {at_one:.4f} | {gate:.4g} | {p:.4f}"
    assert f"| {d} | {numbers} | {p * (1 - p):.4f} |" in METHOD


@pytest.mark.parametrize("d, l_c0", [(0.5, 0.8318), (0.05, 0.9895)])
def test_l_c0_of_a_new_network_is_the_stated_one(d, l_c0):
    torch.manual_seed(0)
    net = GoogleNet(droprate_init=d)
    assert prob_nonzero(net.qz_loga()).mean().item() == pytest.approx(l_c0, abs=2e-4)
    assert f"8 blocks, {len(net.gates)} layers, {len(net.qz_loga())} gates" in METHOD


def test_the_stated_parameters_are_those_of_the_cut_network():
    def without(branch, channels):
        net = GoogleNet(droprate_init=0.01)
        net.gates[f"block1/{branch}"].qz_loga.data[:channels] = -10
        size = measure(net, (3, 32, 32))
        return size["dense_params"] - size["params"], size["dense_params"]

    assert f"The dense network has {without('1x1', 0)[1]:,} parameters" in METHOD
    assert f"{without('3x3', 1)[0]} in all" in METHOD
    assert f"5×5 branch of the picture is {without('5x5', 8)[0]:,} parameters" in METHOD


def test_dividing_by_the_temperature_moves_the_threshold_to_one_half():
    log_alpha = 2 / 3 * torch.tensor(math.log(1 / 11), dtype=torch.float64)
    assert torch.sigmoid(log_alpha / (2 / 3)).item() == pytest.approx(1 / 12)
    assert prob_nonzero(log_alpha).item() == pytest.approx(1 / 2)


@pytest.mark.parametrize("log_alpha", pictures.LOG_ALPHAS)
def test_density_and_point_masses_make_one(log_alpha):
    z = np.linspace(0, 1, 20_001)
    inside = np.trapezoid(pictures.density(z, log_alpha), z)
    assert inside + sum(pictures.point_masses(log_alpha)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("log_alpha", pictures.LOG_ALPHAS)
def test_density_and_point_masses_match_samples(log_alpha):
    uniform = torch.linspace(0, 1, 100_002, dtype=torch.float64)[1:-1]
    z = sample_hard_concrete(torch.tensor([float(log_alpha)]), uniform).numpy()
    at_zero, at_one = pictures.point_masses(log_alpha)
    assert (z == 0).mean() == pytest.approx(at_zero, abs=1e-4)
    assert (z == 1).mean() == pytest.approx(at_one, abs=1e-4)
    inside = z[(z > 0) & (z < 1)]
    height, edges = np.histogram(inside, bins=50, range=(0, 1))
    middle = (edges[1:] + edges[:-1]) / 2
    expected = pictures.density(middle, log_alpha)
    np.testing.assert_allclose(height / len(z) * 50, expected, rtol=0.01, atol=2e-3)


def test_the_script_draws_the_pictures_of_this_folder(tmp_path):
    pictures.main(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(PICTURES)
    for name in PICTURES:
        stored = (ROOT / "docs" / name).read_text(encoding="utf-8")
        if f"Matplotlib v{matplotlib.__version__}," not in stored:
            pytest.skip("another matplotlib drew the stored pictures, its glyphs may differ")
        assert (tmp_path / name).read_text(encoding="utf-8") == stored


def test_the_tables_of_the_cut_and_of_targets_come_from_the_records(tmp_path, capsys):
    network.main(tmp_path)
    tables = {
        "compact.md": capsys.readouterr().out.splitlines(),
        "targets.md": targets.digits_rows(targets.RECORDS),
    }
    for page, rows in tables.items():
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        assert len(rows) >= 5 and all(row in text for row in rows), page
    stored = (ROOT / "docs" / "network.svg").read_text(encoding="utf-8")
    if f"Matplotlib v{matplotlib.__version__}," in stored:
        assert (tmp_path / "network.svg").read_text(encoding="utf-8") == stored


def test_the_benchmarks_table_is_what_was_printed():
    """Sparsity, batch and the three ratios, from the output that is kept beside the table."""
    table = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    blocks = (ROOT / "benchmarks" / "compact.txt").read_text(encoding="utf-8").split("sparsity ")
    for block in blocks[1:]:
        rows = [re.split(r"\s{2,}", line.strip()) for line in block.splitlines()[2:] if line]
        ratios = {(batch, name): (dense, masked) for batch, name, _, dense, masked in rows}
        for batch in ("1", "128"):
            dense, masked = ratios[batch, "compact folded"]
            rounded = ratios[batch, "compact folded, round_to=8"][0]
            cells = [block.split(",")[0], batch, dense, masked, rounded]
            assert f"| {' | '.join(cells)} |" in table


def test_the_expected_costs_are_what_was_printed():
    table = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    printed = (ROOT / "benchmarks" / "expected_cost.txt").read_text(encoding="utf-8")
    pattern = r"networks ([\d,]+ ± [\d,]+), expected ([\d,]+) \(([+-][\d.]+) standard"
    rows = re.findall(pattern, printed)
    assert len(rows) == 4 and all(f"| {' | '.join(row)} |" in table for row in rows)


def test_the_script_draws_the_same_twice(tmp_path):
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        pictures.main(tmp_path / folder)
    for name in PICTURES:
        first, second = ((tmp_path / f / name).read_bytes() for f in ("first", "second"))
        assert first == second


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page):
    text = without_code(page.read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text)
    targets = [(a or b).split("#")[0] for a, b in targets if "://" not in a + b]
    missing = [t for t in targets if t and not (page.parent / t).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_github_renders_the_formulas(page):
    """GitHub's Markdown eats a backslash before punctuation and forbids some macros."""
    for formula in formulas(page.read_text(encoding="utf-8")):
        assert not re.search(r"\\[^a-zA-Z]|\\operatorname|}_|\*", formula), formula
        assert formula.count("{") == formula.count("}"), formula
        assert len(re.findall(r"\\left\b", formula)) == len(re.findall(r"\\right\b", formula))


def test_every_setting_and_option_is_on_the_page():
    """The keys of train.yaml in the table of keys, and the names of each group's files."""
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    for key in OmegaConf.load(CONFIG / "train.yaml"):
        assert key in ("defaults", "hydra") or re.search(rf"^\| .*`{key}`", page, re.MULTILINE), key
    for folder in (path for path in CONFIG.iterdir() if path.is_dir() and path.name != "hydra"):
        row = re.search(rf"^\| .*`{folder.name}`.*", page, re.MULTILINE)
        options = [path.stem for path in folder.glob("*.yaml")]
        named = folder.name in ("experiment", "recipe")  # on the page of recipes
        text = RECIPES if named else row[0]
        assert row and all(option in text for option in options), folder.name
