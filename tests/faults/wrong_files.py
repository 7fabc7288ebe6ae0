"""Files that are damaged, and files that run code where they are unpickled without care."""

import io
import os
import pickle
import random
from pathlib import Path
from typing import Any

import torch

from .answers import REPORT, TINY, TRAIN, defect, run

DAMAGES = ["empty", "truncated", "text", "null", "number", "list", "mapping", "nul", "garbage", "folder", "unreadable"]

AGAIN = (TRAIN, [*TINY, "scheme=grst", "schedule.p=0.7"])
"""The script and the words that train one of the two runs of the project, the one of `OWN`."""
OWN = "digits-wrn10_1-*-constant-p0.7-*"
"""The folder of that run."""


def damage(file: Path, kind: str) -> None:
    """Damage a file in one of the ways of `DAMAGES`, or put a folder or an unreadable file in its place."""
    content = file.read_bytes()
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "unreadable":
        file.symlink_to("/proc/self/mem")  # This can be opened, but not read, not even by root.
    else:
        texts = {"empty": b"", "truncated": content[: len(content) // 2], "text": b"hello: [", "null": b"null\n"}
        texts |= {"number": b"3\n", "list": b"[1, 2]\n", "mapping": b'{"a": {}}\n', "nul": bytes(64)}
        file.write_bytes((texts | {"garbage": random.Random(0).randbytes(999)})[kind])


def at_random(content: bytes, draw: random.Random) -> bytes:
    """The content with a part cut out, put in twice, in another place or with other bytes, or with a line gone."""
    begin, end = sorted(draw.choices(range(len(content) + 1), k=2))
    end = min(end, begin + draw.choice([1, 4, 40, len(content)]))
    before, part, after = content[:begin], content[begin:end], content[end:]
    lines = content.splitlines(keepends=True)
    del lines[draw.randrange(len(lines))]
    signs = b"\n,:;[]{}'\"#-&*!|>%@`\\ \t09azAZ\x00\xff"
    return draw.choice(
        [
            before + after,
            before + part + part + after,
            after + part + before,
            before + bytes(draw.choices(signs, k=len(part) or 1)) + after,
            before + draw.randbytes(len(part)) + after,
            b"".join(lines),
        ]
    )


class Evil:
    """An object whose pickle makes the file ``canary`` where it is loaded."""

    def __reduce__(self) -> Any:
        return os.system, ("touch canary",)


def evil_pickles() -> dict[str, bytes]:
    """The content of files that make ``canary`` where they are unpickled without care, by a description."""
    files = {f"protocol {protocol}": pickle.dumps(Evil(), protocol) for protocol in range(0, 6, 2)}
    for name, content in {"all": Evil(), "part": {"id": "x", "config": "", "model": {}, "random": Evil()}}.items():
        for zipped in (True, False):
            buffer = io.BytesIO()
            torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
            files[f"torch {name} {zipped}"] = buffer.getvalue()
    return files


def saved(content: Any) -> bytes:
    """What `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def defects_after_random_damage(file: Path, names: list[str]) -> list[str]:
    """Damage the file sixty times and report what has these names; what is wrong with each answer that refuses it."""
    content, draw, defects = file.read_bytes(), random.Random(0), []
    for _ in range(60):
        file.write_bytes(damaged := at_random(content, draw))
        answer = run(REPORT, names)
        found = defect(REPORT, answer) if answer.code else ""
        defects += [f"{damaged!r}: {found}"] if found else []
    return defects
