"""Factorized embeddings against ALBERT's count, weighted rows, and a smaller vocabulary."""

import json

import pytest
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import AlbertConfig, AlbertModel

from compresslab.factorization.embedding import (
    FactorizedEmbedding,
    factorize_embedding,
    factorize_embedding_,
)
from compresslab.factorization.svd import truncated_svd
from compresslab.factorization.vocabulary import (
    choose_tokens,
    count_tokens,
    trim_embedding_,
    trim_wordpiece,
)
from compresslab.measure import count_parameters
from compresslab.models import load_classifier

TABLE = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))


def test_it_has_as_many_numbers_as_alberts():
    config = AlbertConfig(
        vocab_size=50, embedding_size=5, hidden_size=12, num_attention_heads=2, intermediate_size=8
    )
    albert = AlbertModel(config)
    projection = albert.encoder.embedding_hidden_mapping_in
    theirs = albert.embeddings.word_embeddings.weight.numel() + projection.weight.numel()
    ours = FactorizedEmbedding(factorize_embedding(TABLE, 5))
    assert count_parameters(ours) == theirs == 50 * 5 + 5 * 12


def test_it_looks_up_the_rows_of_the_product():
    embedding = nn.Embedding.from_pretrained(TABLE, padding_idx=0)
    model = nn.ModuleDict({"words": embedding}).eval()
    factorize_embedding_(model, "words", 4)
    ids = torch.tensor([[3, 49, 0], [3, 7, 7]])
    expected = truncated_svd(TABLE, 4).product()[ids]
    torch.testing.assert_close(model["words"](ids), expected)
    assert model["words"].table.padding_idx == 0
    assert not model["words"].training


def test_frequent_rows_come_out_nearer():
    counts = torch.zeros(50, dtype=torch.int64)
    counts[:5] = 10_000
    plain = (factorize_embedding(TABLE, 5).product() - TABLE).norm(dim=1)
    weighted = (factorize_embedding(TABLE, 5, counts=counts).product() - TABLE).norm(dim=1)
    assert weighted[:5].max() < 0.05 * plain[:5].min()
    assert weighted[5:].mean() > plain[5:].mean()
    # Each occurrence counts once: the error is what diag(√(counts + 1)) · table has dropped.
    root = (counts + 1).double().sqrt()[:, None]
    error = (
        root * (factorize_embedding(TABLE.double(), 5, counts=counts).product() - TABLE)
    ).norm()
    dropped = torch.linalg.svdvals(root * TABLE)[5:].norm()
    assert error.item() == pytest.approx(dropped.item(), rel=1e-3)
    equal = factorize_embedding(TABLE, 5, counts=torch.full((50,), 7)).product()
    torch.testing.assert_close(equal, truncated_svd(TABLE, 5).product())


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"a count for each of 50 tokens, not \(12,\)"):
        factorize_embedding(TABLE, 5, counts=torch.ones(12))
    with pytest.raises(ValueError, match="has no embedding '0'"):
        factorize_embedding_(nn.Sequential(nn.Linear(3, 3)), "0", 2)


# ---------------------------------------------------------------- vocabulary


@pytest.fixture(scope="module")
def real():
    """The classifier, its tokenizer, and a vocabulary of 4,000 for two sentences."""
    model, tokenizer = load_classifier()
    texts = ["An unforgettable, heartbreaking film.", "Dull: it never gets anywhere."]
    counts = count_tokens(tokenizer(texts)["input_ids"], len(tokenizer))
    kept = choose_tokens(tokenizer.get_vocab(), counts, 4000, special=tokenizer.all_special_tokens)
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.enable_padding(pad_id=0, pad_token="[PAD]")
    definition, index = trim_wordpiece(backend.to_str(), kept)
    return model, tokenizer, texts, counts, definition, index


def encode(definition: str, text: str):
    tokenizer = Tokenizer.from_str(definition)
    tokenizer.no_padding()
    return tokenizer.encode(text)


