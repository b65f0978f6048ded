"""What the tracker sends, seen with a store in memory that can be away, refuse, or fail half-way."""

from collections.abc import Mapping, Sequence

import pytest

from cmray.core.errors import CmrayError
from cmray.tracking import outbox
from cmray.tracking.make import make_tracker
from cmray.tracking.mirror import SYNCED_TAG, Found, MirrorTracker, Point
from cmray.tracking.names import check_uri, flatten, metric_name, ui_command
from cmray.tracking.records import Event
from cmray.tracking.served import ServedModel


class FakeStore:
    def __init__(self) -> None:
        self.away = False
        self.refused: set[str] = set()
        self.runs: dict[str, Found] = {}
        self.points: list[Point] = []
        self.tags: dict[str, str] = {}
        self.calls: list[str] = []
        self.lose_tags = False

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.away:
            raise ConnectionError("connection refused by http://ann:secret@host")
        if name in self.refused:
            raise ValueError(f"{name} is not allowed")

    def where(self) -> str:
        return "MLflow at http://host"

    def ui_command(self) -> str:
        return "http://host"

    def probe(self) -> None:
        self._call("probe")

    def open_experiment(self, name: str, tags: Mapping[str, str]) -> str:
        self._call("open_experiment")
        return "1"

    def open_run(self, experiment: str, key: str, name: str, tags: Mapping[str, str]) -> Found:
        self._call("open_run")
        metrics = {point.name for point in self.points}
        return Found(key, "RUNNING", dict(self.tags), set(), metrics)

    def send(self, run: str, params: Mapping[str, str], tags: Mapping[str, str], points: Sequence[Point]) -> None:
        self._call("send")
        self.points += points
        if self.lose_tags and points:
            raise ConnectionError("gone after the points")
        self.tags.update(tags)

    def history(self, run: str, metric: str) -> dict[int, float]:
        self._call("history")
        return {point.step: point.value for point in self.points if point.name == metric}

    def upload(self, run: str, data: bytes, file: str) -> None:
        self._call("upload")

    def remove(self, run: str, file: str) -> None:
        self._call(f"remove {file}")

    def add_dataset(self, run: str, name: str, digest: str, source: str, rows: int) -> None:
        self._call("add_dataset")

    def register(self, experiment: str, run: str, model: ServedModel) -> None:
        self._call(f"register {model.name}")

    def end(self, run: str, status: str) -> None:
        self._call(f"end {status}")


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def lines() -> list[str]:
    return []


def opened(store: FakeStore, lines: list[str]) -> MirrorTracker:
    tracker = MirrorTracker(store, lines.append)
    tracker.start_experiment("fig3")
    tracker.open_run("trial", "a trial", params={}, tags={})
    return tracker


def train(*steps: int, time: float = 1.0) -> list[Event]:
    return [Event(kind="train", step=s, nimg=s, time=time, metrics={"loss": s / 2}) for s in steps]


def curve(*steps: int, time: float = 1.0) -> list[Event]:
    return [Event(kind="curve", step=s, nimg=s, time=time, metrics={"fd/digits@1": 1.0}) for s in steps]


def sent(store: FakeStore, name: str) -> list[int]:
    return [point.step for point in store.points if point.name == name]


def test_a_key_that_was_not_opened_is_an_error(store, lines):
    tracker = opened(store, lines)
    with pytest.raises(KeyError):
        tracker.sync_events("other", [])
    with pytest.raises(KeyError):
        tracker.open_run("child", "c", parent_key="other", params={}, tags={})


def test_repeated_steps_are_sent_once_in_one_process_and_over_two(store, lines):
    tracker = opened(store, lines)
    tracker.sync_events("trial", train(1, 2, 3))
    tracker.sync_events("trial", train(2, 3, 4, time=9.0))
    opened(store, lines).sync_events("trial", train(1, 2, 3, 4, 5, time=10.0))
    assert sent(store, "loss") == [1, 2, 3, 4, 5]
    assert store.tags[SYNCED_TAG] == "5"


