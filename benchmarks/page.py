"""The page of ``corit serve`` in a headless browser: files judged, a heatmap opened, a report saved, at two widths.

Needs the package playwright and a Chromium. Prints what the page said, and every console message and request that
should not be; leaves pictures of the page in a folder to be looked at.

    corit serve --port 8123 & python benchmarks/page.py http://127.0.0.1:8123 --chromium /usr/bin/chromium --to shots
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from playwright.sync_api import BrowserContext, Page, sync_playwright

EXAMPLES = Path(__file__).parent.parent / "examples"
FILES = ("fake/face-1208.jpg", "fake/face-4444.jpg", "real/astronaut.png", "real/chelsea.png", "real/rocket.jpg")


def visit(context: BrowserContext, address: str, token: str | None, to: Path, name: str) -> list[str]:
    """Go through the page as a person does; what went wrong."""
    wrong: list[str] = []
    page: Page = context.new_page()
    page.on(
        "console", lambda m: wrong.append(f"console {m.type}: {m.text}") if m.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: wrong.append(f"script: {error}"))
    own = (address, "data:", "blob:")
    page.on("request", lambda r: None if r.url.startswith(own) else wrong.append(f"request elsewhere: {r.url}"))
    page.goto(address)
    page.screenshot(path=to / f"{name}-empty.png", full_page=True)
    begun = time.monotonic()
    page.set_input_files("#files", [str(EXAMPLES / file) for file in FILES])
    if token is not None:
        page.fill("#token", token)
        page.screenshot(path=to / f"{name}-token.png", full_page=True)
        page.press("#token", "Enter")
    for number in range(1, len(FILES) + 1):
        page.wait_for_selector(f".result:nth-child({number}) .called", timeout=300_000)
    page.wait_for_selector("#progress", state="hidden")
    print(f"{name}: five verdicts after {time.monotonic() - begun:.1f} s")
    for card in page.query_selector_all(".result"):
        print("  ", " | ".join(card.query_selector(".found").inner_text().split("\n")))
    print("   status:", page.inner_text("#status"))
    page.screenshot(path=to / f"{name}-judged.png", full_page=True)
    page.click(".result:nth-child(3) .heat")
    page.wait_for_selector(".result:nth-child(3) .pair.sliding input", timeout=300_000)
    page.keyboard.press("ArrowRight")  # the slider has the focus
    moved = page.evaluate("document.querySelector('.pair').style.getPropertyValue('--at')")
    print("   the slider is at", moved, "after a key:", page.inner_text("#status"))
    page.screenshot(path=to / f"{name}-heatmap.png", full_page=True)
    with page.expect_download(timeout=300_000) as saved:
        page.click(".result:nth-child(3) .save")
    report = to / f"{name}-{saved.value.suggested_filename}"
    saved.value.save_as(report)
    print("   saved", report.name, f"{report.stat().st_size / 1e6:.2f} MB")
    with page.expect_download(timeout=600_000) as saved:
        page.click("#save-all")
    saved.value.save_as(to / f"{name}-{saved.value.suggested_filename}")
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    if wide > 0:
        wrong.append(f"the page is {wide} px wider than the window")
    page.close()
    return wrong


def main(address: str, chromium: str | None, token: str | None, to: Path) -> None:
    to.mkdir(parents=True, exist_ok=True)
    wrong = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width, height, scheme in ((390, 844, "light"), (1280, 900, "light"), (1280, 900, "dark")):
            shown = {"viewport": {"width": width, "height": height}, "color_scheme": scheme, "accept_downloads": True}
            context = browser.new_context(**shown, has_touch=width < 500)
            wrong += visit(context, address, token, to, f"{width}-{scheme}")
            context.close()
        browser.close()
    print("nothing went wrong" if not wrong else "\n".join(wrong))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("--chromium", help="the browser's program, if not the one that playwright installs")
    parser.add_argument("--token")
    parser.add_argument("--to", type=Path, default=Path("shots"))
    arguments = parser.parse_args()
    main(arguments.address.rstrip("/"), arguments.chromium, arguments.token, arguments.to)
