"""Instructions as token ids: byte-level BPE, trained offline on the demonstrations' instructions.

Case and most punctuation carry no command, so they are removed in one place before training and encoding
alike. What belongs to a number stays: its sign, decimal point and percent sign (`normalize_instruction`).
Every byte is a token of its own, so words never seen in training still encode (into more tokens). Text ids
come first in the one id space of the model (RT-2, arXiv:2307.15818), those of action tokens behind them:

    0    1    2    3 ...           num_ids ...
    pad  bos  -  | text (BPE)    | action ids of the codec, if it has any
"""

import itertools
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from jaxtyping import Int64
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from vla.interface import PAD_ID, Arrays, ArraySpec, Moments, ObservationError
from vla.processing.checks import require_keys
from vla.processing.moments import Demonstrations
from vla.registry import Choices, Range
from vla.spec import RobotSpec

NUM_BYTES = 256
BOS_ID = 1  # before every instruction, so that a blank one is not empty
TEXT_OFFSET = 3  # id of the first token of the text tokenizer; 2 is reserved
_MOST_REMEMBERED = 4096  # instructions whose ids are kept at hand
WORDS_ONLY, WITH_NUMBERS = (
    1,
    2,
)  # rules of `normalize_instruction`; a tokenizer keeps its own
REFUSE, ALLOW = "refuse", "allow"
_APOSTROPHE = "'\N{RIGHT SINGLE QUOTATION MARK}"
_DASH = "\N{HYPHEN}\N{NON-BREAKING HYPHEN}\N{FIGURE DASH}\N{EN DASH}\N{MINUS SIGN}-"  # the last ends sets
_NO_WORD_BEFORE = r"(?<![^\W_])"
_OF_A_NUMBER = re.compile(
    rf"(?<=\d)[.,:/{_APOSTROPHE}{_DASH}](?=\d)"  # 1.5  1,000  10:30  1/2  3-4
    rf"|{_NO_WORD_BEFORE}[{_DASH}](?=\.?\d)"  # -90, but not that of joint-2
    rf"|{_NO_WORD_BEFORE}\.(?=\d)"  # .5
    r"|(?<=\d)\s*[%\N{PER MILLE SIGN}]"  # 10%  10 %
)
_SAME_MARK = str.maketrans(dict.fromkeys(_DASH, "-") | {"\N{RIGHT SINGLE QUOTATION MARK}": "'"})
_SENTENCE_MARKS = r"""[.,;:!?'"()\u2018-\u201d\u2026-]"""  # they separate words and mean no more


def normalize_instruction(text: str, *, rule: int = WITH_NUMBERS) -> str:
    """Return the words of `text` in lower case with single spaces; apostrophes vanish, other marks separate.

    What belongs to a number stays, as it carries the command: a minus, a decimal point, a percent sign, and
    marks between digits. By the rule of before (`WORDS_ONLY`), these go as well; both treat a text without
    digits alike.

    >>> normalize_instruction("  Pick-up the RED cube, please! ")
    'pick up the red cube please'
    >>> normalize_instruction("Don't stop...")
    'dont stop'
    >>> normalize_instruction("Turn joint-2 by -90 degrees, then by 1.5. Open it 10 %!")
    'turn joint 2 by -90 degrees then by 1.5 open it 10%'
    """
    # A half of a surrogate pair is no character and has no UTF-8 bytes.
    text = text.encode("utf-8", errors="ignore").decode("utf-8")
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower())
    if rule == WORDS_ONLY:
        return " ".join(_without_marks(re.sub(f"[{_APOSTROPHE}]", "", text)).split())
    text = re.sub(rf"(?<!\d)[{_APOSTROPHE}]|[{_APOSTROPHE}](?!\d)", "", text)
    pieces, start = [], 0
    for found in _OF_A_NUMBER.finditer(text):
        pieces += [_without_marks(text[start : found.start()]), found.group().strip().translate(_SAME_MARK)]
        start = found.end()
    return " ".join("".join([*pieces, _without_marks(text[start:])]).split())


def _without_marks(text: str) -> str:
    """Return the text with a space in place of each mark."""
    return "".join(" " if unicodedata.category(char).startswith("P") else char for char in text)


