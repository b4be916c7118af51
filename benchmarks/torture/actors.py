"""What the processes do: writers with folders of their own, readers, a client of the service."""

import http.client
import io
import json
import os
import resource
import shutil
import sys
import time
import traceback
from contextlib import closing
from pathlib import Path
from typing import ClassVar

import numpy as np
from history import Log
from PIL import Image
from verify import hamming, left_out, look, look_at_snapshot, read_rows
from world import BROKEN, GONE, N_SHARED, N_UPLOADS, Board, World

from regionhash.data.images import read_image_bytes
from regionhash.service import run_server  # before the first fork: its imports take seconds
from regionhash.store import CodeFile, StoreError

TOKEN = "torture"
FULL_WORDS = ("No space left", "is full", "disk I/O error", "File too large")


class Actor:
    """A process that does one operation after the other, until it is told to stop or killed.

    `operations` is a literal dict: name -> (how often, what it does).
    """

    operations: ClassVar[dict]

    def __init__(self, world: World, name: str, life: int) -> None:
        self.world, self.board, self.name = world, world.board, name
        self.rng = np.random.default_rng([world.seed, life, *name.encode()])
        self.log = Log(world.base / "logs" / name)
        self.collection = None

    def run(self) -> None:
        """Until the end."""
        self.note("start")
        self.begin()
        names = [name for name in self.operations if name not in self.world.without]
        weights = np.array([self.operations[name][0] for name in names], float)
        while not self.board.flags[Board.STOP]:
            name = names[int(self.rng.choice(len(names), p=weights / weights.sum()))]
            self.operations[name][1](self)
            if self.collection is not None and self.rng.random() < 0.05:
                self.collection.close()
                self.collection = None

    def begin(self) -> None:
        """Before the first operation."""

    def note(self, what: str, *rest) -> None:
        self.log.note(what, time.monotonic_ns(), *rest)

    def tell(self, told) -> None:
        """Notes violations."""
        for own in told or []:
            self.note("bad", *own)

    def do(self, kind: str, scope: str, call) -> tuple[bool, object]:
        """Whether the operation was acknowledged, and its result.

        No error is right but one for want of room while the disk is full, and a `Refused`.
        """
        self.note("begin", kind, scope)
        full_before = self._is_full(), int(self.board.flags[Board.FULL])
        limited = self._limit()
        outcome, result = "ok", None
        try:
            if self.collection is None:
                self.collection = self.world.open()
            result = call(self.collection)
        except Refused:
            outcome = "refused"
        except Exception as error:
            outcome = "full"
            was_full = limited or full_before != (False, int(self.board.flags[Board.FULL]))
            if not (was_full and isinstance(error, StoreError) and _tells_of_room(error)):
                self.note("bad", "exception", f"{kind} {scope!r}: {traceback.format_exc()}")
            if self.rng.random() < 0.5:
                self.collection = None
        finally:
            if limited:
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        self.note("end", outcome)
        return outcome == "ok", result

    def _is_full(self) -> bool:
        return bool(self.board.flags[Board.FULL] % 2)

    def _limit(self) -> bool:
        """Where no small disk could be mounted, a limit to the size of files stands for it."""
        if self.world.is_mounted or not self.world.may_be_full or self.rng.random() > 0.01:
            return False
        size = (self.world.folder / "collection.db").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, resource.RLIM_INFINITY))
        return True

    def search(self) -> None:
        """See `look`."""
        self.tell(self.do("search", "", lambda c: look(self.world, c, self.rng))[1])

    def snapshot(self) -> None:
        """See `look_at_snapshot`."""
        self.tell(self.do("snapshot", "", lambda c: look_at_snapshot(self.world, c))[1])

    def check(self, repair: bool = False) -> None:
        """`check` finds nothing wrong, whoever writes beside it."""
        kind = "repair" if repair else "check"
        _, report = self.do(kind, "", lambda c: c.check(repair=repair))
        self.tell(("check", problem) for problem in (report.problems if report else ()))

    def repair(self) -> None:
        self.check(repair=True)

    def info(self) -> None:
        self.do("info", "", lambda c: c.info())

    def drop_arrays(self) -> None:
        """They may be deleted at any time."""
        folder = self.world.folder / "arrays"
        self.do("drop arrays", "", lambda _: shutil.rmtree(folder, ignore_errors=True))

    def export(self) -> None:
        """A code file holds each id once, each with codes of a picture, and those always there."""
        path = self.world.base / f"{self.name}-{time.monotonic_ns()}.h5"
        if self.do("export", "", lambda c: c.export(path))[0]:
            ids = list(CodeFile.open(path).table.ids)
            keeps = {own.name for own in self.world.keeps} - set(ids)
            if keeps or len(ids) != len(set(ids)):
                self.note("bad", "export", f"lacks {sorted(keeps)}, or has an id twice")
        path.unlink(missing_ok=True)


