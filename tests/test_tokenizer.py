"""Captions to ids: spelled out by hand on a small vocabulary."""

import importlib
import json

import numpy as np
import pytest
import transformers

from i2vgen_jax import tokenizer
from i2vgen_jax.errors import InputError

# Left-to-right merging of one word must not undo another: "red" owns the
# pair (r, e) that "green" holds in its middle; "coco" repeats its own pair.
WORDS = ["red", "green", "greens", "coco", "cococo", "left", "a", "été"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tokenizer")
  tokenizer.build_vocabulary(WORDS, folder)
  return folder


@pytest.fixture(scope="module")
def vocab(folder):
  return json.loads((folder / "vocab.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def tok(folder):
  return tokenizer.Tokenizer.load(folder, max_length=12)


def spoken(tok, vocab, text):
  """The tokens of a text between BOS and EOS, as strings."""
  names = {i: token for token, i in vocab.items()}
  ids = [names[int(i)] for i in tok([text]).ids[0]]
  assert ids[0] == "<|startoftext|>"
  return ids[1 : ids.index("<|endoftext|>")]


def test_every_word_is_one_token_in_any_case(tok, vocab):
  for word in WORDS:
    assert spoken(tok, vocab, word) == [spoken(tok, vocab, word.upper())[0]]
    assert len(spoken(tok, vocab, f"a {word}, a {word}")) == 5


def test_unknown_words_are_spelled(tok, vocab):
  # "co" is a merge of "coco"; the rest has no merges.
  assert spoken(tok, vocab, "cox") == ["co", "x</w>"]
  # U+732B is the UTF-8 bytes E7 8C AB. The first and the last are printable
  # as Latin-1 characters; 8C is not, and is number 46 of those that are not
  # (33 controls and the blank, DEL, then 80 to 8B), which begin at U+0100.
  assert spoken(tok, vocab, "猫") == ["ç", chr(0x100 + 33 + 1 + 12), "«</w>"]


def test_layout_of_the_vocabulary(vocab):
  """Ids that the public vocabulary has too, and EOS on top."""
  assert vocab["!"] == 0 and vocab["!</w>"] == 256
  assert vocab["a"] == 64 and vocab["a</w>"] == 320
  assert sorted(vocab.values()) == list(range(len(vocab)))
  assert vocab["<|startoftext|>"] == len(vocab) - 2
  assert vocab["<|endoftext|>"] == len(vocab) - 1


def test_padding_is_zero_and_a_real_exclamation_mark_is_not(tok, vocab):
  bos, eos = vocab["<|startoftext|>"], vocab["<|endoftext|>"]
  tokens = tok(["red!", ""])
  assert tokens.ids.dtype == np.int32
  assert tokens.ids.tolist() == [
    [bos, vocab["red</w>"], 256, eos] + [0] * 8,
    [bos, eos] + [0] * 10,
  ]
  assert tokens.cut == (0, 0)


def test_padding_can_be_the_end_token(folder, vocab):
  """As the Hub's tokenizer of the public variant has it."""
  eos = vocab["<|endoftext|>"]
  ids = tokenizer.Tokenizer.load(folder, 5, pad_token_id=eos)(["a"]).ids
  assert ids[0].tolist() == [eos - 1, 320, eos, eos, eos]


def test_long_text_is_cut_before_eos_and_cut_tokens_are_counted(tok, vocab):
  tokens = tok(["a " * 10, "a " * 11, "a " * 200])
  eos = vocab["<|endoftext|>"]
  assert tokens.ids.shape == (3, 12)
  assert (tokens.ids[:, -1] == eos).all()
  assert (tokens.ids[:, 1:-1] == 320).all()
  assert tokens.cut == (0, 1, 190)


@pytest.mark.parametrize(
  ("text", "problems"),
  [
    ("a red coco, left; GREENS", []),
    ("", []),
    ("a cox left 猫 cox", ["the words cox, 猫; use other words"]),
    (
      "red &amp; " + "a " * 7 + "left cococo, green a",
      ["its last 4 tokens were cut: cococo, green a"],
    ),
    # Two tokens of the last word are left.
    ("a " * 8 + "coxx", ["tokens were cut: coxx", "words coxx; use"]),
  ],
)
def test_words_that_are_cut_or_unknown_are_named(tok, text, problems):
  found = tok.problems(text)
  assert len(found) == len(problems)
  for message, part in zip(found, problems, strict=True):
    assert part in message


def test_a_vocabulary_of_pieces_of_words_knows_every_word(folder, tmp_path):
  vocab, merges = tokenizer.read_vocabulary(folder)
  for pieces in ([], [*merges, ("i", "n")]):
    more = {"".join(pair): len(vocab) + 9 for pair in pieces}
    end = {"<|endoftext|>": len(vocab) + 99}
    tokenizer.write_vocabulary(tmp_path, more | vocab | end, pieces)
    tok = tokenizer.Tokenizer.load(tmp_path)
    assert tok.problems("an unknown word") == []


@pytest.mark.parametrize(
  ("dirty", "cleaned"),
  [
    ("  a\t red\n\nleft ", "a red left"),
    ("red &amp; green", "red & green"),
    ("red &amp;amp; green", "red & green"),
    ("&lt;red&gt;", "<red>"),
    ("ﬁsh", "fish"),
    ("\uff46\uff55\uff4c\uff4c", "full"),
    ("Ã©tÃ©", "été"),
    ("\u3000 ", ""),
  ],
)
def test_cleaning(dirty, cleaned):
  assert tokenizer.clean(dirty) == cleaned


def test_cleaning_happens_before_the_encoding(tok):
  dirty, cleaned = tok([" RED &amp;amp; ﬁsh", "red & fish"]).ids
  np.testing.assert_array_equal(dirty, cleaned)


def test_other_tools_read_the_folder(folder, tok):
  other = transformers.CLIPTokenizer.from_pretrained(folder)
  text = "a green coco, a red 猫!"
  ours = tok([text]).ids[0]
  theirs = other(text)["input_ids"]
  assert ours[: len(theirs)].tolist() == theirs
  assert other.model_max_length == 77


def test_vocabulary_depends_only_on_the_set_of_words(folder, tmp_path):
  tokenizer.build_vocabulary([*reversed(WORDS), "Red", "coco"], tmp_path)
  names = {
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
  }
  assert {path.name for path in tmp_path.iterdir()} == names
  for name in names:
    assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("word", ["two words", "x1", "don't", ""])
def test_words_that_clip_would_split_are_refused(word, tmp_path):
  with pytest.raises(InputError, match="cannot be one token"):
    tokenizer.build_vocabulary([word], tmp_path)
  assert not list(tmp_path.iterdir())


def damage(folder, vocab):
  (folder / "merges.txt").write_text("#version: 0.2\n", "utf-8")
  (folder / "vocab.json").write_text(json.dumps(vocab), "utf-8")


def test_a_two_token_vocabulary_is_refused(tmp_path):
  damage(tmp_path, {"<|startoftext|>": 0, "<|endoftext|>": 1})
  with pytest.raises(InputError, match="lacks 512 tokens"):
    tokenizer.Tokenizer.load(tmp_path)


def test_a_vocabulary_with_other_merges_is_refused(folder, tmp_path, vocab):
  damage(tmp_path, vocab)
  (tmp_path / "merges.txt").write_text("x y\n", "utf-8")
  with pytest.raises(InputError, match="lacks 1 tokens, 'xy'"):
    tokenizer.Tokenizer.load(tmp_path)


def test_a_vocabulary_with_another_largest_id_is_refused(tmp_path, vocab):
  damage(tmp_path, {**vocab, "late": len(vocab)})
  with pytest.raises(InputError, match="not the largest id"):
    tokenizer.Tokenizer.load(tmp_path)


def test_a_vocabulary_that_transformers_drops_is_refused(folder, monkeypatch):
  """What transformers 5 does with a keyword that it does not know."""
  real = importlib.import_module("transformers").CLIPTokenizer
  monkeypatch.setattr("transformers.CLIPTokenizer", lambda **_: real())
  with pytest.raises(InputError, match="kept 2 of the"):
    tokenizer.Tokenizer.load(folder)


@pytest.mark.parametrize("text", [None, "{", "[1]"])
def test_missing_and_damaged_files_are_one_clear_line(text, tmp_path):
  if text is not None:
    (tmp_path / "vocab.json").write_text(text, "utf-8")
    (tmp_path / "merges.txt").write_text("", "utf-8")
  with pytest.raises(InputError, match=r"vocab\.json") as caught:
    tokenizer.Tokenizer.load(tmp_path)
  assert "\n" not in str(caught.value)
