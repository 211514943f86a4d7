"""Texts that a causal language model writes: prompts -> answers, each stored as soon as its batch is done.

An entry of the store is a folder with `manifest.json`, which says in words what decides an answer besides its prompt,
and `answers.jsonl`, a line an answer, with a digest of the line. Which prompts share a batch changes at most how sums
are rounded; it depends on all prompts that are asked for, so that a writer that was killed goes on with the same ones.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fuxictr_llm.common import cache
from fuxictr_llm.common.files import OTHER_CACHE, digest_of, explain_write_errors, replacing, writable_dir, write_json
from fuxictr_llm.common.progress import Progress
from fuxictr_llm.llm.model_files import digest_of_model, find_language_model
from fuxictr_llm.llm.writer import Answer, Writer, Writing

KIND, FILE = "answers", "answers.jsonl"
# Tokens of a batch, those to be written included.
CPU_TOKENS, GPU_TOKENS = 8_192, 32_768
# Raise it when the same settings would give other answers.
VERSION = 1


class AnswerStore:
    """The answers of one language model with one setting.

    Args:
        writing: how they are written.
        gpu: index of the GPU, -1 for the CPU.

    Attributes:
        path: their file.
        written_here: how many were not there yet.

    Raises:
        UserError: there is no such language model.
    """

    def __init__(self, writing: Writing, gpu: int):
        self.writing, self.gpu, self.written_here = writing, gpu, 0
        self.folder = find_language_model(writing.language_model).absolute()
        self.made_from = _made_from(writing, gpu, digest_of_model(self.folder))
        self.path = cache.entry_dir(KIND, self.made_from) / FILE

    def __call__(self, prompts: Sequence[str]) -> dict[str, Answer]:
        """Prompt -> answer; those that are not stored are written.

        Raises:
            UserError: the language model cannot be loaded or cannot write, a prompt is too long for it, or the store
                cannot be written.
        """
        prompts = list(dict.fromkeys(prompts))
        known = read_answers(self.path)[0]
        if any(prompt not in known for prompt in prompts):
            with cache.entry_locked(KIND, self.made_from), explain_write_errors(self.path, OTHER_CACHE):
                writable_dir(self.path.parent, OTHER_CACHE)
                write_json(self.path.with_name("manifest.json"), {"made_from": self.made_from})
                known = _whole_answers(self.path)
                self._write(prompts, known)
        return {prompt: known[prompt] for prompt in prompts}

    def _write(self, prompts: Sequence[str], known: dict[str, Answer]) -> None:
        """Add the answers that are not known to the file, and to `known`, batch by batch."""
        from fuxictr_llm.llm.language_model import length_batches

        writer = Writer(self.folder, self.writing, self.gpu)
        rows = [writer.tokens(prompt) for prompt in prompts]
        lengths = [len(row) + self.writing.max_new_tokens for row in rows]
        batches = length_batches(lengths, GPU_TOKENS if self.gpu >= 0 else CPU_TOKENS)
        done = sum(prompt in known for prompt in prompts)
        with Progress("writing texts", len(prompts), "texts", done=done) as progress:
            for batch in batches:
                missing = [i for i in batch if prompts[i] not in known]
                if missing:
                    answers = writer([prompts[i] for i in missing], [rows[i] for i in missing])
                    with self.path.open("a", encoding="utf-8") as file:
                        file.writelines(_line(prompt, answer) for prompt, answer in answers.items())
                    known |= answers
                    self.written_here += len(answers)
                    progress.update(len(answers))


def read_answers(path: Path) -> tuple[dict[str, Answer], int]:
    """Prompt -> answer of a file's whole lines, and how many lines are damaged, as a kill leaves one."""
    answers: dict[str, Answer] = {}
    damaged = 0
    if path.is_file():
        with path.open("rb") as file:
            for line in file:
                entry = _parsed(line)
                damaged += entry is None
                answers |= {entry[0]: entry[1]} if entry else {}
    return answers, damaged


def _whole_answers(path: Path) -> dict[str, Answer]:
    """What the file has; it is left with whole lines alone."""
    answers, damaged = read_answers(path)
    if damaged:
        logging.warning("%d lines of %s are damaged: their texts are written anew", damaged, path)
        with replacing(path) as temporary:
            temporary.write_text("".join(_line(*entry) for entry in answers.items()), encoding="utf-8")
    return answers


def _line(prompt: str, answer: Answer) -> str:
    entry = {"prompt": prompt, **asdict(answer)}
    return json.dumps({"sha256": digest_of(entry), **entry}) + "\n"


def _parsed(line: bytes) -> tuple[str, Answer] | None:
    try:
        entry = json.loads(line)
        whole = line.endswith(b"\n") and entry.pop("sha256") == digest_of(entry)
        return (entry.pop("prompt"), Answer(**entry)) if whole else None
    except (ValueError, TypeError, AttributeError, KeyError):
        return None


def _made_from(writing: Writing, gpu: int, model_digest: str) -> dict[str, Any]:
    settings: dict[str, Any] = asdict(writing)
    if not writing.temperature:
        del settings["seed"]
    return {
        **settings,
        "language_model": {"name": writing.language_model, "sha256": model_digest},
        "device": "gpu" if gpu >= 0 else "cpu",  # they round differently
        "code": cache.code_of(__name__),
        "version": VERSION,
    }


def totals(answers: Mapping[str, Answer]) -> dict[str, Any]:
    """Of answers: the tokens read and written, and the seconds that they took, for the stage of a run."""
    return {
        "tokens_read": sum(answer.read for answer in answers.values()),
        "tokens_written": sum(answer.written for answer in answers.values()),
        "made_in": round(sum(answer.seconds for answer in answers.values()), 3),
    }