class Refused(Exception):  # noqa: N818
    """The collection says no, and may: what was to be removed is not there any more."""


def _tells_of_room(error: Exception) -> bool:
    return any(word in str(error) for word in FULL_WORDS)


class Writer(Actor):
    """Changes files in its two folders, and tells the collection. No one else changes them."""

    def begin(self) -> None:
        """Sees what the one before, who may have been killed, has left."""
        self.own = self.world.folders[int(self.name.removeprefix("writer"))]
        self.files = {}
        for path in self.world.paths:
            if Path(path).is_relative_to(self.own[0].parent):
                self.files[path] = self.world.number_of(path)
                self.note("is", path, self.files[path])

    def put(self, path: str, number: int) -> None:
        """Changes a file: before, the board says what stays certain."""
        cell = self.world.cell[path]
        stays = number >= 0 and self.board.state(cell) >= Board.THERE
        self.board.say(cell, Board.THERE if stays else Board.UNKNOWN)
        self.note("file", path, number)
        self.world.put(path, number)
        self.note("done")
        self.files[path] = number

    def picture(self) -> int:
        """Few pictures, so that there are many copies; now and then one that is nowhere else."""
        return int(self.rng.integers(30 if self.rng.random() < 0.6 else N_SHARED))

    def choose(self, there: bool, folder: Path | None = None, n: int = 1) -> list[str]:
        """Some files that are there, or that are not."""
        fixed = ("keep-", "single-", "blink-")
        found = [
            path
            for path, number in self.files.items()
            if (number != GONE) == there
            and not Path(path).name.startswith(fixed)
            and (folder is None or Path(path).is_relative_to(folder))
        ]
        count = min(n, len(found))
        return (
            [found[k] for k in self.rng.choice(len(found), count, replace=False)] if count else []
        )

    def tell_board(self, below: Path | None, out: frozenset[bytes] = frozenset()) -> None:
        """After an acknowledged add of a folder, or (None) a refresh that may leave some out."""
        for path, number in self.files.items():
            cell = self.world.cell[path]
            if below is not None and not Path(path).is_relative_to(below):
                continue
            if number >= 0 and self.world.digest_of[number] in out:
                continue  # whether it stays out depends on its copies, which others change
            state = self.board.state(cell)
            if number >= 0 and state != Board.SURE + number:
                self.board.say(cell, Board.SURE + number)
            elif number == GONE and below is None and state != Board.ABSENT:
                self.board.say(cell, Board.ABSENT)

    def folder(self) -> Path:
        return self.own[int(self.rng.integers(2))]

    def add_folder(self, folder: Path) -> None:
        size = int(self.rng.choice([1, 3, 8]))
        call = lambda c: c.add([str(folder)], again=True, workers=0, batch_size=size)  # noqa: E731
        if self.do("add", str(folder), call)[0]:
            self.tell_board(folder)

    def add(self) -> None:
        """New files."""
        folder = self.folder()
        for path in self.choose(False, folder, int(self.rng.integers(1, 5))):
            self.put(path, self.picture())
        self.add_folder(folder)

    def replace(self) -> None:
        """Files that become other pictures in their place; the blinking one always is there."""
        folder = self.folder()
        blinking = [path for path in self.files if Path(path).name.startswith("blink-")]
        blinking = [path for path in blinking if Path(path).is_relative_to(folder)]
        for path in blinking + self.choose(True, folder, int(self.rng.integers(2))):
            self.put(path, self.picture())
        self.add_folder(folder)

    def add_file(self) -> None:
        """One file by its name, which makes a source of its own."""
        path = str(next(own for own in self.files if "single-" in own))
        self.put(path, self.picture())
        if self.do("add", path, lambda c: c.add([path], workers=0))[0]:
            self.board.say(self.world.cell[path], Board.SURE + self.files[path])

    def broken(self) -> None:
        """A file that is no picture is passed over."""
        for path in self.choose(True):
            self.put(path, BROKEN)
            self.add_folder(self.folder())
            self.put(path, self.picture())

    def move(self) -> None:
        """A file gets another name, in the same source or in the other one."""
        for old in self.choose(True):
            for new in self.choose(False):
                if self.files[old] >= 0:
                    self.put(new, self.files[old])  # as a copy first: a link in time
                    self.put(old, GONE)
                    chosen = next(own for own in self.own if Path(new).is_relative_to(own))
                    if self.rng.random() < 0.7:
                        self.add_folder(chosen)
                    else:
                        self.refresh_all()

    def remove(self) -> None:
        """Pictures, most of them with their files."""
        paths = self.choose(True, n=int(self.rng.integers(1, 3)))
        stored = {own.path for own in read_rows(self.world.folder)}
        with_file = self.rng.random() < 0.8
        for path in set(paths) & stored:
            self.board.say(self.world.cell[path], Board.UNKNOWN)
            if with_file:
                self.put(path, GONE)
            if self.do("remove", path, lambda c, p=path: self._remove(c, p))[0] and with_file:
                self.board.say(self.world.cell[path], Board.ABSENT)
                self.search()

    def remove_folder(self) -> None:
        """All pictures below a folder, with their files."""
        folder = self.folder() / "sub"
        paths = [path for path in self.files if Path(path).is_relative_to(folder)]
        for path in paths:
            self.board.say(self.world.cell[path], Board.UNKNOWN)
            if self.files[path] != GONE:
                self.put(path, GONE)
        if self.do("remove", str(folder), lambda c: self._remove(c, str(folder)))[0]:
            for path in paths:
                self.board.say(self.world.cell[path], Board.ABSENT)

    def _remove(self, collection, path: str) -> None:
        try:
            collection.remove([path])
        except ValueError as error:
            if isinstance(error, StoreError | UnicodeError) or self.files.get(path, GONE) != GONE:
                raise
            raise Refused from error

    def refresh(self) -> None:
        """After a few changes of all kinds."""
        for path in self.choose(True, n=2):
            self.put(path, self.picture() if self.rng.random() < 0.5 else GONE)
        for path in self.choose(False):
            self.put(path, self.picture())
        self.refresh_all()

    def refresh_all(self) -> None:
        before = left_out(self.world.folder)
        if self.do("refresh", "", lambda c: c.refresh(workers=0, remove_empty=True))[0]:
            self.tell_board(None, before | left_out(self.world.folder))

    def import_codes(self) -> None:
        """Pictures without files, from a code file; the first writer removes them as well."""
        names = [f"{n}.png" for n in self.world.imported]
        if self.name != "writer0" or self.rng.random() < 0.5:
            self.do("import", "import", lambda c: c.import_codes(self.world.imported_file))
            return
        name = names[int(self.rng.integers(len(names)))]
        self.do("remove", f"import/{name}", lambda c: self._remove(c, name))

    operations: ClassVar[dict] = {
        "add": (14, add),
        "replace": (16, replace),
        "add file": (4, add_file),
        "broken": (1, broken),
        "move": (6, move),
        "remove": (14, remove),
        "remove folder": (2, remove_folder),
        "refresh": (4, refresh),
        "import": (2, import_codes),
        "search": (40, Actor.search),
        "snapshot": (3, Actor.snapshot),
        "check": (1, Actor.check),
        "repair": (0.5, Actor.repair),
        "info": (1, Actor.info),
        "export": (0.5, Actor.export),
        "drop arrays": (1, Actor.drop_arrays),
    }


