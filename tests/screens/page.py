"""Make the README's picture of the page: the demo model answers in a real browser, seen while it writes.

    python -m tests.screens.page [FILE]      # tests/screens/page.png unless said otherwise

The model's passes are let through one by one, so that the picture is of the same token each time.
"""

from __future__ import annotations

import re
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

import mixq
from tests.server.page.conftest import CHROMIUM, WIDE, ended, open_page, send
from tests.server.running import Gate, running

BEFORE = ("Who was president of the United States in 1996?", "What is 25 - (4 * 2) + 3?")
FIRST = (
    "Write a Python function that squares a number.",
    "Jane is faster than Joe. Joe is faster than Sam. Is Sam faster than Jane?",
)
LAST = "Tom is a 25 year old baker from Oslo. Give this as JSON."
PASSES = 26
COLOURS = 128


def picture(page: Page, gate: Gate) -> bytes:
    """Talk, and take the picture in the middle of the last reply."""
    page.get_by_label("Temperature").fill("0")
    for question in BEFORE:
        page.get_by_role("button", name="New", exact=True).click()
        send(page, question)
        ended(page)
    page.get_by_role("button", name="New", exact=True).click()
    for question in FIRST:
        send(page, question)
        ended(page)
    gate.close()
    send(page, LAST)
    gate.wait()
    page.mouse.move(640, 560)
    for done in range(1, PASSES):
        gate.let(1)  # each token is seen before the next, so that older flares have faded
        if done > 1:
            expect(page.locator("#heat-tokens")).to_have_text(re.compile(rf"^({done - 1}|{done}|{done + 1}) tokens"))
    shot = page.screenshot()
    gate.open()
    ended(page)
    return shot


def main(path: Path) -> None:
    """Write the picture, with few colours so that it is small."""
    model = mixq.load(device="sim", vram=60_000_000, sequences=2)
    with running(model, name="demo") as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport=WIDE)  # type: ignore[arg-type]
        open_page(page, server.url)
        shot = picture(page, Gate(model))
        browser.close()
    image = Image.open(BytesIO(shot)).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("page.png"))