def equal_instructions(instructions: Sequence[str]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the pairs of different instructions that normalize to the same text, hence to the same tokens.

    Returns:
        Pairs that may mean different things, and those that differ in case, spaces and sentence marks alone.
    """
    harmful, harmless = [], []
    by_text: dict[str, list[str]] = {}
    for instruction in dict.fromkeys(instructions):
        by_text.setdefault(normalize_instruction(instruction), []).append(instruction)
    for alike in by_text.values():
        for pair in itertools.pairwise(alike):
            plain = {_without_sentence_marks(instruction) for instruction in pair}
            (harmless if len(plain) == 1 else harmful).append(pair)
    return harmful, harmless


def _without_sentence_marks(text: str) -> str:
    """Return the text in lower case without spaces and sentence marks, but for marks next to a number."""
    text = " ".join(unicodedata.normalize("NFC", text).lower().split())
    text = re.sub(r"[.,;:!?]+(?=\s|$)|(?<=[^\W\d_])-(?=\d)", " ", text)  # "by 3."  joint-2
    text = re.sub(rf"(?<!\d)(?<!\d ){_SENTENCE_MARKS}(?! ?\d)", " ", text)
    return "".join(text.split())


class TextTokenizer:
    """Byte-level BPE (arXiv:1508.07909): `tokens` in the order of their ids, `merges` in the order applied.

    >>> tokenizer = TextTokenizer.train(["push the red cube", "push the blue cube"], vocab_size=280)
    >>> tokenizer.decode(tokenizer.encode("Push the blue cube!"))
    'push the blue cube'
    >>> len(tokenizer.encode("push")), len(tokenizer.encode("zigzag"))
    (1, 7)
    """

    def __init__(
        self, *, tokens: Sequence[str], merges: Sequence[tuple[str, str]], rule: int = WITH_NUMBERS
    ) -> None:
        if rule not in (WORDS_ONLY, WITH_NUMBERS):
            raise ValueError(
                f"the text tokenizer normalizes by rule {rule}; this version knows {WORDS_ONLY} and "
                f"{WITH_NUMBERS}. Use the version of this program that wrote it"
            )
        self.rule = rule
        self._tokens, self._merges = list(tokens), [(left, right) for left, right in merges]
        known = set(self._tokens)
        lacking = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - known)
        if lacking or len(known) != len(self._tokens):
            raise ValueError(
                f"the text vocabulary lacks {len(lacking)} of {NUM_BYTES} byte tokens and repeats "
                f"{len(self._tokens) - len(known)} tokens; it was not written by TextTokenizer.to_json"
            )
        ids = {token: i for i, token in enumerate(self._tokens)}
        self._tokenizer = _byte_level(models.BPE(vocab=ids, merges=self._merges))

    @classmethod
    def train(cls, texts: Sequence[str], *, vocab_size: int = 512) -> "TextTokenizer":
        """Learn at most `vocab_size` tokens (256 bytes and merges) from instructions, in any order.

        Raises:
            ValueError: there is no instruction, or `vocab_size` has no room for the 256 bytes.
        """
        if not texts:
            raise ValueError("there are no instructions to train the text tokenizer on")
        if vocab_size < NUM_BYTES:
            raise ValueError(f"text vocab_size is {vocab_size}; the {NUM_BYTES} bytes alone need {NUM_BYTES}")
        tokenizer = _byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        tokenizer.train_from_iterator(sorted(normalize_instruction(text) for text in texts), trainer=trainer)
        ids = tokenizer.get_vocab()
        tokens = sorted(ids, key=lambda token: ids[token])
        return cls(tokens=tokens, merges=_merges_of(tokenizer))

    @property
    def vocab_size(self) -> int:
        """Number of tokens; fewer than requested when the instructions had no more pairs to merge."""
        return len(self._tokens)

    def encode(self, text: str) -> list[int]:
        """Return ids in [0, vocab_size) of the normalized text; a blank instruction gives none."""
        normalized = normalize_instruction(text, rule=self.rule)
        return list(self._tokenizer.encode(normalized).ids) if normalized else []

    def decode(self, ids: Sequence[int]) -> str:
        """Return the normalized text that the ids stand for."""
        return self._tokenizer.decode(list(ids)).removeprefix(" ")

    def to_json(self) -> dict[str, Any]:
        """Return tokens and merges, independent of the library's own file format."""
        merges = [list(pair) for pair in self._merges]
        return {"rule": self.rule, "tokens": list(self._tokens), "merges": merges}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "TextTokenizer":
        """Rebuild from `to_json`, exactly; without a rule it is of a version that knew `WORDS_ONLY`."""
        data = {"rule": WORDS_ONLY, **data}
        require_keys(data, ("rule", "tokens", "merges"), what="text tokenizer")
        merges = [(left, right) for left, right in data["merges"]]
        return cls(tokens=data["tokens"], merges=merges, rule=data["rule"])


class InstructionTooLong(ObservationError):
    """An instruction has more tokens than the model has positions for."""


class TextInput:
    """Makes `text_ids`, int64 [batch token]: bos, the instruction, then padding.

    Raises:
        ValueError: `max_tokens` is less than 1.
    """

    def __init__(self, *, tokenizer: TextTokenizer, max_tokens: int) -> None:
        if max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens}; it must be positive")
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self._rows: dict[str, Int64[np.ndarray, " token"]] = {}

    @classmethod
    def fit(
        cls,
        demonstrations: Demonstrations,
        *,
        frame_offsets: Sequence[int],
        max_tokens: Annotated[
            int, Range(1, 1024), "longest instruction, in tokens, one for the beginning"
        ] = 32,
        vocab_size: Annotated[int, Range(NUM_BYTES, 65536), "most different tokens of text"] = 512,
        same_tokens: Annotated[
            str, Choices(REFUSE, ALLOW), "different instructions that no model can tell apart"
        ] = REFUSE,
    ) -> "TextInput":
        """Train the tokenizer on the demonstrated instructions.

        Raises:
            ValueError: there is no instruction, two different ones have the same tokens (those that differ
                in case, spaces and sentence marks alone may), or `vocab_size` is too small.
            InstructionTooLong: a demonstrated instruction has more than `max_tokens` tokens.
        """
        harmful, _ = equal_instructions(demonstrations.instructions)
        if harmful and same_tokens == REFUSE:
            one, other = harmful[0]
            raise ValueError(
                f"the instructions {one!r} and {other!r} have the same tokens (both read "
                f"{normalize_instruction(one)!r}), so a policy could not tell them apart; "
                f"{len(harmful)} such pairs in all. Word them differently when recording, or, if they mean "
                f"the same, give processor.inputs.text.same_tokens={ALLOW}"
            )
        tokenizer = TextTokenizer.train(demonstrations.instructions, vocab_size=vocab_size)
        made = cls(tokenizer=tokenizer, max_tokens=max_tokens)
        made.encode_text(demonstrations.instructions)
        return made

    def specs(self) -> Mapping[str, ArraySpec]:
        """Return the form of `text_ids`."""
        num_ids = TEXT_OFFSET + self.tokenizer.vocab_size
        return {"text_ids": ArraySpec("int64", (self.max_tokens,), num_ids=num_ids)}

    def encode(self, moments: Moments) -> Arrays:
        """Return the ids of the instructions.

        Raises:
            InstructionTooLong: one has more than `max_tokens` tokens; the message names the limit.
        """
        return {"text_ids": self.encode_text(moments.instructions)}

    def encode_text(self, instructions: Sequence[str]) -> Int64[np.ndarray, "batch token"]:
        """Return ids [batch, max_tokens]: bos, the instruction, then padding.

        Raises:
            InstructionTooLong: bos and the instruction exceed `max_tokens`; the message names the limit.
        """
        return np.stack([self._row(instruction) for instruction in instructions])

    def _row(self, instruction: str) -> Int64[np.ndarray, " token"]:
        if instruction in self._rows:
            return self._rows[instruction]
        row = np.full(self.max_tokens, PAD_ID, dtype=np.int64)
        row[0] = BOS_ID
        ids = np.asarray(self.tokenizer.encode(instruction), dtype=np.int64)
        if 1 + ids.size > self.max_tokens:
            raise InstructionTooLong(
                f"instruction {instruction!r} has {1 + ids.size} tokens (one marks the beginning); the "
                f"limit is {self.max_tokens} (processor.inputs.text.max_tokens). Shorten it or train with a "
                "larger one"
            )
        row[1 : 1 + ids.size] = ids + TEXT_OFFSET
        if len(self._rows) >= _MOST_REMEMBERED:
            self._rows.clear()
        self._rows[instruction] = row
        return row

    def to_json(self) -> dict[str, Any]:
        """Return the tokenizer and the limit."""
        return {"kind": "text", "max_tokens": self.max_tokens, "tokenizer": self.tokenizer.to_json()}

    @classmethod
    def from_json(
        cls, data: dict[str, Any], *, robot_spec: RobotSpec, frame_offsets: Sequence[int]
    ) -> "TextInput":
        """Rebuild from `to_json`, exactly."""
        require_keys(data, ("kind", "max_tokens", "tokenizer"), what="text input")
        return cls(tokenizer=TextTokenizer.from_json(data["tokenizer"]), max_tokens=data["max_tokens"])


def _byte_level(model: models.BPE) -> Tokenizer:
    """Return a library tokenizer in which every word, the first too, begins with a space."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _merges_of(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Return the learned merges, which the library gives out in its JSON only."""
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [(left, right) for left, right in merges]
