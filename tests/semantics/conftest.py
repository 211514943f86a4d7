"""Tiny random language models."""

import pytest

from fuxictr_llm.semantics.language_model import load_language_model


@pytest.fixture
def model(tiny_llm):
    return load_language_model(tiny_llm, "float32", "auto", gpu=-1)


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory, tiny_llm):
    """A folder with a random BERT and a tokenizer that frames texts with two tokens."""
    from tokenizers import Tokenizer, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny_bert")
    tokenizer = Tokenizer.from_file(str(tiny_llm / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<s>").save_pretrained(folder)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder
