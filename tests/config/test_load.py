"""Experiment files are read, extended and overridden by rules a reader can predict; bad ones are told in one line."""

from pathlib import Path

import pytest

from cmray.config.load import load_raw, merged
from cmray.config.plan import plan_experiment
from cmray.core.errors import ConfigError

TRAIN = "train: {steps: 60, batch_size: 8, optimizer: {warmup_steps: 50}}\n"


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # so that messages show paths as the user would write them

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def complaint(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_raw(path, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_chain_of_files_is_merged_from_the_deepest_up(write):
    write("deep/base.yaml", "seed: 1\ntrain: {steps: 10, optimizer: {lr: 1.0, eps: 0.5}}\n")
    write("middle.yaml", "extends: deep/base.yaml\ntrain: {steps: 20, optimizer: {lr: 2.0}}\n")
    top = write("top.yaml", "extends: [middle.yaml]\ntrain: {optimizer: {lr: 3.0}}\n")
    raw = load_raw(top)
    assert raw.values == {"seed": 1, "train": {"steps": 20, "optimizer": {"lr": 3.0, "eps": 0.5}}}
    assert raw.origin("train.optimizer.lr") == "top.yaml"
    assert raw.origin("train.steps") == "middle.yaml"
    assert raw.origin("train.optimizer.eps") == "deep/base.yaml"
    assert raw.origin("seed.no.such") == "deep/base.yaml", "the nearest mapping around it"


def test_of_several_parents_the_later_wins(write):
    write("a.yaml", "seed: 1\nname: a\n")
    write("b.yaml", "seed: 2\n")
    assert load_raw(write("top.yaml", "extends: [a.yaml, b.yaml]\n")).values == {"seed": 2, "name": "a"}


def test_one_file_may_be_extended_on_two_ways(write):
    write("base.yaml", "seed: 1\n")
    write("a.yaml", "extends: base.yaml\nname: a\n")
    write("b.yaml", "extends: base.yaml\n")
    assert load_raw(write("top.yaml", "extends: [a.yaml, b.yaml]\n")).values == {"seed": 1, "name": "a"}


def test_circles_are_shown(write):
    write("a.yaml", "extends: b.yaml\n")
    write("b.yaml", "extends: c/c.yaml\n")
    write("c/c.yaml", "extends: ../a.yaml\n")
    assert complaint(Path("a.yaml")) == "a.yaml: extends goes in a circle: a.yaml -> b.yaml -> c/c.yaml -> a.yaml"
    assert "circle" in complaint(write("self.yaml", "extends: self.yaml\n"))


def test_a_missing_file_is_named_and_who_wants_it(write):
    assert complaint(Path("none.yaml")) == "experiment file none.yaml does not exist"
    top = write("top.yaml", "extends: presets/none.yaml\n")
    assert complaint(top) == "experiment file presets/none.yaml does not exist, but top.yaml extends it"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 1\ntrain:\n  steps: 3\n  steps: 4\n", "key 'steps' is given twice (line 4)"),
        ("seed: 1\nseed: 2\n", "key 'seed' is given twice (line 2)"),
        ("a: {b: 1, b: 1}\n", "key 'b' is given twice (line 1)"),
        ("a: [1, 2\nb: 3\n", "line"),
        ("a: b: c\n", "(line 1)"),
        ("\tseed: 1\n", "(line 1)"),
        ("? [1, 2]\n: 3\n", "a key must be a name (line 1)"),
        ("null: 3\n", "a key must be a name (line 1)"),
        ("a: !!python/object/apply:os.system [true]\n", "could not determine a constructor"),
        ("a: 2020-99-99\n", "not valid YAML"),
        ("a: &x {b: *x}\n", "not valid YAML"),
        ("a: " + "[" * 3000 + "\n", "not valid YAML"),
        ("- a\n- b\n", "an experiment file is a mapping of fields, found list"),
        ("", "a mapping of fields, found NoneType"),
        ("extends: 3\nseed: 1\n", "extends: a file name or a list of them is allowed, found 3"),
        ("extends: [a.yaml, {b: c}]\n", "extends: a file name or a list"),
        ('extends: "a\\0b"\n', "cannot be read"),
        ("data: {path: ~nobody-of-this-name/x}\n", "data.path: ~nobody-of-this-name/x cannot be found"),
        ("seed: 1" + "0" * 5000 + "\n", "not valid YAML"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_bad_files_are_told_by_name_and_line(write, text, words):
    found = complaint(write("x.yaml", text))
    assert words in found
    assert "x.yaml" in found or "cannot be read" in found


def test_a_folder_and_bytes_that_are_no_text(write, tmp_path):
    assert "cannot be read: Is a directory" in complaint(tmp_path)
    path = tmp_path / "x.yaml"
    path.write_bytes(b"seed: \xff\xfe\x00")
    assert "x.yaml cannot be read" in complaint(path)


def test_merge_keys_of_yaml_work_and_may_be_overridden(write):
    path = write("x.yaml", "a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}\n")
    assert load_raw(path).values["d"] == {"b": 1, "c": 3}
    assert "key 'c' is given twice" in complaint(write("y.yaml", "a: &x {b: 1}\nd: {<<: *x, c: 3, c: 4}\n"))


def test_paths_are_relative_to_the_file_that_names_them(write, tmp_path):
    write("presets/base.yaml", "data: {path: digits}\nteacher: {experiment: edm.yaml}\n")
    values = load_raw(write("top.yaml", "extends: presets/base.yaml\n")).values
    assert values["data"]["path"] == str(tmp_path / "presets" / "digits")
    assert values["teacher"]["experiment"] == str(tmp_path / "presets" / "edm.yaml")
    values = load_raw(write("abs.yaml", "data: {path: /data/x}\nteacher: {checkpoint: ckpt}\n")).values
    assert values == {"data": {"path": "/data/x"}, "teacher": {"checkpoint": str(tmp_path / "ckpt")}}


@pytest.mark.parametrize(
    ("below", "above", "together"),
    [
        ({"name": "cd", "solver": "heun"}, {"name": "ct"}, {"name": "ct"}),
        ({"name": "cd", "solver": "heun"}, {"name": "cd", "mu": 0}, {"name": "cd", "solver": "heun", "mu": 0}),
        ({"name": "cd", "solver": "heun"}, {"mu": 0}, {"name": "cd", "solver": "heun", "mu": 0}),
        ("cd", {"mu": 0}, {"name": "cd", "mu": 0}),
        ("cd", {"name": "ct"}, {"name": "ct"}),
        ({"name": "cd", "mu": 0}, "ct", "ct"),
        ({"name": "cd"}, None, None),
        (None, {"name": "cd"}, {"name": "cd"}),
        ([1, 2], [3], [3]),
    ],
)
def test_a_component_of_another_name_replaces_the_one_below_whole(below, above, together):
    assert merged({"x": below, "y": 1}, {"x": above}) == {"x": together, "y": 1}


def test_merging_changes_neither_side():
    below, above = {"a": {"b": 1}}, {"a": {"c": {"d": 2}}}
    out = merged(below, above)
    out["a"]["c"]["d"] = 3
    out["a"]["b"] = 4
    assert (below, above) == ({"a": {"b": 1}}, {"a": {"c": {"d": 2}}})


@pytest.mark.parametrize(
    ("item", "key", "value"),
    [
        ("train.steps=100", ("train", "steps"), 100),
        ("train.steps=1_000", ("train", "steps"), 1000),
        (" seed = 3", ("seed",), 3),
        ("train.ema=[0.9, 0.99]", ("train", "ema"), [0.9, 0.99]),
        ("objective={name: ct, mu: 0.5}", ("objective",), {"name": "ct", "mu": 0.5}),
        ("objective.solver=euler", ("objective", "solver"), "euler"),
        ("curve=null", ("curve",), None),
        ("curve=", ("curve",), None),
        ("description=a=b", ("description",), "a=b"),
        ("new.deep.field=true", ("new", "deep", "field"), True),
    ],
)
def test_set_takes_any_yaml_value(write, item, key, value):
    path = write("x.yaml", "seed: 0\nobjective: {name: cd, solver: heun}\ntrain: {steps: 1}\n")
    raw = load_raw(path, [item])
    found = raw.values
    for part in key:
        found = found[part]
    assert found == value
    assert raw.origin(".".join(key)) == f"--set {item}"


def test_set_keeps_the_other_fields_and_the_last_one_wins(write):
    path = write("x.yaml", "objective: {name: cd, solver: heun}\n")
    values = load_raw(path, ["objective.mu=0.1", "objective.mu=0.2"]).values
    assert values == {"objective": {"name": "cd", "solver": "heun", "mu": 0.2}}
    assert load_raw(path, ["objective.name=ct"]).values == {"objective": {"name": "ct"}}


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("train.steps", "--set train.steps: write it as key=value"),
        ("=3", "write it as key=value"),
        ("a=[1", "the value is not valid YAML"),
        ("a={b: 1, b: 2}", "given twice"),
        ("a=2020-99-99", "the value is not valid YAML"),
        ("a..b=1", "field 'a..b' has an empty part"),
        (".a=1", "empty part"),
        ("a.=1", "empty part"),
        ("seed.x=1", "field 'seed.x': seed is 0, which has no fields of its own"),
        ("list.0=1", "has no fields of its own"),
    ],
)
def test_a_bad_set_is_told(write, item, words):
    assert words in complaint(write("x.yaml", "seed: 0\nlist: [1]\n"), item)


@pytest.mark.parametrize(
    ("base", "over", "result"),
    [
        ({"data": {"name": "digits"}}, {"data": {"path": "x"}}, {"data": {"path": "x"}}),
        ({"data": {"path": "x"}}, {"data": {"name": "digits"}}, {"data": {"name": "digits"}}),
        (
            {"teacher": {"experiment": "e", "overrides": {"seed": 1}}},
            {"teacher": {"checkpoint": "c"}},
            {"teacher": {"checkpoint": "c"}},
        ),
        ({"teacher": {"checkpoint": "c"}}, {"teacher": {"experiment": "e"}}, {"teacher": {"experiment": "e"}}),
    ],
)
def test_an_alternative_takes_the_place_of_the_other(base, over, result):
    assert merged(base, over) == result


def test_fields_that_contradict_each_other_name_the_options_that_took_part(write, tmp_path):
    path = write("e.yaml", "name: e\ndata: {name: digits}\nnet: {name: mlp}\nobjective: {name: edm}\n" + TRAIN)
    with pytest.raises(ConfigError) as error:
        plan_experiment(path, ["train.steps=40", "seed=3", "train.batch_size=4"], tmp_path / "storage")
    assert str(error.value) == (
        "e.yaml with --set train.steps=40 with --set train.batch_size=4: train: "
        "optimizer.warmup_steps 50 exceeds steps 40"
    )
    with pytest.raises(ConfigError, match=r"^e\.yaml: train: optimizer\.warmup_steps 70 exceeds steps 60"):
        plan_experiment(write("e.yaml", path.read_text().replace("50", "70")), [], tmp_path / "storage")
