"""Faults of models and their logs, by kind: each ends in one line that says what is wrong, or is gone."""

import csv
from pathlib import Path

import pytest
import torch
from stable_baselines3.common.logger import CSVOutputFormat

from dhmm_rl.errors import InputError
from dhmm_rl.model import DHMMGPT2, generate
from dhmm_rl.model.generate import choose
from dhmm_rl.tokens import Tokenizer
from dhmm_rl.training.logs import QuotedCSV, make_logger, read_log

NAMES = ["pixels[3,4,0]", 'the "left" wheel', "speed, angle", "Größe", "two\nlines", "plain", ""]


# Logs


def test_logs_are_csv_whatever_the_names(tmp_path: Path) -> None:
    names = [f"bits/{name}" for name in NAMES]
    logger = make_logger(tmp_path, "pretrain")
    for step in range(3):
        for number, name in enumerate(names[: 4 + step]):  # names may join later
            logger.record(name, 10.0 * step + number)
        logger.dump(step)
    logger.close()
    rows = read_log(tmp_path, "pretrain")
    with (tmp_path / "progress_pretrain.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == rows
    wanted = [" ".join(name.split()) for name in names[:6]]
    assert [{name: row[name] for name in wanted} for row in rows] == [
        {name: f"{10.0 * step + number}" if number < 4 + step else "" for number, name in enumerate(wanted)}
        for step in range(3)
    ]
    assert set(rows[0]) == set(wanted)


def test_plain_names_are_logged_as_stable_baselines_does(tmp_path: Path) -> None:
    for kind in (CSVOutputFormat, QuotedCSV):
        log = kind(str(tmp_path / kind.__name__))
        log.write({"a/b": 1.0}, {"a/b": ()}, 0)
        log.write({"a/b": 2.0, "c": "text, more"}, {"a/b": (), "c": ()}, 1)
        log.write({"a/b": 2.0, "hidden": 1.0}, {"a/b": (), "hidden": ("csv",)}, 2)
        log.close()
    assert (tmp_path / "QuotedCSV").read_bytes() == (tmp_path / "CSVOutputFormat").read_bytes()


# Weights that are not numbers


def damaged(model: DHMMGPT2, part: str, value: float) -> DHMMGPT2:
    """The model with one value of one parameter replaced in every row."""
    dict(model.named_parameters())[part].data.view(-1).fill_(value)
    return model.eval()


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "part", ["ln_f.weight", "head", "blocks.0.c_fc.weight", "chain.emission_logits", "chain.transition_logits"]
)
def test_weights_that_are_not_numbers_choose_no_token(part: str, value: float, greedy: bool, cartpole: Tokenizer) -> None:
    flat = damaged(DHMMGPT2(10, embed_size=16, heads=2), part, value)
    streams = damaged(DHMMGPT2.from_tokenizer(cartpole, embed_size=16, heads=2), part, value)
    first = torch.tensor([[[slot.start for slot in streams.slots]]])
    for model, prompt in ((flat, torch.tensor([[1, 2]])), (streams, first)):
        with pytest.raises(InputError, match=r"predictions are not finite numbers.*earlier checkpoint"):
            generate(model, prompt, 3, greedy=greedy)


# Arguments out of range


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1e-40, 1e-300, float("inf"), float("nan")])
def test_temperatures_out_of_range_are_refused(temperature: float) -> None:
    with pytest.raises(InputError, match=r"temperature is .*positive and finite"):
        choose(torch.randn(3, 5), temperature=temperature)


@pytest.mark.parametrize("temperature", [1e-37, 1e-10, 1e30])
def test_any_other_temperature_chooses(temperature: float) -> None:
    logits = torch.tensor([[1e3, 0.0, -torch.inf, 999.0]]).expand(500, -1)
    chosen = choose(logits, temperature=temperature)
    assert set(chosen.tolist()) == ({0} if temperature < 1 else {0, 1, 3})
