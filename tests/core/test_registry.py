"""Components are found by name, lazily, and a wrong name is answered with the nearest."""

import sys

import pytest
from pydantic import BaseModel, Field, ValidationError

from cmray.core.errors import ConfigError, UnknownNameError, nearest
from cmray.core.registry import ComponentConfig, Registry, component


@pytest.fixture
def animals():
    registry = Registry("animal", [])

    @registry.register("cat")
    class Cat(ComponentConfig):
        lives: int = Field(9, ge=1)

    @registry.register("horse")
    class Horse(ComponentConfig):
        pass

    return registry


def test_get_names_and_parse(animals):
    assert animals.names() == ["cat", "horse"]
    cat = animals.parse({"name": "cat", "lives": 3})
    assert (type(cat), cat.name, cat.lives) == (animals.get("cat"), "cat", 3)
    assert animals.parse("cat").lives == 9
    assert animals.parse(cat) is cat
    assert animals.get("horse")().name == "horse"


def test_names_are_in_order_whatever_was_registered_first(animals):
    animals.register("bee")(type("Bee", (ComponentConfig,), {}))
    assert animals.names() == ["bee", "cat", "horse"]


def test_the_same_name_twice_is_an_error_that_names_both_modules(animals):
    with pytest.raises(ValueError, match=r"animal 'cat' is registered twice: .* and test_registry"):

        @animals.register("cat")
        class OtherCat(ComponentConfig):
            pass

    assert animals.get("cat")().lives == 9, "the first one must stay"


def test_a_module_that_is_imported_again_may_register_itself_again(animals):
    cls = animals.get("cat")
    assert animals.register("cat")(cls) is cls


def test_an_unknown_name_is_answered_with_the_nearest_and_all(animals):
    message = r"unknown animal 'hose'; did you mean 'horse'\? \(allowed: cat, horse\)"
    with pytest.raises(UnknownNameError, match=message):
        animals.get("hose")
    with pytest.raises(UnknownNameError, match=r"unknown animal 'xyz'; \(allowed: cat, horse\)"):
        animals.get("xyz")
    assert issubclass(UnknownNameError, ConfigError)
    assert ConfigError.exit_code == 2
    assert nearest("a", []) == "(allowed: nothing)"


@pytest.mark.parametrize("value", [3, None, ["cat"], {"lives": 3}, {"name": 3}])
def test_what_is_no_component_is_refused_with_the_names(animals, value):
    class Owner(BaseModel):
        pet: component(animals)

    with pytest.raises(ValidationError, match="a animal is a name or a mapping with 'name', one of: cat, horse; found"):
        Owner(pet=value)


def test_a_field_parses_names_mappings_and_bare_numbers_and_dumps_the_subclass(animals):
    class Owner(BaseModel):
        pet: component(animals, number=("cat", "lives"))

    assert Owner(pet=4).pet.lives == 4
    assert Owner(pet="horse").pet.name == "horse"
    dumped = Owner(pet={"name": "cat", "lives": 2}).model_dump()
    assert dumped == {"pet": {"name": "cat", "lives": 2}}
    assert Owner.model_validate(dumped).pet.lives == 2
    with pytest.raises(ValidationError, match="did you mean 'horse'"):
        Owner(pet="horsey")
    with pytest.raises(ValidationError, match="lives"):
        Owner(pet=0)


def test_packages_are_imported_at_the_first_look_up_and_only_then(tmp_path, monkeypatch):
    package = tmp_path / "zoo_for_test"
    package.mkdir()
    (package / "__init__.py").write_text("from cmray.core.registry import Registry\nzoo = Registry('x', [__name__])\n")
    for name in ("ape", "bee"):
        (package / f"{name}.py").write_text(
            "from cmray.core.registry import ComponentConfig\nfrom zoo_for_test import zoo\n"
            f"@zoo.register('{name}')\nclass C(ComponentConfig):\n    legs: int = 4\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        from zoo_for_test import zoo

        assert "zoo_for_test.ape" not in sys.modules
        assert zoo.parse("bee").legs == 4
        assert zoo.names() == ["ape", "bee"]
        assert "zoo_for_test.ape" in sys.modules
    finally:
        for name in [m for m in sys.modules if m.split(".")[0] == "zoo_for_test"]:
            del sys.modules[name]