def test_a_finished_trial_is_replayed_without_reading_its_history(store, lines):
    opened(store, lines).sync_events("trial", train(*range(50)))
    store.calls.clear()
    opened(store, lines).sync_events("trial", train(*range(50)))
    assert "history" not in store.calls
    assert "send" not in store.calls


def test_curve_points_may_come_in_any_order(store, lines):
    tracker = opened(store, lines)
    tracker.sync_events("trial", curve(20))
    tracker.sync_events("trial", curve(10))
    opened(store, lines).sync_events("trial", curve(10, 15, 20, time=5.0))
    assert sent(store, "fd/digits/nfe_1") == [20, 10, 15]


def test_points_without_their_tag_are_not_doubled(store, lines):
    """A driver killed between the points and the tag; the resumed trial repeats the steps at other times."""
    tracker = opened(store, lines)
    store.lose_tags = True
    tracker.sync_events("trial", train(1, 2))
    store.lose_tags, store.points = False, store.points[:2]
    assert SYNCED_TAG not in store.tags
    opened(store, lines).sync_events("trial", train(1, 2, 3, time=7.0))
    assert sent(store, "loss") == [1, 2, 3]


def test_a_store_that_is_away_is_named_once_and_gets_everything_in_order_later(store, lines, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(outbox.time, "monotonic", lambda: now[0])
    store.away = True
    tracker = opened(store, lines)
    assert tracker.open_run("trial", "a trial", params={}, tags={}) is None
    tracker.sync_events("trial", train(1))
    calls = len(store.calls)
    for step in range(2, 100):
        tracker.sync_events("trial", train(step))
    assert len(store.calls) == calls, "a store found away is left alone for a while"
    assert len(lines) == 1
    assert "MLflow at http://host is away; the sweep goes on" in lines[0]
    assert "secret" not in lines[0]
    assert "\n" not in lines[0]
    tracker.close_run("trial", "finished")
    store.away, now[0] = False, 1000.0
    tracker.sync_events("trial", train(100))
    assert sent(store, "loss") == list(range(1, 101))
    assert store.calls[-1] != "probe"
    assert "end FINISHED" in store.calls
    assert len(lines) == 1


def test_closing_says_what_was_not_sent(store, lines):
    store.away = True
    tracker = opened(store, lines)
    tracker.sync_events("trial", train(1))
    tracker.close()
    assert len(lines) == 2
    assert "3 updates were not sent" in lines[1]


def test_what_the_store_refuses_is_named_once_and_does_not_stop_the_rest(store, lines):
    store.refused = {"upload"}
    tracker = opened(store, lines)
    tracker.log_text("trial", "a", "a.txt")
    tracker.log_text("trial", "b", "b.txt")
    tracker.sync_events("trial", train(1))
    (line,) = lines
    assert line.startswith("MLflow at http://host did not take a file: ValueError: upload is not allowed; it stays in")
    assert sent(store, "loss") == [1]


def test_a_file_is_taken_back_once_and_only_where_there_is_one(store, lines):
    tracker = opened(store, lines)
    tracker.remove_file("trial", "error.txt")
    tracker.log_text("trial", "a", "error.txt")
    again = opened(store, lines)  # the next sweep's, which knows of the file by the run's tags
    again.remove_file("trial", "error.txt")
    again.remove_file("trial", "error.txt")
    assert [call for call in store.calls if call.startswith("remove")] == ["remove error.txt"]
    again.log_text("trial", "a", "error.txt")
    assert store.calls.count("upload") == 2
    assert not lines


def test_a_store_that_takes_no_runs_is_one_line_and_gets_all_of_them_once_it_does(store, lines):
    store.refused = {"open_run"}
    for _ in range(2):
        tracker = opened(store, lines)
        tracker.sync_events("trial", train(1, 2))
        tracker.log_text("trial", "a", "a.txt")
        tracker.close_run("trial", "finished")
        tracker.close()
        if store.refused:
            (line,) = lines
            assert "did not take a run: ValueError: open_run is not allowed" in line
            assert "next `cmray sweep` tries again" in line
        store.refused = set()
    assert sent(store, "loss") == [1, 2]
    assert "end FINISHED" in store.calls
    assert len(lines) == 1


def test_a_model_is_registered_under_its_run(store, lines, tmp_path):
    tracker = opened(store, lines)
    with pytest.raises(KeyError):
        tracker.register_model("other", ServedModel("fig3", tmp_path, 1, (80.0,)))
    tracker.register_model("trial", ServedModel("fig3", tmp_path, 1, (80.0,)))
    assert store.calls[-1] == "register fig3"


def test_a_file_that_is_gone_is_named(store, lines, tmp_path):
    opened(store, lines).log_artifact("trial", tmp_path / "grid.png")
    assert "grid.png" in lines[0]


def test_unchanged_files_are_uploaded_once_over_two_processes(store, lines, tmp_path):
    picture = tmp_path / "grid.png"
    for content in (b"1", b"1", b"2"):
        picture.write_bytes(content)
        tracker = opened(store, lines)
        tracker.log_artifact("trial", picture, "samples")
        tracker.log_dict("trial", {"path": tmp_path, "lr": 0.1, "grid": (1, 2)}, "config.yaml")
    assert store.calls.count("upload") == 3
    for number in range(300):
        tracker.log_text("trial", "x", f"samples/{number:06}.txt")
    assert len(store.tags["cmray.artifacts"]) <= 5000
    assert lines == []


def test_ending_twice_ends_once(store, lines):
    tracker = opened(store, lines)
    tracker.close_run("trial", "failed")
    tracker.close_run("trial", "failed")
    assert store.calls.count("end FAILED") == 1


def test_metric_names():
    assert metric_name("fd/digits@1") == "fd/digits/nfe_1"
    assert metric_name("fd/digits") == "fd/digits"
    assert metric_name("loss (t=1)%") == "loss _t_1__"
    assert metric_name("/a//../b/") == "_/a/_/_/b/_"
    assert len(metric_name("x" * 900)) == 250


def test_params_are_flat_text():
    config = {
        "a": {"b": {"c": None}, "d": True},
        "e": {},
        "f": [1, {"g": 2.5}],
        "ключ": "日本",
        "h": "x" * 9000,
    }
    flat = flatten(config)
    assert flat["a.b.c"] == "null"
    assert flat["a.d"] == "true"
    assert flat["e"] == "{}"
    assert flat["f"] == '[1, {"g": 2.5}]'
    assert flat["ключ"] == "日本"
    assert len(flat["h"]) == 6000


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("htpp://host:5000", "did you mean 'http'"),
        ("mlruns", "without a scheme"),
        ("file:///tmp/mlruns", "allowed: databricks"),
        ("http://", "names no host"),
        ("http://host:port", "malformed"),
        ("http://[::1", "malformed"),
        ("", "without a scheme"),
    ],
)
def test_a_uri_that_mlflow_cannot_use_is_refused_at_once(uri, message, tmp_path):
    with pytest.raises(CmrayError, match=message):
        make_tracker(uri, tmp_path / "new", print)
    assert not (tmp_path / "new").exists()


def test_ui_commands_hide_passwords():
    command = "mlflow ui --backend-store-uri {} --host 127.0.0.1 --port 5000"
    assert ui_command("sqlite:////a/mlflow.db") == command.format("sqlite:////a/mlflow.db")
    assert ui_command("sqlite:////a b/mlflow.db") == command.format("'sqlite:////a b/mlflow.db'")
    assert ui_command("postgresql+psycopg2://ann:pw@h/db") == command.format('"$MLFLOW_TRACKING_URI"')
    assert ui_command("https://ann:pw@host:5000/x") == "https://host:5000/x"
    for uri in ("databricks", "databricks://profile", "mysql+pymysql://h/db", "http://127.0.0.1:5000"):
        check_uri(uri)


def test_noop(tmp_path):
    tracker = make_tracker("none", tmp_path, print)
    tracker.start_experiment("x")
    assert tracker.open_run("k", "n", params={}, tags={}) is None
    tracker.sync_events("k", train(1))
    with pytest.raises(KeyError):
        tracker.log_text("other", "t", "a.txt")
    assert tracker.ui_command() is None
