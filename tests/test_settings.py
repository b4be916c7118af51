from dataclasses import dataclass
from pathlib import Path

import pytest

from regionhash.training import TrainingConfig
from regionhash.training.settings import options_from, training_settings


def test_nothing_given_leaves_all_to_the_defaults():
    assert training_settings("region-dh") == ({}, TrainingConfig())


def test_values_go_to_the_table_that_knows_their_name(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text("[model]\nn_bits = 48\nlatent_std = 1\n[training]\nlearning_rate = 1\n")
    arguments, config = training_settings(
        "region-dh",
        file=file,
        assignments=["fusion=plain", "semantic=false", "epochs=3", "n_bits=32"],
        flags={"epochs": 4, "seed": None},
    )
    assert arguments == {"n_bits": 32, "latent_std": 1.0, "fusion": "plain", "semantic": False}
    assert config == TrainingConfig(learning_rate=1.0, epochs=4)
    assert type(arguments["latent_std"]) is type(config.learning_rate) is float


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model]\nbits = 3", r"a.toml: \[model\] bits: unknown; known are n_bits, backbone,"),
        ("[training]\nn_bits = 8", r"a.toml: \[training\] n_bits: unknown; known are epochs,"),
        ("[model]\nn_classes = 3", r"a.toml: \[model\] n_classes: unknown"),
        ("[modle]", r"a.toml: unknown key 'modle'; known are \[model\] and \[training\]"),
        ("epochs = 3", "a.toml: unknown key 'epochs'"),
        ("[training]\nepochs = 'many'", r"\[training\] epochs: must be int, got 'many'"),
        ("[training]\nepochs = 1.5", r"\[training\] epochs: must be int, got 1.5"),
        ("[training]\nepochs = true", r"\[training\] epochs: must be int, got True"),
        ("[training]\nflip = 1", r"\[training\] flip: must be bool, got 1"),
        ("[training]\nschedule = 'x'", r"schedule: must be one of cosine, step, constant, got 'x'"),
        ("[model]\nlatent_std = 'x'", r"\[model\] latent_std: must be float, got 'x'"),
        ("[model]\nlatent_std =", "a.toml: broken TOML"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_place(tmp_path, text, message):
    file = tmp_path / "a.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        training_settings("region-dh", file=file)


def test_wrong_assignments_and_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="--set epochs: must be name=value"):
        training_settings("ssdh", assignments=["epochs"])
    with pytest.raises(ValueError, match="--set epochs: must be int, got 'x'"):
        training_settings("ssdh", assignments=["epochs=x"])
    with pytest.raises(ValueError, match=r"a\.toml: cannot read the settings: No such file"):
        training_settings("ssdh", file=tmp_path / "a.toml")
    with pytest.raises(ValueError, match="unknown model 'x'"):
        training_settings("x")
    with pytest.raises(ValueError, match=r"^epochs must be at least 1, got 0$"):
        training_settings("ssdh", flags={"epochs": 0})


@dataclass(frozen=True)
class Settings:
    rate: float = 0.5
    seed: int = 0
    start: Path | None = None
    specs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rate > 1:
            raise ValueError(f"rate must be at most 1, got {self.rate}")


def test_a_dataclass_is_filled_by_assignments_and_flags():
    assert options_from(Settings, []) == Settings()
    given = ["rate=1", "seed=9000000000", "start=runs/a", 'specs=["folder:a", "folder:b"]']
    expected = Settings(1.0, 9_000_000_000, Path("runs/a"), ("folder:a", "folder:b"))
    assert options_from(Settings, given) == expected
    flags = {"rate": 0.25, "seed": None, "specs": ["folder:c"]}
    assert options_from(Settings, ["rate=1", "seed=3"], flags) == Settings(
        0.25, 3, None, ("folder:c",)
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("short=3", "--set short: unknown; known are rate, seed, start, specs"),
        ("rate", "--set rate: must be name=value"),
        ("rate=x", "--set rate: must be float, got 'x'"),
        ("rate=2", "--set rate: rate must be at most 1, got 2.0"),
        ("start=3", "--set start: must be Path, got 3"),
        ("specs=[3]", "--set specs: must be str, got 3"),
    ],
)
def test_a_dataclass_refuses_what_it_does_not_have(given, message):
    with pytest.raises(ValueError) as caught:
        options_from(Settings, [given])
    assert str(caught.value) == message
