"""The jobs' database, on SQLite and on a real PostgreSQL."""

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, Select, literal, select

from data_pipelines.errors import UserError
from serving.http.database import seconds_now
from serving.http.jobs import LEASE_S, ConflictError, JobStore


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/jobs.db"
    return request.getfixturevalue("postgres_url")


@pytest.fixture
def store(url: str) -> JobStore:
    store = JobStore(url)
    store.register("a", "/artifacts/a", "f" * 32)
    return store


class Clock:
    """The database's own clock, put forward."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self, engine: Engine) -> Select[tuple[float]]:
        return select(seconds_now(engine).scalar_subquery() + literal(self.ahead_s))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("serving.http.database.seconds_now", clock)
    return clock


def submit(store: JobStore, output: str = "out", **more):
    return store.submit(artifact="a", source="in.parquet", output=output, options={}, **more)[0]


def together(threads: int, work: Callable[[], None]) -> None:
    running = [threading.Thread(target=work) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


def test_each_job_is_claimed_once_whoever_asks_at_the_same_time(url):
    store = JobStore(url)
    store.register("a", "/artifacts/a", "f" * 32)
    submitted = {submit(store, f"out{i}").id for i in range(30)}
    claimed: list[str] = []

    def work() -> None:
        mine = JobStore(url)
        while (claim := mine.claim(threading.current_thread().name)) is not None:
            claimed.append(claim.id)

    together(6, work)
    assert sorted(claimed) == sorted(submitted)


def test_jobs_are_claimed_in_the_order_they_came(store):
    first, second = submit(store, "one"), submit(store, "two")
    assert [store.claim("w").id, store.claim("w").id] == [first.id, second.id]
    assert store.claim("w") is None


def test_a_dead_workers_job_is_taken_over_and_its_late_word_has_no_effect(store, clock):
    job = submit(store)
    dead = store.claim("dead")
    assert store.claim("alive") is None
    clock.ahead_s += LEASE_S + 1
    alive = store.claim("alive")
    assert alive.id == job.id
    assert not store.renew(dead, rows_done=1, rows_total=2, rows_per_s=1.0)
    assert not store.finish(dead, rows=2, quarantined=0, rows_per_s=None, drift=None)
    assert not store.fail(dead, "too late")
    assert not store.release(dead)
    assert store.finish(alive, rows=2, quarantined=0, rows_per_s=None, drift=None)
    assert (store.get(job.id).state, store.get(job.id).attempts) == ("done", 2)


def test_a_renewed_lease_is_kept(url, store, clock):
    store = JobStore(url, lease_s=1000.0)
    submit(store)
    claim = store.claim("w")
    for done in range(4):
        clock.ahead_s += 500
        assert store.renew(claim, rows_done=done, rows_total=10, rows_per_s=2.0)
    assert store.claim("other") is None
    assert store.get(claim.id).seconds_left == pytest.approx(3.5)


def test_an_idempotency_key_names_one_job(store):
    first, created = store.submit(artifact="a", source="in", output="out", options={}, idempotency_key="k")
    again, created_again = store.submit(artifact="a", source="in", output="out", options={}, idempotency_key="k")
    assert (created, created_again, again.id) == (True, False, first.id)
    with pytest.raises(ConflictError, match="another job"):
        store.submit(artifact="a", source="other", output="out", options={}, idempotency_key="k")


def test_the_same_key_at_the_same_time_makes_one_job(url, store):
    ids: list[str] = []
    together(6, lambda: ids.append(submit(JobStore(url), idempotency_key="k").id))
    assert len(ids) == 6
    assert len(set(ids)) == 1


def test_two_unfinished_jobs_do_not_write_to_one_place(store):
    submit(store)
    with pytest.raises(ConflictError, match="unfinished job already writes to out"):
        submit(store)


def test_cancel_and_retry(store):
    queued = submit(store, "one")
    assert store.cancel(queued.id).state == "cancelled"
    running = submit(store, "two")
    claim = store.claim("w")
    assert store.cancel(running.id).state == "running"
    assert not store.renew(claim, rows_done=0, rows_total=1, rows_per_s=None)
    assert store.release(claim)
    assert store.get(running.id).state == "cancelled"
    assert store.retry(running.id).state == "queued"
    with pytest.raises(ConflictError, match="is queued"):
        store.retry(running.id)
    assert store.cancel("unknown") is None
    assert store.retry("unknown") is None


def test_a_parked_job_goes_back_to_the_queue(store):
    submit(store)
    assert store.release(store.claim("w"))
    assert store.claim("other").worker == "other"


def test_jobs_keep_their_artifact_when_the_live_one_is_switched(store):
    submit(store)
    store.register("b", "/artifacts/b", "e" * 32)
    assert store.live() == "a"
    store.make_live("b")
    assert (store.live(), store.claim("w").artifact_path) == ("b", "/artifacts/a")
    with pytest.raises(ConflictError, match="no artifact 'c'"):
        store.make_live("c")


def test_a_token_is_kept_only_as_its_hash(store):
    token = store.new_token("me")
    assert store.token_name(token) == "me"
    assert store.token_name(token + "x") is None
    with store.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM tokens").all()
    assert token not in str(rows)
    with pytest.raises(ConflictError, match="already"):
        store.new_token("me")


def test_a_job_that_kills_every_worker_is_given_up(store, clock, monkeypatch):
    monkeypatch.setattr("serving.http.jobs.MAX_ATTEMPTS", 2)
    job = submit(store)
    for _ in range(3):
        store.claim("w")
        clock.ahead_s += LEASE_S + 1
    assert store.get(job.id).state == "failed"
    assert "given up" in store.get(job.id).error


@pytest.mark.parametrize(
    "wrong", ["nonsense", "nosuch://x", "postgresql://nobody@127.0.0.1:1/none", "sqlite:////nowhere/at/all.db"]
)
def test_an_unusable_url_is_said_in_one_sentence(wrong):
    with pytest.raises(UserError, match="jobs database"):
        JobStore(wrong)