def test_tokens_are_counted():
    assert count_tokens([[1, 2, 2], [5]], 7).tolist() == [0, 1, 2, 0, 0, 1, 0]
    assert count_tokens([], 3).tolist() == [0, 0, 0]


def test_characters_come_first_then_the_frequent_then_the_older():
    names = ["[UNK]", "a", "##b", "ab", "cd", "##ef", "gh", "[unused0]"]
    vocabulary = {token: i for i, token in enumerate(names)} | {"[unused0]": 3, "ab": 7}
    counts = torch.tensor([0, 0, 0, 0, 0, 9, 0, 1])
    assert choose_tokens(vocabulary, counts, 6, special=["[UNK]"]) == {
        *("[UNK]", "a", "##b"),
        *("##ef", "ab", "cd"),  # 9 times, once, never but before gh
    }
    with pytest.raises(ValueError, match="at least 3, the characters: 2"):
        choose_tokens(vocabulary, counts, 2, special=["[UNK]"])
    with pytest.raises(ValueError, match="token 7 has no count among 3"):
        choose_tokens(vocabulary, counts[:3], 6, special=["[UNK]"])


def test_text_of_kept_tokens_is_read_as_before(real):
    model, tokenizer, texts, _, definition, index = real
    assert len(index) == 4000
    embedding = nn.ModuleDict({"words": nn.Embedding.from_pretrained(
        model.bert.embeddings.word_embeddings.weight.detach(), padding_idx=0
    )})  # fmt: skip
    trim_embedding_(embedding, "words", index)
    for text in texts:
        old, new = tokenizer(text)["input_ids"], encode(definition, text)
        assert new.tokens == tokenizer.convert_ids_to_tokens(old)
        assert index[new.ids].tolist() == old
        torch.testing.assert_close(
            embedding["words"](torch.tensor(new.ids)),
            model.bert.embeddings.word_embeddings(torch.tensor(old)),
        )


def test_other_words_come_in_pieces_and_are_not_unknown(real):
    _, tokenizer, _, _, definition, _ = real
    text = "transcendental cinematography"
    new, old = encode(definition, text).tokens, tokenizer.tokenize(text)
    assert "[UNK]" not in new
    assert len(new) - 2 > len(old)
    assert "".join(t.removeprefix("##") for t in new[1:-1]) == text.replace(" ", "")


def test_special_tokens_have_their_new_numbers_everywhere(real):
    definition, index = real[4:]
    parts = json.loads(definition)
    vocabulary = parts["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(4000))
    for token in parts["added_tokens"]:
        assert token["id"] == vocabulary[token["content"]]
    assert parts["padding"]["pad_id"] == vocabulary["[PAD]"] == 0
    assert index[vocabulary["[CLS]"]] == 101 != vocabulary["[CLS]"]
    assert encode(definition, "film").ids[0] == vocabulary["[CLS]"]


def test_the_padding_row_moves_with_its_token():
    model = nn.ModuleDict({"words": nn.Embedding.from_pretrained(TABLE, padding_idx=3)})
    trim_embedding_(model, "words", torch.tensor([1, 3, 8]))
    assert model["words"].padding_idx == 1
    assert torch.equal(model["words"].weight, TABLE[[1, 3, 8]])


def test_bad_vocabularies_are_named(real):
    definition = real[1].backend_tokenizer.to_str()
    with pytest.raises(ValueError, match="1 tokens are not in the vocabulary, as 'nosuchtoken'"):
        trim_wordpiece(definition, {"nosuchtoken"})
    with pytest.raises(ValueError, match=r"special tokens must be kept: .*\[CLS\]"):
        trim_wordpiece(definition, {"film"})
    bpe = json.dumps({"model": {"type": "BPE"}})
    with pytest.raises(ValueError, match="must be WordPiece, not BPE"):
        trim_wordpiece(bpe, set())