class Reader(Actor):
    """Looks at the collection while others change it."""

    operations: ClassVar[dict] = {
        "search": (80, Actor.search),
        "snapshot": (8, Actor.snapshot),
        "check": (2, Actor.check),
        "info": (2, Actor.info),
        "export": (0.5, Actor.export),
        "drop arrays": (0.5, Actor.drop_arrays),
    }


class Client(Actor):
    """Uses the service over HTTP. It alone uploads; all its files have the same few names."""

    def begin(self) -> None:
        """Finds its uploads in the database; whether they are certain shows later."""
        self.rows: dict[int, int] = {}
        self.removed: set[int] = set()
        self.keep = {}
        for own in read_rows(self.world.folder):
            if own.path and "/uploads/" in own.path:
                self.rows[self.world.by_digest[own.digest]] = own.row
            if own.path in map(str, self.world.keeps):
                self.keep[own.row] = own.path
        self.sure: set[int] = set()

    def ask(
        self, kind: str, scope: str, method: str, path: str, body=None, kind_of_body=""
    ) -> tuple:
        """Status and content of an answer; None where the service was killed meanwhile."""
        flags = self.board.flags
        while True:  # the number first: who ends the service takes the port away first
            times, port = int(flags[Board.SERVICE]), int(flags[Board.PORT])
            if port or flags[Board.STOP]:
                break
            time.sleep(0.01)
        full = int(flags[Board.FULL]), self._is_full()
        self.note("begin", kind, scope)
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": kind_of_body}
        outcome, status, content = "cut", None, b""
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=40)) as connection:
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                status, content = answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            time.sleep(0.05)
            if times == flags[Board.SERVICE] and not flags[Board.STOP]:
                self.note("bad", "service", f"{kind} {scope}: {error!r} without being killed")
            status = None
        if status is not None and status < 500:
            outcome = "ok" if status < 300 else "refused"
        elif status == 503 and b"is shutting down" in content and times != flags[Board.SERVICE]:
            status = None  # what it was to do may be done or not
        elif status and not (status == 503 and full != (int(flags[Board.FULL]), False)):
            self.note("bad", "service", f"{kind} {scope}: {status} {content[:300]!r}")
        self.note("end", outcome)
        return status, content

    def upload(self, kind: str, scope: str, route: str, number: int) -> tuple:
        name = ("same.png", "same.png", "\u00e4 b.jpg")[int(self.rng.integers(3))]
        start = f'--X\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
        body = start.encode() + self.world.pictures[number].content + b"\r\n--X--\r\n"
        return self.ask(kind, scope, "POST", route, body, "multipart/form-data; boundary=X")

    def own_number(self) -> int:
        return N_SHARED + int(self.rng.integers(N_UPLOADS))

    def add(self) -> None:
        """A picture, often one that is there already: then it gets no second row."""
        n = self.own_number()
        was_sure = n in self.sure
        self.sure.discard(n)
        status, content = self.upload("http add", f"upload/{n}", "/api/images", n)
        if status == 201:
            row = json.loads(content)["row"]
            if was_sure and row != self.rows[n]:
                self.note("bad", "doubled", f"upload {n} is row {self.rows[n]}, and now {row}")
            self.rows[n] = row
            self.sure.add(n)
        elif status not in (None, 503):
            self.note("bad", "service", f"add {n}: {status} {content[:300]!r}")

    def delete(self) -> None:
        for n in [n for n in self.rows if self.rng.random() < 3 / (1 + len(self.rows))][:1]:
            row, was_sure = self.rows.pop(n), n in self.sure
            self.sure.discard(n)
            status, _ = self.ask("http delete", f"upload/{n}", "DELETE", f"/api/images/{row}")
            if status == 204:
                self.removed.add(row)
            elif status == 404 and was_sure:
                self.note("bad", "hidden", f"the service does not know upload {n}, row {row}")

    def search(self) -> None:
        """By a picture that is always there: with all uploads that are, without those removed."""
        row = list(self.keep)[int(self.rng.integers(len(self.keep)))]
        body = json.dumps({"queries": [{"image": row}], "limit": 200})
        status, content = self.ask(
            "http search", "", "POST", "/api/search", body, "application/json"
        )
        if status == 200:
            self._judge(json.loads(content)["hits"], self.keep[row])
        elif status == 404:
            self._see_keeps()

    def _judge(self, hits: list, keep: str) -> None:
        rows = [hit["row"] for hit in hits]
        by_row = {hit["row"]: hit["distance"] for hit in hits}
        if len(by_row) != len(rows):
            self.note("bad", "doubled", "the service finds a row twice")
        if ghosts := self.removed & set(rows):
            self.note("bad", "ghost", f"the service finds removed rows {sorted(ghosts)}")
        cell = self.board.state(self.world.cell[keep])
        code = self.world.pictures[cell - Board.SURE].encoded.image_code[None]
        for n in self.sure:
            right = int(hamming(code, self.world.pictures[n].encoded.image_code[None])[0, 0])
            if self.rows[n] not in by_row:
                self.note("bad", "hidden", f"the service does not find upload {n}")
            elif abs(by_row[self.rows[n]] - right) > 2:  # a batch may round
                self.note("bad", "stale", f"upload {n} at {by_row[self.rows[n]]}, not {right}")

    def _see_keeps(self) -> None:
        """A file that never changes keeps its row: else the row was lost and made anew."""
        rows = {own.row for own in read_rows(self.world.folder)}
        if lost := set(self.keep) - rows:
            self.note("bad", "lost", f"rows {sorted(lost)} of files that never changed are gone")
            self.begin()

    def search_upload(self) -> None:
        """By a picture that is only shown to the service."""
        n = self.own_number()
        status, content = self.upload("http upload", "", "/api/uploads", n)
        if status == 201:
            body = json.dumps({"queries": [{"upload": json.loads(content)["upload"]}], "limit": 9})
            was_sure = n in self.sure
            status, content = self.ask(
                "http search", "", "POST", "/api/search", body, "application/json"
            )
            near = (
                [hit["row"] for hit in json.loads(content)["hits"] if hit["distance"] <= 2]
                if (status == 200)
                else []
            )
            if status == 200 and was_sure and len(near) < 9 and self.rows[n] not in near:
                self.note("bad", "hidden", f"the service does not find upload {n} by itself")

    def thumbnail(self) -> None:
        """It shows the picture."""
        for n in list(self.sure)[:1]:
            status, content = self.ask(
                "http picture", "", "GET", f"/api/images/{self.rows[n]}/picture?size=160"
            )
            if status == 200:
                shown = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), float)
                own = read_image_bytes(self.world.content(n), "own", max_pixels=1 << 20)
                if shown.shape != own.shape or np.abs(shown - own).mean() > 30:
                    self.note("bad", "service", f"the thumbnail of upload {n} is another picture")
            elif status == 404:
                self.note("bad", "hidden", f"the service has no thumbnail of upload {n}")

    operations: ClassVar[dict] = {
        "search": (30, search),
        "search upload": (8, search_upload),
        "add": (20, add),
        "delete": (14, delete),
        "thumbnail": (10, thumbnail),
    }


ACTORS = {"writer": Writer, "reader": Reader, "client": Client}


def act(world: World, name: str, life: int) -> None:
    """The process `name`, for the time that it is left alive."""
    ACTORS[name.rstrip("0123456789")](world, name, life).run()


def serve(world: World) -> None:
    """The service, forked: the same code as `regionhash serve`, without seconds of imports."""
    log = os.open(world.base / "service.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)

    def note(line: str) -> None:
        world.board.flags[Board.PORT] = int(line.rstrip("/").rpartition(":")[2])

    run_server(world.folder, port=0, token=TOKEN, device="cpu", note=note)


def serve_by_command(world: World, writing: int) -> None:
    """The command itself; its first line goes to `writing`."""
    log = os.open(world.base / "service.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(writing, 1)
    os.dup2(log, 2)
    command = [sys.executable, "-m", "regionhash", "serve", str(world.folder)]
    command += ["--port", "0", "--device", "cpu"]
    os.execve(sys.executable, command, os.environ | {"REGIONHASH_TOKEN": TOKEN})
