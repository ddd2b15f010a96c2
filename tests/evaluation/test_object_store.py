"""An S3 on loopback as the cache, while it misbehaves: no line is lost, doubled or different.

The trials hand on what they counted; docs/reliability.md tells of it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import requests
import torch
from faults import ToyBench, ToyExecutor, make_bench

from benchsr.evaluation import executors
from benchsr.evaluation.cache import AttackCache
from benchsr.evaluation.executors import InProcess, load_executor
from benchsr.results.records import Record

pytest.importorskip("moto.server", reason="moto is not installed: benchsr[dev]")
s3fs: Any = pytest.importorskip("s3fs", reason="s3fs is not installed: benchsr[s3]")

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app  # noqa: E402
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server  # noqa: E402
from werkzeug.test import run_wsgi_app  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.reliability]

CPU = torch.device("cpu")
WORKERS = 4
CUT_SECONDS = 10
ADDRESS = "s3://attacked/toy"
EXPIRED = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"


class _Quiet(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        pass


class Store:
    """An S3 that can be cut off, refuse expired credentials and show listings of long ago."""

    def __init__(self) -> None:
        self.s3: Any = DomainDispatcherApplication(create_backend_app)
        self.port = 0
        self.expired = self.late = False
        self.asked: Counter[str] = Counter()
        self._listings: dict[str, tuple[Iterable[bytes], str, Any]] = {}
        self.up()

    def up(self) -> None:
        self._server: BaseWSGIServer = make_server("127.0.0.1", self.port, self, threaded=True, request_handler=_Quiet)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def down(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def cut(self) -> None:
        """Nothing answers for CUT_SECONDS."""
        self.down()
        time.sleep(CUT_SECONDS)
        self.up()

    def __call__(self, environ: dict[str, Any], respond: Callable[..., Any]) -> Iterable[bytes]:
        self.asked[environ["REQUEST_METHOD"]] += 1
        if self.expired:
            respond("400 Bad Request", [("Content-Type", "application/xml")])
            return [EXPIRED]
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
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    made = Store()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "toy",
        "AWS_SECRET_ACCESS_KEY": "toy",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{made.port}",
    }.items():
        monkeypatch.setenv(name, value)
    requests.post(f"http://127.0.0.1:{made.port}/moto-api/reset", timeout=60)  # its buckets outlive its server
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("attacked")
    yield made
    made.down()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToyBench:
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "user-cache"))
    monkeypatch.setattr("benchsr.metrics.quality.lpips_net", None)  # ToyMake sets it, and pytest puts the real one back
    monkeypatch.setattr("benchsr.evaluation.worker.load_network", None)
    monkeypatch.setattr(executors, "START_SECONDS", 1800)  # what is tried here is no machine's speed
    return make_bench(tmp_path, n_images=10)


def after(evaluations: int, act: Callable[[], None]) -> Callable[[Record], None]:
    """Do `act`, beside the run, once so many evaluations are done."""
    done = 0

    def watch(_: Record) -> None:
        nonlocal done
        done += 1
        if done == evaluations:
            threading.Thread(target=act, daemon=True).start()

    return watch


def run(bench: ToyBench, out: str, watch: Callable[[Record], None] = lambda _: None, seconds: float = 0.02) -> None:
    bench.run(out, ToyExecutor(load_executor("local", "cpu", WORKERS), seconds=seconds, watch=watch), cache=ADDRESS)


def compare(bench: ToyBench, out: str, record_property: Callable[[str, object], None]) -> None:
    """Assert that no line is lost, doubled or different from those of an undisturbed run with a folder."""
    if not (bench.folder / "whole").exists():
        bench.run("whole", ToyExecutor(InProcess(CPU)))
    whole, found = bench.table("whole"), bench.table(out)
    assert len(whole.query("status == 'ok'")) == bench.evaluations
    lost, doubled = len(whole.index.difference(found.index)), int(found.index.duplicated().sum())
    record_property("evaluations", bench.evaluations)
    record_property("lost", lost)
    record_property("doubled", doubled)
    assert (lost, doubled) == (0, 0)
    pd.testing.assert_frame_equal(whole, found)


def fresh() -> AttackCache:
    """The cache as another process sees it: s3fs remembers listings."""
    s3fs.S3FileSystem.clear_instance_cache()
    return AttackCache(ADDRESS)


def test_the_network_is_cut_for_10_seconds(
    bench: ToyBench, store: Store, record_property: Callable[[str, object], None]
) -> None:
    """The cache in an object store whose network is cut for 10 seconds; 4 workers."""
    run(bench, "out", after(20, store.cut), seconds=0.5)
    compare(bench, "out", record_property)
    assert fresh().damaged() == {}
    record_property("kept", len(list(fresh().entries())))


def test_there_is_no_network(bench: ToyBench, store: Store, record_property: Callable[[str, object], None]) -> None:
    """The cache in an object store that never answers; 4 workers."""
    store.down()
    run(bench, "out")
    compare(bench, "out", record_property)
    store.up()


def test_credentials_expire(bench: ToyBench, store: Store, record_property: Callable[[str, object], None]) -> None:
    """The cache in an object store whose credentials expire, and are renewed for the next run; 4 workers."""
    run(bench, "out", after(20, lambda: setattr(store, "expired", True)), seconds=0.2)
    compare(bench, "out", record_property)
    store.expired = False
    assert fresh().damaged() == {}
    kept = len(list(fresh().entries()))
    record_property("kept", kept)
    run(bench, "again")  # renewed: what was kept is used, what was not is computed and kept now
    compare(bench, "again", record_property)
    assert len(list(fresh().entries())) > kept


def test_listings_are_late(bench: ToyBench, store: Store, record_property: Callable[[str, object], None]) -> None:
    """The cache in an object store that lists what it held long ago: three runs and four prunes; 4 workers."""
    store.late = True
    assert list(fresh().entries()) == []
    run(bench, "out")
    compare(bench, "out", record_property)
    assert list(fresh().entries()) == []  # as before the run
    assert fresh().prune(days=0) == []
    written = store.asked["PUT"]
    run(bench, "again")  # finds every entry, listed or not
    compare(bench, "again", record_property)
    assert store.asked["PUT"] == written

    store.late = False
    entries = list(fresh().entries())
    record_property("kept", len(entries))
    assert len(entries) > 50
    store.late = True
    store._listings.clear()
    assert len(list(fresh().entries())) == len(entries)
    assert len(fresh().prune(days=0)) == len(entries)
    assert len(list(fresh().entries())) == len(entries)  # listed, and gone
    assert fresh().damaged() == {}
    assert len(fresh().prune(days=0)) == len(entries)
    run(bench, "anew")
    compare(bench, "anew", record_property)
