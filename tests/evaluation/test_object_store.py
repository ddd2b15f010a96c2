"""An S3 on loopback as the cache of 4 workers, while it misbehaves: no line is lost, doubled or different.

The trials hand on what they counted; docs/reliability.md tells of it.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import requests
from faults import Note, ToyBench, ToyExecutor, compare, make_bench
from toys import call

from benchsr.evaluation import executors
from benchsr.evaluation.cache import AttackCache
from benchsr.evaluation.executors import load_executor
from benchsr.results.records import Record

pytest.importorskip("moto.server", reason="moto is not installed: benchsr[dev]")
s3fs: Any = pytest.importorskip("s3fs", reason="s3fs is not installed: benchsr[s3]")

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app  # noqa: E402
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server  # noqa: E402
from werkzeug.test import run_wsgi_app  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.reliability]

WORKERS = 4
CUT_SECONDS = 10
SILENT_SECONDS = 30.0
PATIENT = {"ANSWER_SECONDS": 600.0}
"""What is tried is no machine's speed: to make a client takes CPU seconds."""

ADDRESS = "s3://attacked/toy"
WITHOUT = "going on without it"
REFUSALS = {
    "expired": ("400 Bad Request", "ExpiredToken", "The provided token has expired."),
    "forbidden": ("403 Forbidden", "AccessDenied", "Access Denied"),
}


Acts = Mapping[int, Callable[[], object]]


