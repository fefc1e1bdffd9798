"""Die at the n-th change of the file system, for every n; resume; compare with a run that lived.

Run as a child by test_crash.py. It touches no store itself (so it has no threads) and forks for
every step, which costs milliseconds; death is ``os._exit`` just before a rename, link, unlink,
mkdir or rmdir: nothing is cleaned up, nothing is flushed.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
import traceback
import warnings
from pathlib import Path

import anndata

from stdist.graph import InProcess, discard, resume, start, unfinished
from stdist.graph.record import RunRecord
from stdist.store.verify import verify
from tests import toy

EVENTS = ("replace", "rename", "link", "unlink", "mkdir", "rmdir")
DEAD = 77
ADDED = {"layers": {"scaled", "doubled"}, "obs": {"total"}, "varm": {"turned"}, "uns": {"toy"}}


def fork(function, *arguments):
    """Run in a child; return its exit status."""
    pid = os.fork()
    if pid == 0:
        try:
            function(*arguments)
            status = 0
        except BaseException:  # noqa: BLE001 - the status tells
            traceback.print_exc()
            status = 1
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def dying(number, count_file, function):
    """Call `function`, and die before change number `number`; write how many there were."""
    seen = 0

    def wrap(original):
        def event(*arguments, **options):
            nonlocal seen
            seen += 1
            if seen == number:
                os._exit(DEAD)
            return original(*arguments, **options)

        return event

    originals = {name: getattr(os, name) for name in EVENTS}
    for name, original in originals.items():
        setattr(os, name, wrap(original))
    function()
    for name, original in originals.items():
        setattr(os, name, original)
    Path(count_file).write_text(str(seen))


class Scene:
    """One kind of run on one folder."""

    def __init__(self, folder, kind):
        self.folder, self.kind = Path(folder), kind
        self.target = self.folder / "work" / "store.zarr"
        self.base = self.folder / "base"
        self.count = self.folder / "count"

    def build_base(self):
        self.base.mkdir()
        if self.kind != "create":
            start(
                toy.generate_program(self.base / "store.zarr", 2500), InProcess(), block_length=1024
            )
        if self.kind == "overwrite":
            store = self.base / "store.zarr"
            start(toy.scale_program(store, every=5, rounds=1), InProcess(), block_length=1024)

    def reset(self):
        shutil.rmtree(self.target.parent, ignore_errors=True)
        shutil.copytree(self.base, self.target.parent)

    def run(self):
        if self.kind == "create":
            program = toy.generate_program(self.target, 2500)
        else:
            program = toy.scale_program(self.target, rounds=3)
        start(program, InProcess(), block_length=1024, overwrite=self.kind == "overwrite")

    def resume(self):
        resume(self.target, toy.build, InProcess())

    def save_reference(self):
        found = toy.contents(self.target)
        (self.folder / "reference.pickle").write_bytes(pickle.dumps(found))

    def check_visible(self):
        """The target is absent, as it was, or complete: as anndata sees it."""
        if self.kind == "create" and not self.target.exists():
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = anndata.read_zarr(self.target)
        assert data.shape == (2500, toy.COLUMNS)
        assert (data.layers["sparse"] != data.X).sum() == 0
        if self.kind == "add":
            present = [n in getattr(data, part) for part, names in ADDED.items() for n in names]
            assert all(present) or not any(present), present

    def check_resume(self):
        """Resume repeats nothing that was finished, and gives what an uninterrupted run gives."""
        waiting = unfinished(self.target)
        if not waiting:
            if self.kind == "create" and self.target.exists():
                return self.compare(beside={".store.zarr.lock"})  # died before it let go
            if (self.target / "layers" / "scaled").exists() and self.kind == "add":
                return self.compare()
            self.run()  # died before there was a run, or after it was over
            return self.compare()
        record = RunRecord(waiting[0])
        name = waiting[0].name
        committed = bool(record.read_json("commit.json"))
        done = {
            path.relative_to(record.folder)
            for kind in ("done", "values")
            for path in (record.folder / kind).rglob("*.*")
            if not path.name.endswith(".partial")
        }
        before = len(record.events())
        if committed:
            try:
                discard(self.target)
                raise AssertionError("a complete run was discarded")
            except toy.InputError:
                pass
        self.resume()
        record = RunRecord(self.target / ".stdist" / "runs" / name)
        fresh = record.events()[before:]
        stage = "generate" if self.kind == "create" else "scale"
        finished = {int(path.stem) for path in done if path.parent == Path("done", stage)}
        repeated = [event.index for event in fresh if event.stage == stage]
        expected = [] if committed else [index for index in range(3) if index not in finished]
        assert repeated == expected, (repeated, expected)
        kept = {path.stem for path in done if path.parent == Path("values")}
        for reduction in ("moments", "sample"):
            if self.kind != "create":
                ran = sum(event.stage == reduction for event in fresh)
                assert ran == (0 if committed or reduction in kept else 3), (reduction, ran)
        return self.compare()

    def compare(self, beside=frozenset()):
        reference = pickle.loads((self.folder / "reference.pickle").read_bytes())
        found = toy.contents(self.target)
        assert found.keys() == reference.keys(), found.keys() ^ reference.keys()
        different = [name for name in found if found[name] != reference[name]]
        assert not different, different
        damage, unrecorded, _ = verify(self.target)
        assert not damage, damage
        assert not unrecorded, unrecorded
        assert not unfinished(self.target)
        left = {path.name for path in self.target.parent.iterdir()} - {"store.zarr"}
        assert left <= beside, left


def main(folder, kind, first, step):
    """Return the number of changes and a list of (number, what failed)."""
    scene = Scene(folder, kind)
    assert fork(scene.build_base) == 0
    scene.reset()
    assert fork(dying, -1, scene.count, scene.run) == 0
    assert fork(scene.save_reference) == 0
    total = int(scene.count.read_text())
    failed = []
    numbers = {*range(first, total + 1, step), *range(total - 6, total + 1)}
    for number in sorted(numbers):
        scene.reset()
        if fork(dying, number, scene.count, scene.run) != DEAD:
            failed.append((number, "did not die"))
        if kind != "overwrite" and fork(scene.check_visible):
            failed.append((number, "visible"))
        if number // step % 3 == 0:  # die once more on the way
            fork(dying, 1 + number * 7 % 60, scene.count, scene.resume)
        if fork(scene.check_resume):
            failed.append((number, "resume"))
    return {"total": total, "failed": failed}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
