"""Clicks through the demo page of a running server in headless Chromium, at the width of a desk and of a phone.

    python3 tests/page/click.py SIDREC SHOTS

SIDREC is the binary; screenshots go to the folder SHOTS. Needs chromium and chromedriver on the PATH (Debian packages
`chromium` and `chromium-driver`), nothing else: it speaks WebDriver itself. Without them it says so and ends well.
"""

import base64
import json
import pathlib
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


def call(method, url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(error.read().decode()) from error


class Page:
    def __init__(self, driver, width, height):
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
                 "--disable-component-update", "--disable-sync", f"--window-size={width},{height}"]
        options = {"browserName": "chrome", "goog:chromeOptions": {"args": flags}, "goog:loggingPrefs": {"browser": "ALL"}}
        made = call("POST", f"{driver}/session", {"capabilities": {"alwaysMatch": options}})
        self.at = f"{driver}/session/{made['sessionId']}"

    def find(self, css):
        return [found[ELEMENT] for found in call("POST", f"{self.at}/elements", {"using": "css selector", "value": css})]

    def text(self, css):
        # All at once: one by one, elements could be replaced in between.
        script = "return [...document.querySelectorAll(arguments[0])].map(found => found.innerText)"
        return call("POST", f"{self.at}/execute/sync", {"script": script, "args": [css]})

    def click(self, css):
        call("POST", f"{self.at}/element/{self.find(css)[0]}/click", {})

    def type(self, css, text):
        call("POST", f"{self.at}/element/{self.find(css)[0]}/value", {"text": text})

    def run(self, script):
        return call("POST", f"{self.at}/execute/sync", {"script": script, "args": []})

    def until(self, what, done):
        end = time.time() + 10
        while time.time() < end:
            if done():
                return
            time.sleep(0.05)
        raise AssertionError(f"{what}: {self.text('body')}")

    def shot(self, path):
        path.write_bytes(base64.b64decode(call("GET", f"{self.at}/screenshot")))

    def errors(self):
        log = call("POST", f"{self.at}/se/log", {"type": "browser"})
        return [line["message"] for line in log if line["level"] == "SEVERE"]


def walk(page, server, shots, name):
    call("POST", f"{page.at}/url", {"url": server})
    page.until("recommendations", lambda: len(page.text("#list li.item")) == 10)
    assert "items" in page.text("#info")[0]
    page.until("the beams", lambda: len(page.find(".level")) >= 3)
    page.type("#q", "kettle")
    page.until("items found by title", lambda: page.text("#found li") and all("kettle" in t.lower() for t in page.text("#found li")))
    before = page.text("#list li.item > div")
    chosen = page.text("#found li.item > div")[0].split("\n")[0]
    page.click("#found li.item button")
    page.until("the history grows", lambda: len(page.text("#history li.item")) == 2)
    page.until("other recommendations", lambda: page.text("#list li.item > div") != before)
    assert chosen in page.text("#history li.item > div")[1]
    assert all(chosen != text.split("\n")[0] for text in page.text("#list li.item > div")), "seen items are left out"
    assert len(page.find(".beam.top")) >= 3, "the way to the first item is framed"
    curl = page.text("#curl")[0]
    assert curl.startswith("curl") and "/v1/recommend" in curl
    again = subprocess.run(["sh", "-c", curl], capture_output=True, text=True, check=True) if shutil.which("curl") else None
    if again:
        assert len(json.loads(again.stdout)["results"][0]["items"]) == 10
    page.click("#new")
    page.until("only new items", lambda: len(page.find("#list .tag")) == len(page.find("#list li.item")) > 0)
    page.click("#new")
    page.until("all items again", lambda: len(page.find("#list .tag")) < len(page.find("#list li.item")))
    wide = page.run("return document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0, f"{name}: {wide} pixels too wide"
    page.shot(shots / f"{name}.png")
    page.click("#clear")
    page.until("popular items", lambda: "popular" in page.text("#took")[0])
    call("POST", f"{page.at}/url", {"url": server + "/docs"})
    page.until("the routes", lambda: len(page.find("#routes details")) >= 18)
    page.click("#routes details summary")
    page.shot(shots / f"{name}-docs.png")
    assert not page.errors(), page.errors()


def main(sidrec, shots):
    missing = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    if missing:
        print(f"SKIPPED: the page was not clicked through; not found: {', '.join(missing)}")
        return
    shots.mkdir(parents=True, exist_ok=True)
    weights = ROOT / "weights" / "demo"
    command = [sidrec, "serve", "--run", weights / "run", "--catalogue", weights / "catalogue", "--addr", "127.0.0.1:0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    driver = None
    try:
        address = next(line.split()[2] for line in server.stderr if line.startswith("serving on"))
        driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
        port = next(line.rsplit(" ", 1)[1].strip(".\n") for line in driver.stdout if "started successfully on port" in line)
        for name, width, height in [("desk", 1280, 1400), ("phone", 420, 1600)]:
            page = Page(f"http://127.0.0.1:{port}", width, height)
            walk(page, address, shots, name)
            call("DELETE", page.at)
            print(f"{name}: every click answered")
    finally:
        if driver:
            driver.terminate()
        server.terminate()
        assert server.wait(timeout=20) == 0


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]))
