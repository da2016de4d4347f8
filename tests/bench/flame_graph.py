"""`make flamegraph`: where a worker's time goes while it is always asked for mints, as a picture.

py-spy looks at the stacks of the running service, which knows nothing of it; what it saw is drawn here as
a still SVG. py-spy's own picture needs scripts, which pages that show pictures do not run.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

from tests.bench.installation import installed
from tests.bench.load import Requests, always_asking
from tests.bench.machine import load_cores, pinned, thread_seconds
from tests.bench.rounds import CONNECTIONS

__all__ = ["Frame", "draw", "read_stacks"]

_PY_SPY = Path(sys.executable).with_name("py-spy")
_SAMPLES_PER_SECOND = 400
_WARM_UP_SECONDS = 2
_WIDTH, _ROW, _LETTER, _TOP = 1200, 17, 6.1, 44
_NARROWEST = 0.7
"""Pixels; what is narrower is left out, and its place stays empty."""
_THREAD = re.compile(r"thread \((\d+)\): (.*)")
_NAMES = {"MainThread": "event loop", "store-writer": "thread that commits"}
_LINE = re.compile(r":\d+(?=\)$)")
_WAITING = {
    "_worker (concurrent/futures/thread.py)", "_connection_worker_thread (aiosqlite/core.py)",
    "Condition.wait (threading.py)", "WorkThread._serve (tokensvc/store/work_thread.py)",
}  # fmt: skip
_ENOUGH = 20
"""Samples of a thread that say where its time goes."""
_STARTS = (
    "Runner.run (asyncio/runners.py)", "_worker (concurrent/futures/thread.py)",
    "WorkThread._serve (tokensvc/store/work_thread.py)",
)  # fmt: skip
_LAYERS = (
    ("tokensvc/signing", 4), ("awscrt/crypto", 4), ("tokensvc/ledger", 205), ("tokensvc/store", 205),
    ("sqlalchemy", 205),
    ("tokensvc/policy", 275), ("tokensvc/http", 130), ("uvicorn", 130), ("litestar", 130),
    ("tokensvc/telemetry", 52), ("structlog", 52), ("prometheus_client", 52), ("tokensvc", 28),
)  # fmt: skip
"""Where a frame's code is, and the hue of its colour; all else is grey."""


@dataclass(slots=True)
class Frame:
    """A function, the processor time that was spent in it here, and what it called."""

    name: str
    seconds: float = 0.0
    calls: dict[str, Frame] = field(default_factory=dict)


def read_stacks(text: str, spent: Mapping[int, float]) -> Frame:
    """Return the tree of what py-spy wrote as `raw`: a line of `outer;inner count` for each stack.

    `spent` is the processor time of each thread in the meantime, in seconds, and is shared out among the
    thread's stacks: how often a thread is seen says less, since those that share a core with another that
    holds the interpreter are seen too seldom, and those that wait for the disk too often. What lies below
    the event loop, or below the work of another thread, is the same for every request and is left out; so
    are stacks that wait for work, which py-spy takes for busy. A thread that was hardly seen working is not
    taken apart.
    """
    stacks: dict[tuple[int, str], list[tuple[list[str], int]]] = {}
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        thread, *functions = stack.split(";")
        names = [_LINE.sub("", function) for function in functions]
        named = _THREAD.match(thread)
        if named and names and names[-1] not in _WAITING:
            stacks.setdefault((int(named[1]), named[2]), []).append((names, int(count)))
    root = Frame("all")
    for (number, thread), seen in stacks.items():
        in_all = sum(count for _, count in seen)
        each = spent.get(number, 0.0) / in_all
        for names, count in seen:
            frame = root
            root.seconds += count * each
            inner = _above_the_start(names) if in_all >= _ENOUGH else ()
            for name in (_NAMES.get(thread, thread), *inner):
                frame = frame.calls.setdefault(name, Frame(name))
                frame.seconds += count * each
    return root


def _above_the_start(names: Sequence[str]) -> Sequence[str]:
    for start in _STARTS:
        if start in names:
            return names[names.index(start) + 1 :]
    return names


