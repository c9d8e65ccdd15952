"""Takes the pictures of the server's page, docs/page-light.png and docs/page-dark.png: a real chat.

./litert-lm-cli serve demo &
venv/bin/python -m docs.photograph [URL]
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

DOCS = Path(__file__).resolve().parent
URL = "http://127.0.0.1:9379"
TALK = (
    "Write a haiku about rain.",
    "What is the capital of France?",
    "Write a Python function that reverses a string, and explain it in a short list.",
)
SMALL = {"width": 390, "height": 780}
LARGE = {"width": 1180, "height": 760}


def ask(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Message", exact=True).fill(text)
    page.keyboard.press("Enter")
    expect(page.locator("#messages")).to_have_attribute("aria-busy", "false", timeout=120_000)


def main(url: str = URL) -> None:
    with sync_playwright() as playwright:
        path = shutil.which("chromium-headless-shell") or shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=path)
        page = browser.new_page(viewport=LARGE, color_scheme="light")  # type: ignore[arg-type]
        page.goto(url)
        expect(page.locator("#model")).to_be_enabled()
        page.keyboard.press("Control+.")
        page.get_by_label("Temperature").fill("0")
        page.get_by_role("button", name="Use for new chats").click()
        page.keyboard.press("Escape")
        for text in TALK:
            page.get_by_role("button", name="New chat").click()
            ask(page, text)
        page.locator("#toast").wait_for(state="hidden")
        page.mouse.move(0, 0)
        page.screenshot(path=DOCS / "page-light.png")
        page.emulate_media(color_scheme="dark")
        page.set_viewport_size(SMALL)  # type: ignore[arg-type]
        page.wait_for_timeout(500)  # the chats slide away
        page.screenshot(path=DOCS / "page-dark.png")
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
