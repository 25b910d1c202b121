import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from vla.processing.text import TextTokenizer, normalize_instruction

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