def draw(root: Frame, title: str) -> str:
    """Return the SVG: a row for each depth of the stack, as wide as the time spent in it."""
    boxes = list(_boxes(root, 0.0, 0))
    height = _TOP + _ROW * (max(depth for _, _, depth in boxes) + 1) + 8
    svg = ET.Element("svg", {
        "xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {_WIDTH} {height}",
        "width": str(_WIDTH), "height": str(height), "font-family": "DejaVu Sans Mono, monospace",
        "font-size": "10",
    })  # fmt: skip
    ET.SubElement(svg, "rect", width="100%", height="100%", fill="#ffffff")
    _text(svg, 6, 17, title, {"font-size": "13"})
    _legend(svg)
    for frame, left, depth in boxes:
        width = frame.seconds / root.seconds * _WIDTH
        top = _TOP + depth * _ROW
        group = ET.SubElement(svg, "g")
        share = frame.seconds / root.seconds
        ET.SubElement(group, "title").text = f"{frame.name}: {share:.1%}"
        ET.SubElement(group, "rect", {
            "x": f"{left * _WIDTH:.1f}", "y": str(top), "width": f"{max(width - 0.4, 0.4):.1f}",
            "height": str(_ROW - 1), "fill": _colour(frame.name),
        })  # fmt: skip
        room = int((width - 4) / _LETTER)
        label = _label(frame.name, share, room)
        if label:
            _text(group, round(left * _WIDTH + 2, 1), top + 12, label)
    return ET.tostring(svg, "unicode") + "\n"


def _boxes(
    frame: Frame, left: float, depth: int, whole: float = 0.0
) -> Iterator[tuple[Frame, float, int]]:
    """Yield each frame that is wide enough to be seen, where it begins (0 to 1), and its depth."""
    whole = whole or frame.seconds
    yield frame, left, depth
    for name in sorted(frame.calls):
        call = frame.calls[name]
        if call.seconds / whole * _WIDTH >= _NARROWEST:
            yield from _boxes(call, left, depth + 1, whole)
        left += call.seconds / whole


def _label(name: str, share: float, room: int) -> str:
    function = name.partition(" (")[0]
    for text in (f"{name} {share:.1%}", f"{function} {share:.1%}", function):
        if len(text) <= room:
            return text
    return function[:room] if room >= 4 else ""


def _colour(name: str) -> str:
    # The same function has the same shade in every picture.
    shade = hashlib.sha256(name.encode()).digest()[0] % 12
    for part, hue in _LAYERS:
        if part in name:
            return f"hsl({hue},75%,{70 + shade}%)"
    return f"hsl(0,0%,{80 + shade}%)"


def _legend(svg: ET.Element) -> None:
    names = (
        ("signature", 4), ("HTTP", 130), ("policy", 275), ("ledger, store", 205),
        ("log, metrics", 52), ("other of tokensvc", 28), ("Python, libraries", None),
    )  # fmt: skip
    x = 6.0
    for name, hue in names:
        fill = "hsl(0,0%,85%)" if hue is None else f"hsl({hue},75%,75%)"
        ET.SubElement(svg, "rect", x=str(x), y="26", width="10", height="10", fill=fill)
        _text(svg, x + 14, 35, name)
        x += 14 + (len(name) + 3) * _LETTER


def _text(
    parent: ET.Element, x: float, y: float, text: str, more: dict[str, str] | None = None
) -> None:
    label = ET.SubElement(parent, "text", {"x": f"{x:g}", "y": f"{y:g}", **(more or {})})
    label.text = text


def record(requests: Requests, seconds: int) -> Frame:
    """Let the service be asked without pause, and return where its time went."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "stacks"
        command = [
            *pinned(load_cores()), str(_PY_SPY), "record", "--pid", str(requests.pid), "--format", "raw",
            "--output", str(raw), "--rate", str(_SAMPLES_PER_SECOND), "--duration", str(seconds),
            "--threads", "--function",
        ]  # fmt: skip
        with always_asking(
            requests,
            cores=load_cores(),
            connections=CONNECTIONS[requests.tokens],
            seconds=_WARM_UP_SECONDS + seconds + 3,
        ):
            time.sleep(_WARM_UP_SECONDS)
            before = thread_seconds(requests.pid)
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=seconds + 60, check=False
            )
            after = thread_seconds(requests.pid)
        if done.returncode:
            raise SystemExit(f"py-spy, which needs to be root or ptrace_scope 0: {done.stderr}")
        spent = {thread: after[thread] - before.get(thread, 0.0) for thread in after}
        return read_stacks(raw.read_text("utf-8"), spent)


def main() -> int:
    """Record, draw, and write the picture."""
    parser = argparse.ArgumentParser(prog="make flamegraph", description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path, help="the SVG to write")
    parser.add_argument("--seconds", type=int, default=20, help="how long to look")
    options = parser.parse_args()
    with installed() as installation, installation.service() as service:
        root = record(service.requests(), options.seconds)
    title = (
        "Where a worker's processor time goes while it is always asked for single mints, everything on"
        f" ({root.seconds:.0f} s)"
    )
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    options.picture.write_text(draw(root, title), "utf-8")
    sys.stdout.write(f"{options.picture} ({options.picture.stat().st_size:,} bytes)\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
