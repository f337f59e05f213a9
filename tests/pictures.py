"""Pictures of the tutorial's report for the documents: `make pictures` (Chromium, a minute)."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from paretoserve import paths

IMAGES = paths.ROOT / "docs" / "images"
SWEEP = paths.CONFIG / "sweeps" / "tutorial.yaml"
OPENED = {"model": "QWEN3_32B", "system": "b200_sxm", "workload": "code", "tpot_limit_ms": 40}
CHARTS = ("frontier", "time", "memory", "provenance")
COLORS = 128  # of a picture; with more it is twice as large and looks the same


def main() -> None:
    """Answer the tutorial's sweep, open its report, and save what documents show of it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "paretoserve", "cli", "exp", "--yaml_path", str(SWEEP)]
        subprocess.run([*command, "--save_dir", folder], check=True, stdout=subprocess.DEVNULL)
        [report] = Path(folder).glob("tutorial*/report.html")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            page = browser.new_page(viewport={"width": 1100, "height": 1000})
            page.goto(report.as_uri())
            page.locator("html[data-ready]").wait_for(state="attached")
            page.screenshot(path=IMAGES / "report.png")
            question = page.evaluate(
                """wanted => { const table = report.tables.verdicts;
                return table.all().find(row => Object.entries(wanted).every(
                    ([name, value]) => table.get(row, name) === value)); }""",
                OPENED,
            )
            page.locator(f"#q{question} button.open, a[href='#q{question}']").first.click()
            for chart in CHARTS:
                page.locator(f'[data-chart="{chart}"]').scroll_into_view_if_needed()
                page.locator(f'[data-chart="{chart}"][data-drawn]').wait_for()
            page.add_style_tag(content="nav { display: none }")
            page.locator("[data-question]").screenshot(path=IMAGES / "report_details.png")
            browser.close()
    for picture in ("report.png", "report_details.png"):
        image = Image.open(IMAGES / picture).convert("RGB")
        reduced = image.quantize(COLORS, dither=Image.Dither.NONE)
        reduced.save(IMAGES / picture, optimize=True)


if __name__ == "__main__":
    main()
