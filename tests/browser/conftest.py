"""A headless Chromium for tests of pages. Without one, or without selenium, these tests are skipped, with the reason."""

import shutil
import time
from pathlib import Path

import pytest

NO_BROWSER = "needs Debian's packages chromium and chromium-driver, and selenium from requirements-test.txt"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip


class Browser:
    """A window of some size that shows one page."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, page: Path | str, width: int = 1200, height: int = 900, dark: bool = False, touch: bool = False) -> None:
        """Shows a file, with nothing left of the page before, and waits until it has drawn itself."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch}
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.get("about:blank")
        self.driver.get_log("browser")
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        self.driver.get(page if isinstance(page, str) else page.as_uri())
        self.wait("return !document.getElementById('main').hidden")

    def wait(self, question: str, seconds: float = 30) -> None:
        """Until a piece of JavaScript returns something true."""
        end = time.monotonic() + seconds
        while not self.driver.execute_script(question):
            assert time.monotonic() < end, f"not within {seconds} s: {question}"
            time.sleep(0.02)

    def run(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str):
        return self.driver.find_element("css selector", selector)

    def find_all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        return self.run("return [...document.querySelectorAll(arguments[0])].map(each => each.textContent)", selector)

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


def start(folder):
    """A driver of a new Chromium that keeps its profile in the folder; the test is skipped if there is none."""
    chromium, service = shutil.which("chromium"), shutil.which("chromedriver")
    webdriver = pytest.importorskip("selenium.webdriver", reason=NO_BROWSER)
    if not chromium or not service:
        pytest.skip(NO_BROWSER)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(service))


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    driver = start(tmp_path_factory.mktemp("chromium"))
    yield driver
    driver.quit()


@pytest.fixture
def browser(driver):
    """The window; the test fails if the page wrote an error or a warning to the console."""
    browser = Browser(driver)
    yield browser
    assert browser.errors() == []
