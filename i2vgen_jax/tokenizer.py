"""Captions to the token ids of CLIP's text tower.

Byte-pair encoding is transformers' CLIPTokenizer; cleaning, cutting and
padding are done here, because the Hub's tokenizer pads with the end token and
the public variants were trained with 0.
"""

import collections
import dataclasses
import html
import json
from pathlib import Path
from typing import Any, NamedTuple

import ftfy
import numpy as np
from jaxtyping import Int32

from i2vgen_jax.errors import InputError, reading
from i2vgen_jax.files import read_json, replacing

_BOS, _EOS, _WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
_ADVICE = (
  "use a folder with the files vocab.json and merges.txt of a CLIP tokenizer, "
  "or its tokenizer.json"
)


class PromptWarning(UserWarning):
  """A network does not see some words of a prompt as they are written."""


class Tokens(NamedTuple):
  """Ids of a batch of texts, and the number of tokens cut from each text."""

  ids: Int32[np.ndarray, "b n"]
  cut: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Converts a text to BOS, its tokens, EOS and padding: `max_length` ids.

  EOS is the largest id of the vocabulary; the text tower finds it by that.
  In a `word_level` vocabulary, as `build_vocabulary` writes it, each known word
  is one token.
  """

  bpe: Any
  max_length: int
  pad_token_id: int
  word_level: bool = False

  @classmethod
  def load(
    cls, folder: str | Path, max_length: int = 77, pad_token_id: int = 0
  ) -> "Tokenizer":
    """Reads the vocabulary of a folder; see `read_vocabulary`.

    Raises:
      InputError: a file is missing or damaged, or the vocabulary is not a
        complete byte-level CLIP vocabulary.
    """
    from transformers import CLIPTokenizer  # Takes seconds to import.

    folder = Path(folder)
    vocab, merges = read_vocabulary(folder)
    _check(vocab, merges, folder)
    # Under any other keyword than these two, transformers 5 silently builds
    # an empty vocabulary.
    bpe = CLIPTokenizer(vocab=vocab, merges=merges)
    if len(bpe) != len(vocab):
      raise InputError(
        f"transformers kept {len(bpe)} of the {len(vocab)} tokens in {folder};"
        " install the transformers version that this project names"
      )
    parts = {part for pair in merges for part in pair}
    merged = {"".join(pair) for pair in merges}
    # The public vocabulary has pieces such as "ing", which end no word and are
    # part of no larger piece.
    word_level = bool(merged) and all(
      token.endswith(_WORD_END) or token in parts for token in merged
    )
    return cls(bpe, max_length, pad_token_id, word_level)

  def __call__(self, texts: list[str]) -> Tokens:
    """Ids of the cleaned texts; tokens that do not fit are cut."""
    room = self.max_length - 2
    rows = [
      self.bpe.encode(clean(text), add_special_tokens=False) for text in texts
    ]
    ids = np.full((len(rows), self.max_length), self.pad_token_id, np.int32)
    for out, row in zip(ids, rows, strict=True):
      row = [self.bpe.bos_token_id, *row[:room], self.bpe.eos_token_id]
      out[: len(row)] = row
    return Tokens(ids, tuple(max(len(row) - room, 0) for row in rows))

  def problems(self, prompt: str) -> list[str]:
    """Messages about the words that are cut, and those that are unknown."""
    text = clean(prompt)
    encoding = self.bpe(text, add_special_tokens=False)
    words = encoding.word_ids()
    problems = []
    if cut := words[self.max_length - 2 :]:
      start, _ = encoding.word_to_chars(cut[0])
      start = text.rfind(" ", 0, start) + 1
      problems.append(
        f"the prompt is too long: its last {len(cut)} tokens were cut: "
        f"{text[start:]}"
      )
    unknown = [
      text[slice(*encoding.word_to_chars(word))]
      for word, count in collections.Counter(words).items()
      if count > 1
    ]
    if self.word_level and unknown:
      problems.append(
        "the vocabulary lacks the words "
        f"{', '.join(dict.fromkeys(unknown))}; use other words"
      )
    return problems


def has_vocabulary(folder: Path) -> bool:
  """Whether `read_vocabulary` finds its files there."""
  return any((folder / n).is_file() for n in ("vocab.json", "tokenizer.json"))


def read_vocabulary(
  folder: Path,
) -> tuple[dict[str, int], list[tuple[str, ...]]]:
  """Ids of the tokens, and the merges in the order of their rank.

  They are read from `vocab.json` and `merges.txt`, or from `tokenizer.json`,
  which transformers 5 writes.

  Raises:
    InputError: a file is missing or damaged.
  """
  with reading(folder, _ADVICE):
    if (folder / "vocab.json").is_file():
      vocab = read_json(folder / "vocab.json", advice=_ADVICE)
      text = (folder / "merges.txt").read_text("utf-8")
      lines = [x for x in text.split("\n") if not x.startswith("#version")]
    else:
      model = read_json(folder / "tokenizer.json", advice=_ADVICE)["model"]
      vocab, lines = model["vocab"], model["merges"]
    if not isinstance(vocab, dict):
      raise ValueError("the vocabulary does not map tokens to ids")
    merges = [
      tuple(line.split() if isinstance(line, str) else line)
      for line in lines
      if line
    ]
  return vocab, merges


def write_vocabulary(
  folder: Path,
  vocab: dict[str, int],
  merges: list[tuple[str, ...]],
  pad_token: str = _EOS,
) -> None:
  """Writes the files of a CLIP tokenizer, which transformers can open."""
  special = {
    "bos_token": _BOS,
    "eos_token": _EOS,
    "unk_token": _EOS,
    "pad_token": pad_token,
  }
  config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
  files = {
    "vocab.json": json.dumps(vocab, ensure_ascii=False, indent=0),
    "merges.txt": "\n".join(["#version: 0.2", *map(" ".join, merges), ""]),
    "tokenizer_config.json": json.dumps(config | special, indent=2),
    "special_tokens_map.json": json.dumps(special, indent=2),
  }
  folder.mkdir(parents=True, exist_ok=True)
  for name, text in files.items():
    with replacing(folder / name) as temporary:
      temporary.write_text(text, "utf-8")


def clean(text: str) -> str:
  """Fixes the encoding, resolves HTML entities and collapses white space."""
  text = html.unescape(html.unescape(ftfy.fix_text(text)))
  return " ".join(text.split())


def build_vocabulary(words: list[str], folder: str | Path) -> None:
  """Writes a small byte-level CLIP vocabulary in which each word is one token.

  Any other text is spelled byte by byte. The order is that of the public
  vocabulary: the 256 byte symbols, the same at the end of a word, the results
  of merges, BOS and EOS.

  Raises:
    InputError: a word has characters other than letters, at which CLIP always
      splits.
  """
  from tokenizers.models import BPE
  from tokenizers.pre_tokenizers import ByteLevel

  for word in words:
    if not word.isalpha():
      raise InputError(
        f"{word!r} cannot be one token; give words made of letters only"
      )
  tokens = _byte_tokens()
  merges: list[tuple[str, str]] = []
  spell = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str

  def pieces(word):
    vocab = {token: i for i, token in enumerate(tokens)}
    bpe = BPE(vocab, merges, end_of_word_suffix=_WORD_END)
    return [t.value for t in bpe.tokenize(spell(word)[0][0])]

  # A merge ranks after all earlier ones, so finished words stay finished.
  for word in sorted({word.lower() for word in words}):
    while len(parts := pieces(word)) > 1:
      merges.append((parts[0], parts[1]))
      joined = parts[0] + parts[1]
      if joined not in tokens:
        tokens.append(joined)
  vocab = {token: i for i, token in enumerate([*tokens, _BOS, _EOS])}
  write_vocabulary(Path(folder), vocab, merges)


def _byte_tokens() -> list[str]:
  from tokenizers.pre_tokenizers import ByteLevel

  symbols = sorted(ByteLevel.alphabet())
  return symbols + [symbol + _WORD_END for symbol in symbols]


def _check(
  vocab: dict[str, int], merges: list[tuple[str, ...]], folder: Path
) -> None:
  """Raises InputError for a vocabulary with gaps.

  A missing token would silently become EOS in the middle of a caption.
  """
  known = set(vocab)
  needed = {_BOS, _EOS, *_byte_tokens()}
  needed |= {part for pair in merges for part in (*pair, "".join(pair))}
  if missing := sorted(needed - known):
    raise InputError(
      f"the vocabulary in {folder} lacks {len(missing)} tokens, {missing[0]!r} "
      "among them; use the vocab.json and merges.txt of one CLIP tokenizer"
    )
  if vocab[_EOS] != max(vocab.values()):
    raise InputError(
      f"{_EOS} is not the largest id in {folder}, by which the text tower "
      "finds the end of the caption; use a CLIP vocabulary"
    )