class _Quiet(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        pass


@dataclass
class Store:
    """An S3 that can be cut off, fall silent, refuse credentials and show listings of long ago."""

    credentials: Path
    port: int = 0
    late: bool = False
    refused: dict[str, str] = field(default_factory=dict)
    """Ids of credentials that are of no use, and why: see REFUSALS."""
    served: Counter[str] = field(default_factory=Counter)
    """Requests served, by method and id."""
    answering: threading.Event = field(default_factory=threading.Event)
    _listings: dict[str, tuple[Iterable[bytes], str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.s3: Any = DomainDispatcherApplication(create_backend_app)
        self.answering.set()
        self.give("first")
        self.up()

    def give(self, name: str) -> None:
        """What a client that reads its credentials now finds."""
        self.credentials.write_text(f"[default]\naws_access_key_id = {name}\naws_secret_access_key = toy\n")

    def up(self) -> None:
        self._server: BaseWSGIServer = make_server("127.0.0.1", self.port, self, threaded=True, request_handler=_Quiet)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def down(self) -> None:
        self.answering.set()
        self._server.shutdown()
        self._server.server_close()

    def cut(self) -> None:
        """Nothing answers for CUT_SECONDS."""
        self.down()
        time.sleep(CUT_SECONDS)
        self.up()

    def __call__(self, environ: dict[str, Any], respond: Callable[..., Any]) -> Iterable[bytes]:
        self.answering.wait()
        found = re.search("Credential=([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
        name = found.group(1) if found else ""
        if name in self.refused:
            status, code, message = REFUSALS[self.refused[name]]
            respond(status, [("Content-Type", "application/xml")])
            return [f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()]
        self.served[f"{environ['REQUEST_METHOD']} {name}"] += 1
        query = f"{environ['PATH_INFO']}?{environ['QUERY_STRING']}"
        if not (self.late and "list-type" in query):
            answer: Iterable[bytes] = self.s3(environ, respond)
            return answer
        if query not in self._listings:
            body, status, headers = run_wsgi_app(self.s3, environ)
            self._listings[query] = [b"".join(body)], status, list(headers)
        body, status, headers = self._listings[query]
        respond(status, headers)
        return body


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    made = Store(tmp_path / "credentials")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_SHARED_CREDENTIALS_FILE": str(made.credentials),
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{made.port}",
    }.items():
        monkeypatch.setenv(name, value)
    requests.post(f"http://127.0.0.1:{made.port}/moto-api/reset", timeout=60)  # its buckets outlive its server
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir("attacked")
    yield made
    made.down()


@dataclass
class Trial:
    """The toy benchmark by the command line, with the store as its cache, into folders of its `name`."""

    bench: ToyBench
    name: str
    patch: pytest.MonkeyPatch
    log: pytest.LogCaptureFixture
    printed: pytest.CaptureFixture[str]
    note: Note

    def run(
        self, out: str, acts: Acts = MappingProxyType({}), workers: int = WORKERS, seconds: float = 0.3, **cache: float
    ) -> None:
        """A run that ends well, with all rows: do each of `acts`, beside it, once so many evaluations are done.

        It takes `seconds` longer for each; `cache`: other values of the cache's constants.
        """
        done, out = 0, f"{self.name}-{out}"

        def watch(_: Record) -> None:
            nonlocal done
            done += 1
            if done in acts:
                threading.Thread(target=acts[done], daemon=True).start()

        def toys(*given: Any) -> ToyExecutor:
            return ToyExecutor(load_executor(*given), seconds=seconds, watch=watch, cache={**PATIENT, **cache})

        self.patch.setattr("benchsr.evaluation.options.load_executor", toys)
        where = self.bench.folder
        models = f"bicubic,{where / 'toy-a.toml'},{where / 'toy-b.toml'}"
        command = f"run --protocol {where / 'toy.toml'} --models {models} --out {where / out} --device cpu"
        assert call(self.patch, f"{command} --workers {workers} --cache {ADDRESS}") == 0
        printed = self.printed.readouterr()
        self.note("tracebacks", (printed.out + printed.err + self.log.text).count("Traceback"))
        assert "Traceback" not in printed.err
        compare(self.bench, out, self.note)

    @property
    def lines(self) -> list[str]:
        """What was said of the cache."""
        return [record.getMessage() for record in self.log.records if ADDRESS in record.getMessage()]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> ToyBench:
    return make_bench(tmp_path_factory.mktemp("bench"), n_images=4)


@pytest.fixture
def trial(
    bench: ToyBench,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    record_property: Note,
) -> Trial:
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "user-cache"))
    monkeypatch.setattr("benchsr.metrics.quality.lpips_net", None)  # ToyMake sets it, and pytest puts the real one back
    monkeypatch.setattr("benchsr.evaluation.worker.load_network", None)
    monkeypatch.setattr(executors, "START_SECONDS", 1800)
    for name, value in PATIENT.items():
        monkeypatch.setattr(f"benchsr.evaluation.cache.{name}", value)
    record_property("workers", WORKERS)
    record_property("evaluations", bench.evaluations)
    name = re.sub(r"\W", "-", request.node.name)
    return Trial(bench, name, monkeypatch, caplog, capfd, record_property)


def kept() -> int:
    """How many entries the cache holds, all of them whole."""
    assert AttackCache(ADDRESS).damaged() == {}
    return len(list(AttackCache(ADDRESS).entries()))


def test_the_network_is_cut_for_10_seconds(trial: Trial, store: Store, record_property: Note) -> None:
    """The cache in an object store whose network is cut for 10 seconds."""
    before: list[int] = []

    def cut() -> None:
        before.append(kept())
        store.cut()

    trial.run("out", {6: cut}, seconds=0.8, PAUSE_SECONDS=1.0)
    after = kept()
    record_property("kept", after)
    assert after > before[0]  # the store is used again


@pytest.mark.parametrize("evaluations", [0, 6])
def test_the_store_is_gone_for_good(trial: Trial, store: Store, evaluations: int, record_property: Note) -> None:
    """The cache in an object store that is gone for good."""
    record_property("gone after evaluations", evaluations)
    if not evaluations:
        store.down()
    trial.run("out", {evaluations: store.down})
    assert [WITHOUT in line for line in trial.lines] == [True]
    store.up()


def test_the_store_falls_silent(trial: Trial, store: Store) -> None:
    """The cache in an object store that takes requests, and never answers."""
    trial.run("out", {6: store.answering.clear}, ANSWER_SECONDS=SILENT_SECONDS)
    (line,) = trial.lines
    assert f"no answer within {SILENT_SECONDS} s" in line


@pytest.mark.parametrize("why", REFUSALS)
def test_credentials_are_refused_from_the_middle_of_a_run_on(
    trial: Trial, store: Store, why: str, record_property: Note
) -> None:
    """The cache in an object store that refuses its credentials from the middle of the run on."""
    record_property("refused as", why)
    trial.run("out", {6: lambda: store.refused.update(first=why)})
    (line,) = trial.lines
    assert REFUSALS[why][2] in line
    store.give("second")
    before = kept()
    record_property("kept", before)
    trial.run("again", workers=1)  # what was kept is used, what was not is computed and kept now
    assert kept() > before


def test_credentials_expire_and_are_renewed(trial: Trial, store: Store, record_property: Note) -> None:
    """The cache in an object store whose credentials expire, and are renewed while the run goes on."""
    expire, renew = (lambda: store.refused.update(first="expired")), (lambda: store.give("second"))
    trial.run("out", {6: expire, 14: renew}, PAUSE_SECONDS=1.0)
    (line,) = trial.lines
    assert REFUSALS["expired"][2] in line
    record_property("kept before", store.served["PUT first"])
    record_property("kept after", store.served["PUT second"])
    assert store.served["PUT second"] > 0
    assert store.served["GET second"] > 0


def test_listings_are_late(trial: Trial, store: Store, record_property: Note) -> None:
    """The cache in an object store that lists what it held long ago: three runs and four prunes."""
    store.late = True
    assert kept() == 0
    trial.run("out")
    assert kept() == 0  # as before the run
    assert AttackCache(ADDRESS).prune(days=0) == []
    written = store.served["PUT first"]
    trial.run("again", workers=1)  # finds every entry, listed or not
    assert store.served["PUT first"] == written

    store.late = False
    entries = kept()
    record_property("kept", entries)
    assert entries > 10
    store.late = True
    store._listings.clear()
    assert kept() == entries
    assert len(AttackCache(ADDRESS).prune(days=0)) == entries
    assert kept() == entries  # listed, and gone
    assert len(AttackCache(ADDRESS).prune(days=0)) == entries
    trial.run("anew", workers=1)


@pytest.mark.parametrize("what", ["info", "verify", "prune"])
def test_commands_name_a_store_that_cannot_be_read(
    what: str, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`benchsr cache` of an object store that refuses its credentials: an error that names it."""
    AttackCache(ADDRESS)
    store.refused["first"] = "expired"
    assert call(monkeypatch, f"cache {what} --cache {ADDRESS}") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "attacked/toy" in said
    assert REFUSALS["expired"][2] in said
