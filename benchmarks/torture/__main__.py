"""Torture of one collection: many processes change and search it, and are killed all the time.

Writers add, replace, move, remove and refresh pictures in folders of their own, with names that
clash and files that are copies of each other; readers search; a client uses the service over HTTP.
Processes are killed at random moments and started again, the disk is full now and then, arrays are
deleted. While they run, each search must agree with what is certain at that moment; every few
seconds all stop, and the collection must hold what the notes of all processes allow (history.py),
answer searches as a loop over its database does, and export and import the same (verify.py).
Between rounds small stories are played (scenarios.py).

Run: python benchmarks/torture --minutes 5 [--seed 0] [--writers 3] [--json]
It ends with 1 if anything was wrong. Moments differ from run to run: the seed fixes what each
process wants to do, not who is first.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy and torch start their threads
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import argparse
import json
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
from actors import act, serve, serve_by_command
from history import contents_of, operations_of, owner, read_log, story
from scenarios import SCENARIOS, play
from verify import apart, verify_round
from world import INTERRUPTIONS, N_IMPORTED, N_SHARED, N_UPLOADS, Board, World, end_all, fork, wait

KINDS = {
    "lost": "a picture whose storing was acknowledged is not there",
    "ghost": "a picture whose removal was acknowledged is there, or found by a later search",
    "stale": "a picture is there as its file was before an acknowledged add",
    "doubled": "a picture, an id or a row is there or found twice",
    "invented": "a picture that nobody added",
    "hidden": "a search does not find a picture that is certainly there",
    "torn": "codes and boxes that are of no picture",
    "mixed": "codes of one content, hash of another",
    "ids": "an id that is not the picture's, or images() that differ",
    "search": "another ranking than a loop over the database gives",
    "check": "check() reports a problem, or other missing files than there are",
    "export": "a code file, or a collection made of it, that holds something else",
    "encoded": "a picture encoded again for no reason",
    "upload": "an uploaded picture without its file",
    "service": "an answer of the service that is wrong",
    "exception": "an error that nothing excuses",
    "crash": "a process ended by itself",
    "hang": "a process that does not end",
}
"""What a violation can be."""

DISK_BYTES = 96 << 20
FULL_AT = 0.25  # rounds' share in which the disk is full now and then
SHOWN = 2  # violations of one kind and place that are printed whole


class Run:
    """The first process: it starts, kills and judges the others."""

    def __init__(self, own: argparse.Namespace, base: Path) -> None:
        self.own, self.base = own, base
        self.rng = np.random.default_rng([own.seed, 99])
        self.began, self.round = time.monotonic(), 0
        self.counts = {
            name: Counter()
            for name in ("operations", "outcomes", "kills", "events", "stories", "bad stories")
        }
        self.counts["violations"] = Counter()
        self.signatures: Counter = Counter()
        self.processes: dict[int, str] = {}
        self.lives: Counter = Counter()
        (base / "logs").mkdir()
        self.disk = base / "disk"
        self.disk.mkdir()
        mounting = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "torture", str(self.disk)]
        mounted = (
            own.mount
            and os.geteuid() == 0
            and not subprocess.run(mounting, capture_output=True).returncode
        )
        self.world = World(base, self.disk / "collection", own.seed, own.writers)
        self.world.is_mounted, self.world.may_be_full = mounted, own.full
        self.world.without = own.without
        self.before: dict[str, int] = {}
        self.names = [f"writer{n}" for n in range(own.writers)]
        self.names += [f"reader{n}" for n in range(own.readers)] + ["client"] * own.service

    def tell(self, told, where: str, notes: list = ()) -> None:
        """Counts violations, and prints the first of each sort with the notes that lead to it."""
        for kind, text in told:
            self.counts["violations"][kind] += 1
            text = text.replace(str(self.base), "BASE")
            last = text.strip().splitlines()[-1] if kind == "exception" else text.splitlines()[0]
            signature = (kind, re.sub(r"\d+|'[^']*'", "", last)[:90])
            self.signatures[signature] += 1
            if self.signatures[signature] <= SHOWN:
                lines = [
                    f"VIOLATION {kind} ({KINDS[kind]}): {where}, seed {self.own.seed}",
                    *text.splitlines()[-14:],
                ]
                lines += notes
                print("\n".join(lines), file=sys.stderr, flush=True)

    # -- a round

    def prepare(self) -> None:
        """Sources and pictures that stay: acknowledged before anyone is killed."""
        world = self.world
        for number, path in enumerate(world.keeps):
            world.put(str(path), number)
            blink, single = (str(path).replace("keep-", name) for name in ("blink-", "single-"))
            world.put(blink, N_SHARED - 1 - number)
            world.put(single, N_SHARED - 31 - number)

        def add() -> list:
            imported = world.base / "imported"
            world.imported_file = world.base / "imported.h5"
            for n in world.imported:
                world.put(str(imported / f"{n}.png"), n)
            with world.open(world.fresh("import")) as other:
                other.add([str(imported)], workers=0)
                other.export(world.imported_file)
            with world.open() as collection:
                for folder in world.all_folders:
                    collection.add([str(folder)], workers=0)
            shutil.rmtree(imported)
            return []

        world.imported = range(N_SHARED + N_UPLOADS, N_SHARED + N_UPLOADS + N_IMPORTED)
        world.imported_file = world.base / "imported.h5"
        self.tell(apart(add), "preparing")
        for path in map(str, world.paths):
            number = world.number_of(path)
            if number >= 0:
                self.before[path] = number
                world.board.say(world.cell[path], Board.SURE + number)

    def run_round(self, seconds: float) -> None:
        """Starts all, kills and restarts them for some time, stops them, judges what they left."""
        world, flags = self.world, self.world.board.flags
        files = {path: world.number_of(path) for path in world.paths}
        for log in (self.base / "logs").iterdir():
            log.unlink()
        flags[Board.STOP] = 0
        for name in self.names:
            self.start(name)
        until = time.monotonic() + seconds
        fills = self.own.full and self.rng.random() < FULL_AT
        while time.monotonic() < until:
            time.sleep(float(self.rng.exponential(1 / (self.own.kills + 1e-9))) % 0.5)
            self.reap()
            if self.rng.random() < 0.9 and self.own.kills:
                self.kill(int(self.rng.choice(list(self.processes))))
            if self.own.service and self.rng.random() < 0.02:
                self.stop_service()
            if self.own.service and "service" not in self.processes.values():
                self.start_service()
            if fills and world.is_mounted and self.rng.random() < 0.1:
                self.fill_disk()
            if self.own.sabotage and self.round == 1:
                self.sabotage()
        flags[Board.STOP] = 1
        self.stop_all(kill=self.rng.random() < 0.5)
        self.judge(files)

    def start(self, name: str) -> None:
        self.lives[name] += 1
        self.processes[fork(act, self.world, name, self.lives[name])] = name

    def start_service(self) -> None:
        """Forked; now and then by the command itself, which takes seconds."""
        self.counts["events"]["service starts"] += 1
        self.world.board.flags[Board.SERVICE] += 1
        if self.rng.random() > 0.05:
            self.processes[fork(serve, self.world)] = "service"
            return
        reading, writing = os.pipe()
        self.processes[fork(serve_by_command, self.world, writing)] = "service"
        os.close(writing)
        with os.fdopen(reading) as told:  # its first line names the port
            if line := told.readline():
                self.world.board.flags[Board.PORT] = int(line.rstrip("/\n").rpartition(":")[2])

    def stop_service(self) -> None:
        """Kills it, or asks it to end."""
        for process, name in self.processes.items():
            if name == "service":
                self.world.board.flags[Board.PORT] = 0
                self.world.board.flags[Board.SERVICE] += 1
                how = signal.SIGKILL if self.rng.random() < 0.6 else signal.SIGTERM
                self.counts["kills" if how == signal.SIGKILL else "events"]["service ended"] += 1
                os.kill(process, how)

    def kill(self, process: int) -> None:
        """Kills a writer, reader or client at this moment, whatever it does; another follows."""
        name = self.processes[process]
        if name != "service":
            os.kill(process, signal.SIGKILL)
            last = next(iter(read_log(self.base / "logs" / name)[-1:]), ["start"])
            self.counts["kills"][last[2] if last[0] == "begin" else f"at {last[0]}"] += 1
            self.ended(process, wait(process)[1])
            self.start(name)

    def ended(self, process: int, status: int) -> None:
        """Whoever ends otherwise than by a signal from here has crashed."""
        name = self.processes.pop(process)
        if name == "service":
            self.world.board.flags[Board.PORT] = 0
        if status not in (0, signal.SIGKILL) and (name, status) != ("service", signal.SIGTERM):
            log = self.base / ("service.log" if name == "service" else f"logs/{name}")
            lines = log.read_text().splitlines()[-8:] if log.exists() else []
            self.tell([("crash", f"{name} ended with {status}")], self.where(), lines)

    def reap(self) -> None:
        """Starts those again that ended though nobody killed them."""
        for process, name in list(self.processes.items()):
            gone, status = wait(process, os.WNOHANG)
            if gone:
                self.ended(process, status)
                if name != "service":
                    self.start(name)

    def stop_all(self, *, kill: bool) -> None:
        """After this no process runs."""
        self.stop_service()
        until = time.monotonic() + 60
        while self.processes:
            late = time.monotonic() > until
            for process, name in list(self.processes.items()):
                if kill or late:
                    os.kill(process, signal.SIGKILL)
                    self.counts["kills"]["at the end of a round"] += 1
                if late and not kill:
                    self.tell([("hang", f"{name} does not end")], self.where())
                gone, status = wait(process, 0 if kill or late else os.WNOHANG)
                if gone:
                    self.ended(process, status)
            time.sleep(0.005)

    def fill_disk(self) -> None:
        """For a moment there is no room, or next to none."""
        flags, filler = self.world.board.flags, self.disk / "filler"
        flags[Board.FULL] += 1
        self.counts["events"]["disk full"] += 1
        try:
            with filler.open("wb") as file:
                free = os.statvfs(self.disk).f_bavail * os.statvfs(self.disk).f_frsize
                os.posix_fallocate(
                    file.fileno(), 0, max(4096, free - int(self.rng.choice([0, 1 << 16])))
                )
        except OSError:
            pass  # others were quicker
        time.sleep(float(self.rng.random()) * 0.3)
        if self.rng.random() < 0.5:
            self.kill(int(self.rng.choice(list(self.processes))))
        filler.unlink()
        flags[Board.FULL] += 1

    def sabotage(self) -> None:
        """Does on purpose what must never happen, to see that it is found."""
        name = os.fsencode(Path(self.world.keeps[0]).name)
        change = {
            "row": ("DELETE FROM images WHERE path = ?", (name,)),
            "codes": ("UPDATE images SET region_codes = zeroblob(length(region_codes))", ()),
        }[self.own.sabotage]

        def damage() -> None:
            with closing(
                sqlite3.connect(self.world.folder / "collection.db", timeout=60)
            ) as database:
                database.execute(*change)
                database.commit()

        apart(damage)

    def judge(self, files: dict[str, int]) -> None:
        """The quiet point."""
        logs = {own.name: own for own in sorted((self.base / "logs").iterdir())}
        records = {name: read_log(path) for name, path in logs.items()}
        operations = []
        for own in records.values():
            found = operations_of(own)
            operations += found
            self.counts["operations"].update(op.kind for op in found)
            self.counts["outcomes"].update(r[2] for r in own if r[0] == "end")
        for name, own in records.items():
            for n, (what, moment, *rest) in enumerate(own):
                if what == "bad":
                    kind, text, *path = rest
                    lines = [f"    {json.dumps(note)[:300]}" for note in own[max(0, n - 8) : n]]
                    if path:
                        contents = contents_of(path[0], files[path[0]], owner(path[0], records))
                        lines = story(path[0], contents, operations, moment)
                        lines.append(f"    {moment}: seen")
                    self.tell([(kind, text)], f"{self.where()}, {name}", lines)
        seed = self.own.seed * 1000 + self.round
        answer = apart(verify_round, self.world, self.before, files, records, operations, seed)
        self.counts["events"]["verifications"] += 1
        if not isinstance(answer, tuple):
            self.tell(answer, self.where())
            return
        told, self.before = answer
        self.tell(told, self.where())
        service = self.base / "service.log"
        if service.exists() and "Traceback" in (text := service.read_text()):
            if not any(word in text for word in ("No space left", "is full")):
                self.tell([("service", text[-3000:])], self.where())
            service.unlink()

    def where(self) -> str:
        return f"round {self.round}"

    def play_stories(self, times: int) -> None:
        for name in self.own.stories:
            for _ in range(times):
                seed = self.own.seed * 100_000 + self.counts["stories"].total()
                self.counts["stories"][name] += 1
                told = apart(play, self.world, name, seed)
                self.counts["bad stories"][name] += bool(told)
                self.tell(told, f"story {name!r} {seed}")

    def go(self) -> None:
        """Rounds until the time is over."""
        self.prepare()
        self.began = time.monotonic()
        until = self.began + 60 * self.own.minutes
        while time.monotonic() < until:
            self.round += 1
            if self.own.rounds:
                self.run_round(min(self.own.round, max(1.0, until - time.monotonic())))
            if self.own.stop and self.counts["violations"]:
                break
            self.play_stories(self.own.times)

    def report(self) -> dict:
        minutes = (time.monotonic() - self.began) / 60
        return {
            "seed": self.own.seed,
            "minutes": round(minutes, 2),
            "rounds": self.round,
            "operations": self.counts["operations"].total(),
            "operations a minute": round(self.counts["operations"].total() / minutes),
            "kills": self.counts["kills"].total(),
            "kills a minute": round(self.counts["kills"].total() / minutes),
            **{f"{name} by kind": dict(own.most_common()) for name, own in self.counts.items()},
            "violations": self.counts["violations"].total(),
            "sorts of violations": {f"{k}: {t}": n for (k, t), n in self.signatures.most_common()},
        }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--writers", type=int, default=3)
    parser.add_argument("--readers", type=int, default=2)
    parser.add_argument("--kills", type=float, default=4, help="a second, about; 0 kills nobody")
    parser.add_argument("--round", type=float, default=8, help="seconds between quiet points")
    parser.add_argument("--no-service", dest="service", action="store_false")
    parser.add_argument("--no-full", dest="full", action="store_false", help="no full disk")
    parser.add_argument("--no-rounds", dest="rounds", action="store_false", help="stories only")
    names = ", ".join(SCENARIOS)
    parser.add_argument("--stories", default=None, help=f"of {names}; with commas; '' for none")
    parser.add_argument("--times", type=int, default=1, help="of each story between two rounds")
    parser.add_argument("--no-mount", dest="mount", action="store_false", help="no small disk")
    parser.add_argument("--without", default="", help="operations to leave out, with commas")
    parser.add_argument("--sabotage", choices=["row", "codes"], help="break it, to see it found")
    parser.add_argument("--stop", action="store_true", help="end after the first bad round")
    parser.add_argument("--json", action="store_true")
    own = parser.parse_args()
    own.without = set(filter(None, own.without.split(",")))
    own.stories = (
        list(SCENARIOS) if own.stories is None else list(filter(None, own.stories.split(",")))
    )
    return own


def interrupt(*_: object) -> None:
    """Ends the run, and tries again soon: from some places Python drops the exception."""
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    raise KeyboardInterrupt


def main() -> int:
    own = arguments()
    shared = "/dev/shm" if Path("/dev/shm").is_dir() else None  # memory, so that disks stay whole
    base = Path(tempfile.mkdtemp(prefix="torture-", dir=os.environ.get("TMPDIR", shared)))
    run = None
    for how in INTERRUPTIONS:
        signal.signal(how, interrupt)
    try:
        run = Run(own, base)
        run.go()
    except KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, 0)
        print("interrupted", file=sys.stderr)
    finally:
        end_all()
        for _ in range(50):  # those of a story that was interrupted end with it, in a moment
            if (
                not (base / "disk").is_mount()
                or not subprocess.run(
                    ["umount", str(base / "disk")], capture_output=True
                ).returncode
            ):
                break
            time.sleep(0.1)
        shutil.rmtree(base, ignore_errors=True)
    if run is None:
        return 1
    report = run.report()
    if own.json:
        print(json.dumps(report))
    else:
        for name, value in report.items():
            print(f"{name}: {value}")
    return int(bool(report["violations"]))


if __name__ == "__main__":
    sys.exit(main())
