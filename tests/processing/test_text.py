import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from vla.processing.text import (
    WITH_NUMBERS,
    WORDS_ONLY,
    TextTokenizer,
    equal_instructions,
    normalize_instruction,
)

INSTRUCTIONS = [
    f"{verb} the {color} {shape}"
    for verb in ("push", "lift", "reach for", "pick up")
    for color in ("red", "green", "blue", "yellow")
    for shape in ("cube", "ball", "cylinder", "bowl")
]
TOKENIZER = TextTokenizer.train(INSTRUCTIONS, vocab_size=512)


@given(st.text())
def test_any_text_encodes_and_decodes_to_its_normal_form(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert all(0 <= i < TOKENIZER.vocab_size for i in ids)
    assert TOKENIZER.decode(ids) == normalize_instruction(text)


NUMBERS = st.text(alphabet=" 0159abé.,:/-'\u2019%\u2212\u2013\"(&")


@given(NUMBERS)
def test_normalizing_numbers_twice_changes_nothing_and_loses_no_id(text: str) -> None:
    once = normalize_instruction(text)
    assert normalize_instruction(once) == once
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == once


@given(st.text(alphabet=st.characters(exclude_categories=["Nd"])))
def test_without_digits_both_rules_are_one(text: str) -> None:
    rules = [normalize_instruction(text, rule=rule) for rule in (WORDS_ONLY, WITH_NUMBERS)]
    assert rules[0] == rules[1]


@pytest.mark.parametrize(
    "different",
    [
        ["by 90 degrees", "by -90 degrees", "by +90 degrees", "by 90° degrees"],
        ["open 15", "open 1.5", "open .15", "open 1,5", "open 1 5", "open 15%", "open 1.5%"],
        ["cube 1", "cube -1"],
        ["at 10:30", "at 10 30", "at 1030", "at 10/30", "at 10-30", "at 10.30"],
        ["x=-5", "x=5"],
    ],
)
def test_what_belongs_to_a_number_makes_a_difference(different: list[str]) -> None:
    assert len({tuple(TOKENIZER.encode(text)) for text in different}) == len(different)
    assert equal_instructions(different) == ([], [])


@pytest.mark.parametrize(
    "alike",
    [
        [
            "turn joint-2 by -90 degrees.",
            "Turn joint 2 by \u221290 degrees",
            "turn JOINT-2, by \u201390 degrees",
        ],
        ["open it 10%", "open it 10 %", "Open it 10%!"],
        ["by 1.5.", "by 1.5"],
    ],
)
def test_other_marks_make_none(alike: list[str]) -> None:
    assert len({tuple(TOKENIZER.encode(text)) for text in alike}) == 1


def test_a_tokenizer_of_before_reads_as_before() -> None:
    data = TOKENIZER.to_json()
    assert data.pop("rule") == WITH_NUMBERS
    old = TextTokenizer.from_json(data)
    assert old.rule == WORDS_ONLY
    assert TextTokenizer.from_json(old.to_json()).rule == WORDS_ONLY
    for texts in (["by -90", "by 90"], ["1.5", "1 5"], ["10%", "10"], ["5'6", "56"]):
        assert old.encode(texts[0]) == old.encode(texts[1])
        assert TOKENIZER.encode(texts[0]) != TOKENIZER.encode(texts[1])
    with pytest.raises(ValueError, match=r"by rule 3; this version knows 1 and 2"):
        TextTokenizer.from_json({**data, "rule": 3})


@pytest.mark.parametrize(
    ("one", "other", "is_harmless"),
    [
        ("Lift the cube.", "lift  the cube", True),
        ("pick-up “it”, please", "pick up it please", True),
        ("turn it by 3.", "turn it by 3", True),
        ("joint-2", "joint 2", True),
        ("turn by - 90", "turn by 90", False),
        ("turn by 5'", "turn by 5", False),
        ("take a & b", "take a b", False),
    ],
)
def test_different_instructions_with_equal_tokens_are_found(one: str, other: str, is_harmless: bool) -> None:
    pairs = ([], [(one, other)]) if is_harmless else ([(one, other)], [])
    assert equal_instructions([one, "reach", other, one]) == pairs


@given(st.text(alphabet=st.characters()))  # lone surrogates too, which have no UTF-8 bytes
def test_normalizing_twice_changes_nothing(text: str) -> None:
    once = normalize_instruction(text)
    assert normalize_instruction(once) == once


@pytest.mark.parametrize("text", ["\x00", "抓住红色方块", "🤖", "ÜBER", "​"])
def test_bytes_never_seen_in_training_still_encode(text: str) -> None:
    assert TOKENIZER.encode(text)
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == normalize_instruction(text)


@pytest.mark.parametrize(
    "text", ["Lift the RED cube!", "  lift   the red cube", "lift, the red-cube...", "“lift” the red cube?"]
)
def test_case_punctuation_and_spaces_do_not_matter(text: str) -> None:
    assert TOKENIZER.encode(text) == TOKENIZER.encode("lift the red cube")


@pytest.mark.parametrize("text", ["", "   ", "...", "?!", "\ud800"])
def test_a_blank_instruction_has_no_tokens(text: str) -> None:
    assert TOKENIZER.encode(text) == []
    assert TOKENIZER.decode([]) == ""


def test_known_words_are_one_token_each_wherever_they_stand() -> None:
    assert len(TOKENIZER.encode("push the yellow cylinder")) == 4
    assert TOKENIZER.encode("cylinder push")[0] == TOKENIZER.encode("push cylinder")[1]


def test_training_does_not_depend_on_order_or_on_the_run() -> None:
    again = TextTokenizer.train(INSTRUCTIONS[::-1], vocab_size=512)
    assert again.to_json() == TOKENIZER.to_json()


def test_json_gives_back_the_same_tokenizer() -> None:
    again = TextTokenizer.from_json(json.loads(json.dumps(TOKENIZER.to_json())))
    assert again.to_json() == TOKENIZER.to_json()
    for text in [*INSTRUCTIONS, "stack the crimson prism", "抓住"]:
        assert again.encode(text) == TOKENIZER.encode(text)


def test_vocab_size_is_an_upper_bound() -> None:
    assert TextTokenizer.train(INSTRUCTIONS, vocab_size=260).vocab_size == 260
    assert 256 < TOKENIZER.vocab_size <= 512


def test_bad_training_input_is_refused() -> None:
    with pytest.raises(ValueError, match="no instructions"):
        TextTokenizer.train([])
    with pytest.raises(ValueError, match="vocab_size is 100"):
        TextTokenizer.train(INSTRUCTIONS, vocab_size=100)


def test_damaged_json_is_refused() -> None:
    data = TOKENIZER.to_json()
    with pytest.raises(ValueError, match="lacks 6 of 256 byte tokens"):
        TextTokenizer.from_json({**data, "tokens": data["tokens"][6:]})
    with pytest.raises(ValueError, match=r"lacks \['merges'\] and has unknown keys \['merge'\]"):
        TextTokenizer.from_json({"tokens": data["tokens"], "merge": []})


def test_golden_ids() -> None:
    """Checkpoints and bundles depend on these numbers: bytes in the library's order, merges in theirs."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġt", "Ġth", "Ġthe"]
    merges = [("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e")]
    tokenizer = TextTokenizer(tokens=tokens, merges=merges)
    assert tokenizer.encode("The cup, then.") == [258, 220, 66, 84, 79, 258, 77]
