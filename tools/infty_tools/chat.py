"""`infty chat`: a conversation with an exported model, about a book that it has read."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from infty.errors import UserError
from infty_tools.generate import (
    Device,
    MaxNewTokens,
    Memory,
    Model,
    Read,
    Seed,
    Temperature,
    TopP,
    one_bookmark,
)
from infty_tools.options import any_text_prints

if TYPE_CHECKING:
    from infty_tools.writer import Writer

ANSWER = "~~infty~~"
"""Stands for an answer in a rendered conversation: the next turn is what comes after it."""


def chat(
    model: Model,
    memory: Memory = None,
    read: Read = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.8,
    top_p: TopP = 0.95,
    seed: Seed = None,
    device: Device = None,
) -> None:
    """Talk with an exported model, about a book that it has read.

    Examples:

      infty chat --model exports/first --read moby_dick.txt

      infty chat --model exports/first --memory moby_dick.safetensors

      echo 'Who is Ishmael?' | infty chat --model exports/first --memory moby_dick.safetensors

    Each line of standard input is a turn; the answer goes to standard output as it is written, all else to standard
    error. Turns are put in the words of the model's chat template; a model that has none goes on from the line as it
    stands. Ctrl-C ends an answer; at the prompt it ends the chat, as the end of the input (Ctrl-D) does.
    """
    from infty_tools.writer import Writer, read_book

    any_text_prints()
    bookmark = one_bookmark(memory)
    book = None if read is None else read_book(read)
    writer = Writer(model, device)
    turns = Turns(writer.tokenizer)
    if bookmark is not None:
        writer.go_on_from(bookmark)
    if read is not None and book is not None:
        writer.read_book(read, book)
    _tell(_read_so_far(writer))
    for number, line in enumerate(_lines()):
        drawn_from = None if seed is None else (seed + number) % 2**63
        if _turn(writer, turns, line, (max_new_tokens, temperature, top_p, drawn_from)):
            _tell(f"[{writer.cache.tokens:,} tokens read]")


class Turns:
    """The new text of each turn: what a model that reads nothing twice has to read of the conversation."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.first = True

    def text(self, line: str) -> str:
        """What stands between the answer before, if there was one, and the answer to come. Raises UserError."""
        if self.tokenizer.chat_template is None:
            return f"{line}\n"
        earlier = [] if self.first else [("user", line), ("assistant", ANSWER)]
        whole = self._rendered([*earlier, ("user", line)])
        if not self.first and ANSWER not in whole:
            raise UserError(
                "the model's chat template leaves earlier answers out: it cannot be used"
            )
        self.first = False
        return whole.rpartition(ANSWER)[2]

    def _rendered(self, turns: list[tuple[str, str]]) -> str:
        messages = [{"role": role, "content": text} for role, text in turns]
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # templates are programs, and raise what they like
            from infty_tools.writer import first_line

            raise UserError(f"the model's chat template fails: {first_line(error)}") from error


def _turn(writer: Writer, turns: Turns, line: str, how: tuple[Any, ...]) -> bool:
    """Read a turn and print the answer; False for a turn that holds nothing to read."""
    try:
        ids = writer.encode(turns.text(line))
    except UserError as error:
        if turns.tokenizer.chat_template is not None:
            raise
        _tell(str(error))
        return False
    writer.read(ids)
    with _interrupts() as told:
        for piece in writer.text(_until(told, writer.write(*how))):
            print(piece, end="", flush=True)
    print(flush=True)
    if told and not sys.stdin.isatty():
        raise KeyboardInterrupt
    return True


def _until(told: list[int], tokens: Iterator[int]) -> Iterator[int]:
    """Tokens until a signal is told."""
    for token in tokens:
        yield token
        if told:
            return


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collect Ctrl-C, so that a token is read whole or not at all; one that comes second interrupts at once."""
    told: list[int] = []

    def note(number: int, _frame: object) -> None:
        if told:
            raise KeyboardInterrupt
        told.append(number)

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, note)
    try:
        yield told
    finally:
        signal.signal(signal.SIGINT, before)


def _lines() -> Iterator[str]:
    """The lines of standard input that are not empty; with a prompt and editing where a person types."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  gives input() editing and history

        typed = iter(_typed, None)
    else:
        reconfigure = getattr(sys.stdin, "reconfigure", lambda **_: None)
        reconfigure(errors="replace")
        typed = iter(sys.stdin)
    for line in typed:
        if line.strip():
            yield line.strip()


def _typed() -> str | None:
    """A line, None at the end of the input."""
    try:
        if sys.stdout.isatty():
            return input("> ")
        print("> ", end="", file=sys.stderr, flush=True)  # the prompt is no part of the answers
        return input()
    except EOFError:
        _tell("")
        return None


def _read_so_far(writer: Writer) -> str:
    named = [f"{text.name} ({text.tokens:,} tokens)" for text in writer.cache.texts]
    return f"read: {', '.join(named)}" if named else "nothing read yet"


def _tell(text: str) -> None:
    typer.echo(text, err=True)


__all__ = ["Turns", "chat"]
