"""A real headless Chromium, asked by its DevTools protocol through two pipes: no port, no library, no network."""

import base64
import json
import os
import select
import shutil
import subprocess
import time

import pytest

wanted = pytest.mark.skipif(not shutil.which("chromium"), reason="wants chromium")
DEADLINE_S = 60


class Page:
    """One file, shown; what its console said and what it asked the network for is kept."""

    def __init__(self, path, folder, *, dark=False, width=1200, height=900):
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        options = (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={folder}/profile",
            "--remote-debugging-pipe",
        )

        def three_and_four():
            for there in (os.dup(theirs_in), os.dup(theirs_out)):
                os.set_inheritable(there, True)
            os.dup2(os.dup2(theirs_in, 103), 3)
            os.dup2(os.dup2(theirs_out, 104), 4)

        self._process = subprocess.Popen(
            ["chromium", *options, "about:blank"], preexec_fn=three_and_four, close_fds=False,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in), os.close(theirs_out)
        self._rest, self._number, self._session, self.said, self.asked = b"", 0, None, [], []
        (target,) = [one for one in self.ask("Target.getTargets")["targetInfos"] if one["type"] == "page"]
        self._session = self.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=scheme)
        self.loaded_s = None
        began = time.monotonic()
        self.ask("Page.navigate", url=f"file://{path}")
        self.until("document.readyState === 'complete' && !location.href.startsWith('about')")
        self.loaded_s = time.monotonic() - began

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._process.kill()
        self._process.wait()
        os.close(self._to), os.close(self._from)

    def ask(self, method, **params):
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self._keep(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def value(self, expression):
        """What an expression of the page is, as JSON."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression):
        ends = time.monotonic() + DEADLINE_S
        while not self.value(expression):
            assert time.monotonic() < ends, f"never: {expression}"
            time.sleep(0.05)

    def key(self, key, text=""):
        codes = {"Enter": 13, " ": 32, "Tab": 9, "ArrowRight": 39, "ArrowLeft": 37}
        what = {
            "key": key,
            "code": {" ": "Space"}.get(key, key),
            "windowsVirtualKeyCode": codes.get(key, ord(key[0].upper())),
        }
        self.ask("Input.dispatchKeyEvent", type="keyDown", text=text or {"Enter": "\r", " ": " "}.get(key, ""), **what)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **what)

    def picture(self, path):
        """The whole page as PNG."""
        found = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def _next(self):
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], DEADLINE_S)
            assert ready, f"chromium is silent for {DEADLINE_S} s"
            self._rest += os.read(self._from, 1 << 20)
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _keep(self, event):
        method, params = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent" and not params["request"]["url"].startswith("data:"):
            self.asked.append(params["request"]["url"])
        if method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.said.append(params)
