"""One-line messages and the argument parser."""

import logging
import warnings

import pytest

from deocc.messages import ArgumentParser, describe_error, one_line, say, show_logs, telling_warnings


def test_describe_error_is_one_short_line() -> None:
    assert one_line(" a\n\tb  c ") == "a b c"
    assert describe_error(ValueError("a\nb")) == "a b"
    assert describe_error(ValueError("x" * 500), limit=200) == "x" * 200
    assert describe_error(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_say_and_warnings_print_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with telling_warnings():
        warnings.warn("two\nlines", stacklevel=1)
        say("first")
    assert capsys.readouterr().err == "deocc: first\ndeocc: two lines\n"


def test_logged_warnings_are_marked_once(capsys: pytest.CaptureFixture[str]) -> None:
    show_logs()
    show_logs()
    logger = logging.getLogger("deocc.callbacks.panels")
    logger.warning("cannot write %s", "a\nb")
    logger.info("not shown")
    assert capsys.readouterr().err == "deocc: cannot write a b\n"


def test_argument_parser_raises_and_takes_no_abbreviation() -> None:
    parser = ArgumentParser(prog="deocc x")
    parser.add_argument("--detector")
    with pytest.raises(ValueError, match=r"^deocc x: unrecognized arguments: --det a; see deocc x --help$"):
        parser.parse_args(["--det", "a"])
