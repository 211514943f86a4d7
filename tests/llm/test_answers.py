"""Texts that a language model writes: in batches as alone, by greedy or seeded drawing, and what is stored of them."""

import json
import shutil
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch
from conftest import WORDS

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import digest_of
from fuxictr_llm.llm import answers as stored
from fuxictr_llm.llm.answers import AnswerStore, read_answers, totals
from fuxictr_llm.llm.model_files import digest_of_model, find_language_model
from fuxictr_llm.llm.writer import Draws, Writer, Writing

PROMPTS = [*(f"Data: {word}. Value:" for word in WORDS), "Fields: color; city. Value: red and green and white", "blue"]


def writing(folder, **changes):
    return Writing(**{"language_model": str(folder), "dtype": "float32", "max_new_tokens": 5, **changes})


@pytest.fixture
def store(tiny_llm):
    return lambda **changes: AnswerStore(writing(tiny_llm, **changes), -1)


def texts(answers):
    return {prompt: answer.text for prompt, answer in answers.items()}


@torch.no_grad()
def literal(model, prompt, ends, count=5):
    """The likeliest next token, one by one, each time from the whole text, without a cache."""
    row = [*model.before, *model.tokens(prompt)]
    written = []
    while len(written) < count and not (written and written[-1] in ends):
        hidden = model.hidden(model.batch([[*row, *written]]))
        written.append(int(model.lm_head(hidden[0, -1]).argmax()))
    return written


def test_an_answer_is_the_likeliest_tokens_whatever_prompts_share_its_batch(store, model):
    answers = store()(PROMPTS)
    assert len({*texts(answers).values()}) >= 3
    for prompt, answer in answers.items():
        tokens = literal(model, prompt, ends=(1,))
        assert answer.text == model.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        assert (answer.written, answer.ended) == (len(tokens), tokens[-1] == 1)
        assert answer.read == len(model.tokens(prompt)) + 1  # and the BOS token
    assert totals(answers)["tokens_written"] == sum(answer.written for answer in answers.values())


def test_an_answer_ends_where_the_folder_says(store, model, tiny_llm, tmp_path):
    folder = Path(shutil.copytree(tiny_llm, tmp_path / "ends"))
    said = json.loads((folder / "generation_config.json").read_text())
    tokens = literal(model, PROMPTS[0], ends=())
    said |= {"eos_token_id": [1, tokens[2]], "do_sample": True, "temperature": 9.0}
    (folder / "generation_config.json").write_text(json.dumps(said))
    (answer,) = store(language_model=str(folder))(PROMPTS[:1]).values()
    assert (answer.written, answer.ended) == (tokens.index(tokens[2]) + 1, True)


def test_the_chat_template_frames_a_prompt(tiny_llm, monkeypatch):
    writer = Writer(tiny_llm, writing(tiny_llm), -1)
    plain = writer.tokens("red")
    template = "{% for message in messages %}{{ message['content'] }} blue{% endfor %}"
    writer.language_model.tokenizer.chat_template = template
    assert writer.tokens("red") == writer.language_model.tokens("red blue") != plain
    writer.language_model.tokenizer.chat_template = "{{ raise_exception('no user') }}"
    with pytest.raises(UserError, match="the chat template of language model .* cannot be used: .*no user"):
        writer.tokens("red")


def test_drawn_tokens_have_the_probabilities_of_their_temperature(store):
    scores = torch.tensor([2.0, 0.0, -1.0, 1.0])
    draws = Draws(0.5, range(4000))(torch.zeros(4000, 1), scores.expand(4000, 4)).argmax(dim=1)
    shares = draws.bincount(minlength=4) / 4000
    assert torch.allclose(shares, (scores / 0.5).softmax(dim=0), atol=0.02)
    drawn = store(temperature=2.0)(PROMPTS)
    assert len({*texts(drawn).values()}) == len(PROMPTS)  # each draws for itself
    assert texts(store(temperature=2.0, seed=1)(PROMPTS[:1])).items().isdisjoint(texts(drawn).items())
    store(temperature=2.0).path.unlink()
    assert texts(store(temperature=2.0)(PROMPTS[:1])).items() <= texts(drawn).items()  # whatever is beside it


def test_a_writer_that_was_killed_goes_on_and_ends_with_the_same_answers(store, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(stored, "CPU_TOKENS", 60)  # some batches
    whole, batches = store(temperature=1.0)(PROMPTS), []
    path = store(temperature=1.0).path
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == len(PROMPTS)

    def killed(self, prompts, rows):
        batches.append(len(prompts))
        if len(batches) == 3:
            raise KeyboardInterrupt
        return answer(self, prompts, rows)

    answer = Writer.__call__
    path.unlink()
    monkeypatch.setattr(Writer, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        store(temperature=1.0)(PROMPTS)
    kept = read_answers(path)[0]
    assert 0 < len(kept) == sum(batches[:2]) < len(PROMPTS)
    path.write_bytes(path.read_bytes()[:-7])  # as a kill within a line leaves it
    resumed = store(temperature=1.0)
    assert texts(resumed(PROMPTS)) == texts(whole) and resumed.written_here == len(PROMPTS) - len(kept) + 1
    assert "1 lines of" in caplog.text and read_answers(path)[1] == 0
    again = store(temperature=1.0)
    assert texts(again(PROMPTS[::-1])) == texts(whole) and again.written_here == 0
    more = store(temperature=1.0)
    more([*PROMPTS, "one more"])
    assert more.written_here == 1


def test_lines_that_changed_do_not_count(store):
    written = store()(PROMPTS[:2])
    path = store().path
    first, second = path.read_text().splitlines(keepends=True)
    other = json.loads(first) | {"text": "something else"}
    path.write_text(f"{json.dumps(other)}\n{second}[1, 2]\n")
    assert texts(store()(PROMPTS[:2])) == texts(written)
    assert json.loads(path.with_name("manifest.json").read_text())["made_from"]["max_new_tokens"] == 5


CHANGED = {"dtype": "bfloat16", "max_new_tokens": 6, "temperature": 1.0, "seed": 3, "language_model": "b"}


def test_the_key_of_answers_has_all_that_decides_them(store, tiny_llm):
    folder = find_language_model(str(tiny_llm))

    def key(gpu=-1, digest="a", **changes):
        return digest_of(stored._made_from(writing(folder, **changes), gpu, digest))

    assert {field.name for field in fields(Writing)} == CHANGED.keys() == asdict(writing(folder)).keys()
    assert {name for name, value in CHANGED.items() if key(**{name: value}) == key()} == {"seed"}
    assert key(temperature=1.0) != key(temperature=1.0, seed=3)  # of greedy answers, there is nothing to seed
    assert len({key(), key(gpu=0), key(digest="c"), key(digest=digest_of_model(folder))}) == 4


def test_what_cannot_write_is_refused(store, tiny_encoder, tiny_llm):
    with pytest.raises(
        UserError, match=r"does not write: it is an encoder, or has no weights of a head; take a causal"
    ):
        store(language_model=str(tiny_encoder))(PROMPTS)
    with pytest.raises(
        UserError, match="a prompt of .* tokens and an answer of 2048 do not fit into the 2048 positions"
    ):
        store(max_new_tokens=2048)(PROMPTS)


@pytest.mark.llm
def test_the_real_model_answers():
    prompts = ["Name a color.", "Hi"]
    answers = AnswerStore(Writing("SmolLM2-135M-Instruct", "float32", 4), -1)(prompts)
    assert all(answer.text and answer.read > 20 and answer.written <= 4 for answer in answers.values())
    assert answers[prompts[1]].text.startswith("Hello")
