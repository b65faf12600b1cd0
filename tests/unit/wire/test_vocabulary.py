"""Tokenizers of several makes: cut at the marker or whole, the tokens are the same; unsound markers are not taken."""

import json
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from beaconry.values.errors import OperatorError
from beaconry.wire.piece_cache import PieceCache
from beaconry.wire.vocabulary import Vocabulary

MARKER, END = "<|im_start|>", "<|im_end|>"
SAMPLE = f"{MARKER}user\na{END}\n{MARKER}assistant\nb{END}\n{MARKER}user\nc{END}\n{MARKER}assistant\n"
CORPUS = [
    "user assistant hello there, the answer is 42 " * 5,
    "aaa aab abb  bbb\n\n a  b",
    "Grüße über ▁ die Straße",
] * 3


def trained(pre_tokenizer, normalizer=None, *, special=None):
    special = special or [AddedToken(MARKER, special=True), AddedToken(END, special=True)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        special_tokens=["<unk>", "<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(special)
    return tokenizer


MAKES = {
    "byte level": lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "byte level, prefix space": lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "metaspace first": lambda: trained(pre_tokenizers.Metaspace(prepend_scheme="first")),
    "metaspace always": lambda: trained(pre_tokenizers.Metaspace(prepend_scheme="always")),
    "llama 2": lambda: trained(
        pre_tokenizers.Sequence([]), normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    ),
    "rstrip": lambda: trained(
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        special=[AddedToken(MARKER, special=True, rstrip=True), AddedToken(END, special=True)],
    ),
    "nfc": lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.NFC()),
}


@pytest.fixture(scope="module", params=MAKES)
def vocabulary(request):
    return Vocabulary(MAKES[request.param]().to_str(), {})


@given(
    st.lists(
        st.sampled_from(
            [MARKER, END, "<|im_", "start|>", "user\n", "a", " ", "  b", "\n", "the answer", "é", "▁", "<"]
        ),
        max_size=14,
    )
)
def test_tokens_of_the_pieces_are_the_tokens_of_the_whole(vocabulary, parts):
    text = "".join(parts)
    marker = vocabulary.marker(SAMPLE)
    assert marker == MARKER
    tokens = array("I")
    for piece in PieceCache(marker, 10_000).cut(text):
        tokens.extend(vocabulary.encode(piece))
    assert tokens == vocabulary.encode(text)


@pytest.mark.parametrize(
    ("special", "marker"),
    [
        ([AddedToken(MARKER, special=True, lstrip=True), AddedToken(END, special=True)], END),
        ([AddedToken(MARKER, normalized=True), AddedToken(END, special=True)], END),
        ([AddedToken(MARKER, special=True), AddedToken(END, special=True), AddedToken("x", single_word=True, normalized=False)], None),
        ([AddedToken(MARKER, special=True), AddedToken("a<|", special=True)], None),
        ([AddedToken(MARKER, special=True), AddedToken(MARKER + "user", special=True)], MARKER + "user"),
        ([AddedToken(MARKER, special=True), AddedToken("<|im", special=True)], MARKER),
    ],
    ids=["lstrip", "normalized", "single word", "overlapped", "within another", "begins like another"],
)  # fmt: skip
def test_only_a_sound_special_token_is_a_marker(special, marker):
    tokenizer = trained(pre_tokenizers.ByteLevel(add_prefix_space=False), special=special)
    assert Vocabulary(tokenizer.to_str(), {}).marker(SAMPLE) == marker


def test_texts_without_special_tokens_have_no_marker(vocabulary):
    assert vocabulary.marker("user: a\nassistant: b") is None


def test_what_goes_around_a_plain_prompt_is_the_post_processors_or_the_settings():
    tokenizer = trained(pre_tokenizers.ByteLevel(add_prefix_space=False))
    bos, end = tokenizer.token_to_id("<s>"), tokenizer.token_to_id(END)
    assert (Vocabulary(tokenizer.to_str(), {}).before, Vocabulary(tokenizer.to_str(), {}).after) == (
        array("I"),
        array("I"),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    with_bos = Vocabulary(tokenizer.to_str(), {})
    assert (list(with_bos.before), list(with_bos.after)) == ([bos], [])
    settings = {"add_bos_token": False, "add_eos_token": True, "bos_token": "<s>", "eos_token": {"content": END}}
    configured = Vocabulary(tokenizer.to_str(), settings)
    assert (list(configured.before), list(configured.after)) == ([], [end])


def test_truncation_and_padding_of_the_file_are_ignored():
    tokenizer = trained(pre_tokenizers.ByteLevel(add_prefix_space=False))
    expected = tokenizer.encode("hello there the answer").ids
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    assert list(Vocabulary(tokenizer.to_str(), {}).encode("hello there the answer")) == expected


def test_tokens_that_only_the_settings_have_are_added_if_the_ids_fit():
    tokenizer = trained(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.decoder = decoders.ByteLevel()
    number = tokenizer.get_vocab_size()
    listed = {str(number): {"content": "<|new|>", "special": True, "lstrip": False}}
    assert list(Vocabulary(tokenizer.to_str(), {"added_tokens_decoder": listed}).encode("<|new|>")) == [number]
    with pytest.raises(OperatorError, match="do not belong together"):
        Vocabulary(tokenizer.to_str(), {"added_tokens_decoder": {str(number + 7): {"content": "<|new|>"}}})
    with pytest.raises(OperatorError, match="no content"):
        Vocabulary(tokenizer.to_str(), {"added_tokens_decoder": {str(number): {}}})


def test_files_that_cannot_be_used_are_the_operators_fault():
    with pytest.raises(OperatorError, match=r"tokenizer\.json"):
        Vocabulary(json.dumps({"model": {}}), {})
    tokenizer = trained(pre_tokenizers.ByteLevel(add_prefix_space=False)).to_str()
    with pytest.raises(OperatorError, match="'<none>' is not in"):
        Vocabulary(tokenizer, {"add_bos_token": True, "bos_token": "<none>"})
