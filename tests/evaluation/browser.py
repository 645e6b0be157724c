"""A headless Chromium that opens pages of files and local servers, driven through its debugging pipe."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Self

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_PATIENCE = 60  # seconds


def program() -> str | None:
    """Where the browser is; None if there is none."""
    return next((found for found in map(shutil.which, NAMES) if found), None)


class Browser:
    """Commands and events are JSON with a zero byte behind; the browser reads them from file 3 and writes to file 4."""

    def __init__(self, profile: Path) -> None:
        theirs, ours = os.pipe()
        mine, their_output = os.pipe()
        plumbing = f"exec 3<&{theirs} 4>&{their_output}"
        flags = "--headless --no-sandbox --disable-gpu --remote-debugging-pipe --no-first-run --disable-dev-shm-usage"
        flags += " --disable-quic --disable-background-networking --disable-component-update --disable-sync"
        command = f"{plumbing}; exec {program()} {flags} --user-data-dir={profile} about:blank"
        self._process = subprocess.Popen(
            ["bash", "-c", command],
            pass_fds=(theirs, their_output),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs), os.close(their_output)
        self._input, self._output = os.fdopen(ours, "wb", buffering=0), os.fdopen(mine, "rb", buffering=0)
        self._numbers, self._buffer = itertools.count(1), b""
        self.messages: list[dict[str, Any]] = []  # of the console and the log, uncaught errors, requests
        target = next(one for one in self._ask("Target.getTargets")["targetInfos"] if one["type"] == "page")
        self._session = self._ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ask("Browser.close")
        self._process.wait(timeout=20)
        self._input.close()
        self._output.close()

    def open(self, place: Path | str, width: int, *, dark: bool = False, scripts: bool = True) -> None:
        """Show a file or an address in a window of this width, and wait until all of it is there."""
        self.messages.clear()
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=scheme)
        self.ask("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.ask("Page.navigate", url=place if isinstance(place, str) else place.absolute().as_uri())
        while not any(message["method"] == "Page.loadEventFired" for message in self.messages):
            self.messages.append(self._read())

    def value(self, expression: str) -> Any:
        """Of a JavaScript expression."""
        result = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def choose(self, field: str, path: Path) -> None:
        """Give a file to the input field with this id."""
        node = self.ask("Runtime.evaluate", expression=f"document.getElementById({field!r})")["result"]["objectId"]
        self.ask("DOM.setFileInputFiles", files=[str(path)], objectId=node)

    def wait(self, expression: str) -> None:
        """Until a JavaScript expression is true."""
        end = time.monotonic() + _PATIENCE
        while not self.value(expression):
            assert time.monotonic() < end, f"not true in {_PATIENCE} s: {expression}"
            time.sleep(0.05)

    def screenshot(self, path: Path, height: int | None = None) -> None:
        """A PNG of the whole page, or of its upper part."""
        width, whole = self.value("[innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": min(height or whole, whole), "scale": 1}
        data = self.ask("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
        path.write_bytes(base64.b64decode(data))

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command about the page and return its result."""
        return self._ask(method, self._session, **parameters)

    def _ask(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        self._input.write(json.dumps(command).encode() + b"\0")
        while True:
            message = self._read()
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self.messages.append(message)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self._output], [], [], _PATIENCE)[0], "the browser does not answer"
            block = self._output.read(65536)
            assert block, "the browser has ended"
            self._buffer += block
        text, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(text)
