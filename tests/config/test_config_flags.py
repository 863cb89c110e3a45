"""Configs as flags of a command line."""

import argparse
from typing import Annotated, Literal

import pytest
from pydantic import Field

from genjax.config import (
    Config,
    add_arguments,
    from_arguments,
)
from tests.config.sample import Part, refusal

pytestmark = pytest.mark.fast


class Request(Config):
    prompts: list[str] = Field(default=["The"])
    """Texts to go on from."""
    max_length: int = Field(default=32, ge=1, le=100)
    """Longest answer in tokens; 50% of them are spaces."""
    temperature: float = Field(default=1.0, gt=0)
    """Heat of the softmax."""
    top_k: Annotated[int, Field(ge=1)] | None = 40
    """Keep this many tokens."""
    stop: str | None = None
    greedy: bool = False
    """Take the likeliest token."""
    method: Literal["ancestral", "beam"] = "ancestral"


def request(*arguments: str) -> Request:
    parser = argparse.ArgumentParser()
    add_arguments(parser, Request)
    return from_arguments(parser.parse_args(arguments), Request)


def test_flags_make_a_config():
    assert request() == Request()
    assert request(
        *("--prompts", "a b", "c", "--max-length", "7", "--temperature", "1e-1", "--top-k=none"),
        *("--stop", ".", "--greedy", "--method", "beam"),
    ) == Request(
        prompts=["a b", "c"],
        max_length=7,
        temperature=0.1,
        top_k=None,
        stop=".",
        greedy=True,
        method="beam",
    )
    assert request("--no-greedy").greedy is False


def test_flags_beside_other_flags():
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    add_arguments(parser, Request)
    assert from_arguments(parser.parse_args(["folder", "--top-k", "3"]), Request).top_k == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "-1"], "--temperature: input should be greater than 0, not '-1'"),
        (
            ["--max-length", "101"],
            "--max-length: input should be less than or equal to 100, not '101'",
        ),
        (["--max-length", "ten"], "--max-length: input should be a valid integer, not 'ten'"),
        (["--method", "best"], "--method: 'best' is not one of 'ancestral', 'beam'"),
        (
            ["--temperature", "x", "--top-k", "0"],
            "--temperature: input should be a valid number, not 'x'\n"
            "--top-k: input should be greater than or equal to 1, not '0'",
        ),
    ],
)
def test_a_flag_out_of_range_is_told_in_one_line(arguments: list[str], message: str):
    assert refusal(request, *arguments) == message


def test_flags_explain_themselves():
    parser = argparse.ArgumentParser()
    add_arguments(parser, Request)
    text = " ".join(parser.format_help().split())
    for expected in (
        "--prompts TEXT [TEXT ...] Texts to go on from. ([str, ...], default ['The'])",
        "--max-length INT Longest answer in tokens; 50% of them are spaces. "
        "(int >= 1, <= 100, default 32)",
        "--top-k INT Keep this many tokens. (int >= 1 or none, default 40)",
        "--greedy, --no-greedy Take the likeliest token. (bool, default false)",
        "--method {ancestral,beam} (ancestral|beam, default ancestral)",
    ):
        assert expected in text


def test_a_required_flag_is_asked_for(capsys: pytest.CaptureFixture[str]):
    parser = argparse.ArgumentParser(prog="generate")
    add_arguments(parser, Part)
    with pytest.raises(SystemExit):
        parser.parse_args([])
    assert "the following arguments are required: --path" in capsys.readouterr().err
    assert refusal(from_arguments, argparse.Namespace(), Part) == (
        "--path: missing, and it has no default"
    )
