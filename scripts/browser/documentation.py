"""Opens every page of the built documentation in Chromium, from its files and without a network, and searches it.

Run by scripts/screenshots; writes docs/images/documentation.png.  Exit code 1, with a message, if a page
requests anything but files beside it, lacks a picture, has an error in a script, or if the search finds nothing.
"""

import sys
from pathlib import Path

from playwright.sync_api import Page
from screenshots import BROKEN_PICTURES, IMAGES, ROOT, start_chromium, wait_for_element

SITE = ROOT / ".site"
SOUGHT, FOUND = "effective weight decay", "figures.html"


def main() -> None:
    """Checks all pages, then takes a screenshot of the first."""
    if not (SITE / "index.html").exists():
        sys.exit(f"{SITE} has no documentation; scripts/docs builds it")
    with start_chromium() as browser:
        page = browser.new_context(viewport={"width": 1280, "height": 1000}, offline=True).new_page()
        asked: list[str] = []
        broken: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("requestfailed", lambda request: broken.append(request.url))
        page.on("pageerror", lambda error: broken.append(str(error)))
        built = sorted(SITE.rglob("*.html"))
        for path in built:
            check_page(page, path)
        check_search(page)
        if elsewhere := [url for url in asked if not url.startswith((SITE.as_uri(), "data:", "about:"))]:
            sys.exit(f"the documentation requests {', '.join(elsewhere)}")
        if broken:
            sys.exit(f"broken: {', '.join(broken)}")
        print(f"opened {len(built)} pages, none of which needs a network")
        page.goto((SITE / "index.html").as_uri())
        page.screenshot(path=IMAGES / "documentation.png", animations="disabled")
        print(f"wrote {(IMAGES / 'documentation.png').relative_to(ROOT)}")


def check_page(page: Page, path: Path) -> None:
    """Opens one page and checks its heading and pictures."""
    page.goto(path.as_uri())
    wait_for_element(page.locator("h1"), f"the heading of {path.relative_to(SITE)}")
    if page.locator("img").evaluate_all(BROKEN_PICTURES):
        sys.exit(f"{path.relative_to(SITE)} lacks a picture")


def check_search(page: Page) -> None:
    """Searches for a page. In a site opened from files, a frame replaces the search worker."""
    page.goto((SITE / "index.html").as_uri())
    box = page.locator("input.md-search__input")
    box.click()
    page.wait_for_function("typeof __index !== 'undefined'")
    box.press_sequentially(SOUGHT, delay=20)
    found = page.locator(f".md-search-result__link[href*='{FOUND}']")
    wait_for_element(found, f"{FOUND} among what search finds for {SOUGHT!r}")


if __name__ == "__main__":
    main()
