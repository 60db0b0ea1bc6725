"""An animated picture of the explorer, for the README.

python -m tests.browser.film PAGE.html OUT.webp [HASH]     (HASH: the state in the page's address, such as "word=1.2&under=step")
"""

import base64
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.browser.conftest import Browser, start

WIDTH, HEIGHT, FRAMES = 1200, 1000, 14


def film(page: Path, output: Path, state: str = "") -> None:
    """Writes some steps from the first to the last and then their mean, 840 pixels wide."""
    driver = start(tempfile.mkdtemp())
    try:
        browser = Browser(driver)
        driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
        browser.open(f"{page.resolve().as_uri()}#{state}", WIDTH, HEIGHT)
        total = browser.run("return mean")
        shown = sorted({round(i * (total - 1) / (FRAMES - 1)) for i in range(FRAMES)}) + [total]
        frames = []
        for frame in shown:
            browser.run("show(arguments[0])", frame)
            browser.driver.execute_async_script("setTimeout(arguments[0], 200)")  # until the bars have moved
            shot = driver.execute_cdp_cmd("Page.captureScreenshot", {})["data"]
            picture = Image.open(io.BytesIO(base64.b64decode(shot))).convert("RGB")
            frames.append(picture.resize((840, 840 * HEIGHT // WIDTH), Image.Resampling.LANCZOS))
    finally:
        driver.quit()
    durations = [350] * (len(frames) - 1) + [2500]
    frames[0].save(output, save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=70, method=6)
    print(f"{output}: {output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    film(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:4])
