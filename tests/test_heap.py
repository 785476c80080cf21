"""What is freed goes back to the machine."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from sprunec import heap

pytestmark = pytest.mark.skipif(
    not (sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "malloc_info")), reason="glibc alone has it"
)
HEAPS = """
import ctypes, sys, threading
from pathlib import Path
from sprunec.heap import share_heap
if sys.argv[1] == "shared":
    share_heap()
held, ready, library = [], threading.Barrier(5), ctypes.CDLL(None)

def work():
    held.append([bytes(50_000) for _ in range(20)])
    ready.wait()

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
ready.wait()
library.fopen.restype = ctypes.c_void_p
file = library.fopen(sys.argv[2].encode(), b"w")
library.malloc_info(0, ctypes.c_void_p(file))
library.fclose(ctypes.c_void_p(file))
print(Path(sys.argv[2]).read_text().count("<heap nr"))
"""
TRIMMED = """
from pathlib import Path
from sprunec.heap import trim_heap
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
before = resident()
held = [bytearray(100_000) for _ in range(1000)]
held = held[::50]
full = resident() - before
trim_heap()
print(full, resident() - before)
"""


def said(code: str, *arguments: object) -> list[int]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def test_threads_share_one_heap(tmp_path: object) -> None:
    assert said(HEAPS, "shared", f"{tmp_path}/info") == [1]
    assert said(HEAPS, "apart", f"{tmp_path}/info")[0] > 1


def test_what_is_free_between_what_is_not_goes_back() -> None:
    full, trimmed = said(TRIMMED)
    assert full > 80e6 and trimmed < 10e6


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: object())
    heap.share_heap()
    heap.trim_heap()
