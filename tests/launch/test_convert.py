"""`i2vgen convert`, from files to files, and what it refuses."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys

import jax
import numpy as np
import public_standin
import pytest
import torch
from public_standin import draw, file_shapes, unet
from weight_helpers import arrays_of, save_torch, tensors_of

from i2vgen_jax import lora
from i2vgen_jax.interop import lora_files, open_weights
from i2vgen_jax.interop.formats import safetensors_files
from i2vgen_jax.interop.stored import table_of
from i2vgen_jax.models import build
from launch import cli

UNET = "diffusion_pytorch_model.safetensors"


pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """A file for each public U-Net of the original code."""
  folder = tmp_path_factory.mktemp("files")
  for variant in ("released", "image_to_video", "refine"):
    save_torch(folder / f"{variant}.pth", draw(unet(variant), "vgen"))
  return folder


@pytest.fixture
def convert(capsys):
  """Exit status, lines on stdout and lines on stderr."""

  def convert(*argv):
    capsys.readouterr()
    status = cli.main(["convert", *map(str, argv)])
    output = capsys.readouterr()
    return status, output.out.splitlines(), output.err.splitlines()

  return convert


@pytest.fixture
def refuses(convert, tmp_path):
  """The error line; no file may have been written."""

  def refuses(*argv):
    before = sorted(tmp_path.rglob("*"))
    status, _, lines = convert(*argv)
    assert status == 2
    errors = [line for line in lines if "error" in line]
    assert errors == lines[-1:], lines
    assert lines[-1].startswith("i2vgen: error: ")
    assert sorted(tmp_path.rglob("*")) == before
    return lines[-1]

  return refuses


@pytest.fixture
def damaged(files, tmp_path):
  """The released U-Net after a change to its tensors."""

  def damaged(change):
    arrays = torch.load(files / "released.pth")["state_dict"]
    arrays = {key: x.numpy() for key, x in arrays.items()}
    change(arrays)
    save_torch(tmp_path / "unet.pth", arrays)
    return tmp_path / "unet.pth"

  return damaged


# ---- Conversions ----


def test_report(convert, repository, tmp_path):
  status, out, lines = convert(repository, tmp_path / "o", "--to", "orbax")
  assert status == 0
  printed = sorted(tuple(line.split()[:3]) for line in out)
  keys = {
    name: source.tensors.shapes
    for name, source in open_weights(repository).networks.items()
  }
  assert printed == sorted(
    (name, "mapped", key) for name, some in keys.items() for key in some
  )
  summary = f"i2vgen: base (diffusers, released): {len(keys['base'])} mapped, "
  assert (
    f"{summary}0 missing, 0 unexpected, 0 with a wrong shape, 0 ignored"
    in (lines)
  )
  assert any(
    line.startswith("i2vgen: text_encoder (transformers)") for line in lines
  )
  (taken,) = [line for line in lines if line.startswith("i2vgen: choices: ")]
  assert "scaling_factor 0.18125" in taken and "to_clean True" in taken
  assert lines[-1] == f"i2vgen: wrote {tmp_path / 'o'}"


def test_a_lora_is_added(convert, repository, tmp_path):
  shapes = build.abstract_params(unet())
  tree = jax.eval_shape(lambda: lora.init(jax.random.key(0), shapes, 2))
  tree = jax.tree.map(lambda x: np.full(x.shape, 0.1, "f"), tree)
  table = table_of(unet(), "diffusers")
  lora_files.save(tmp_path / "lora", tree, 1.0, table, {})
  options = ["--to", "diffusers", "--lora", f"{tmp_path / 'lora'}:0.5"]
  status, _, lines = convert(repository, tmp_path / "o", *options)
  assert status == 0, lines
  before, after = (
    safetensors_files.read(folder / "unet" / UNET)
    for folder in (repository, tmp_path / "o")
  )
  for key in before.shapes:
    # A·B is 0.1 · 0.1 · 2 everywhere, and half of it is added.
    change = 0.01 if re.search(r"attn[12]\.to_(q|k|v|out\.0)\.w", key) else 0.0
    if "temporal_encoder" in key:
      change = 0.0
    np.testing.assert_allclose(
      after.read(key), before.read(key) + change, rtol=1e-5, atol=1e-6
    )


def test_all_problems_are_reported(convert, damaged, tmp_path):
  def change(arrays):
    arrays["extra.weight"] = arrays.pop("out.0.bias")
    arrays["time_embed.0.bias"] = np.zeros(3, "f")

  file = damaged(change)
  status, out, lines = convert(file, tmp_path / "o", "--to", "orbax")
  assert status == 2
  assert "base  missing     out.0.bias" in out
  assert "base  unexpected  extra.weight" in out
  assert "base  wrong shape time_embed.0.bias: (3,), expected (128,)" in out
  total = len(file_shapes(unet(), "vgen"))
  assert len(out) == total + 1
  # Nothing has been started.
  assert len(lines) == 2
  assert "1 missing, 1 unexpected, 1 with a wrong shape, 0 ignored" in lines[0]
  for part in ("1 missing: out.0.bias", "1 unexpected: extra.weight"):
    assert part in lines[-1]


@pytest.mark.parametrize("relative", [False, True])
def test_orbax(convert, repository, tmp_path, monkeypatch, relative):
  target = tmp_path / "deep" / "ours"
  monkeypatch.chdir(tmp_path)
  given = target.relative_to(tmp_path) if relative else target
  status, *_ = convert(repository, given, "--to=orbax", "--dtype=bfloat16")
  assert status == 0
  assert sorted(path.name for path in target.iterdir()) == [
    "base",
    "image_encoder",
    "text_encoder",
    "tokenizer",
    "vae",
  ]
  found = open_weights(target).networks
  for source in found.values():
    assert set(map(str, source.tensors.dtypes.values())) == {"bfloat16"}


def test_diffusers(convert, files, tmp_path):
  source, target = files / "released.pth", tmp_path / "theirs"
  status, *_ = convert(source, target, "--to=diffusers")
  assert status == 0
  assert {str(p.relative_to(target)) for p in target.rglob("*.*")} == {
    "unet/config.json",
    f"unet/{UNET}",
  }
  written = safetensors_files.read(target / "unet" / UNET)
  assert written.shapes == file_shapes(unet(), "diffusers")


def test_missing_parts_of_a_repository_are_reported(
  convert, repository, tmp_path
):
  shutil.copytree(repository, tmp_path / "src")
  shutil.rmtree(tmp_path / "src" / "tokenizer")
  status, _, lines = convert(tmp_path / "src", tmp_path / "o", "--to=diffusers")
  assert status == 0
  assert lines[-1] == (
    "i2vgen: this is not a whole repository: it lacks tokenizer, scheduler, "
    "model_index.json"
  )
  (tmp_path / "o" / "vae").rename(tmp_path / "vae")
  # What is there can be read again.
  status, _, lines = convert(tmp_path / "o", tmp_path / "p", "--to=orbax")
  assert status == 0
  assert {path.name for path in (tmp_path / "p").iterdir()} == {
    "base",
    "text_encoder",
    "image_encoder",
  }


def test_closed_pipe(files, tmp_path):
  """As with `i2vgen convert ... | head -1`: the conversion continues."""
  read, write = os.pipe()
  os.close(read)
  argv = ["convert", files / "released.pth", tmp_path / "o.pth", "--to=vgen"]
  done = subprocess.run(
    [sys.executable, "-m", "launch.cli", *argv],
    stdout=write,
    stderr=subprocess.PIPE,
    text=True,
  )
  os.close(write)
  assert done.returncode == 0 and "Error" not in done.stderr
  assert (tmp_path / "o.pth").exists()


def test_vgen_holds_only_the_unet(convert, repository, tmp_path):
  target = tmp_path / "unet.pth"
  status, out, lines = convert(repository, target, "--to=vgen")
  assert status == 0
  assert lines[0] == (
    "i2vgen: vgen holds only a U-Net: image_encoder, text_encoder, vae are "
    "left out"
  )
  assert all(line.startswith("base  ") for line in out)
  state = torch.load(target)["state_dict"]
  shapes = {key: tuple(x.shape) for key, x in state.items()}
  assert shapes == file_shapes(unet(), "vgen")


@pytest.mark.parametrize("variant", ["image_to_video", "refine"])
def test_modelscope(convert, files, tmp_path, variant):
  source, target = files / f"{variant}.pth", tmp_path / "a" / "unet.pth"
  status, _, lines = convert(source, target, "--to=modelscope")
  assert status == 0
  assert f"(vgen, {variant})" in lines[0]
  one, other = (torch.load(path)["state_dict"] for path in (source, target))
  assert one.keys() == other.keys()
  assert all(torch.equal(one[key], other[key]) for key in one)


def test_choose(convert, files, tmp_path):
  source, target = files / "released.pth", tmp_path / "ours"
  options = ["--choose", "concat_gain=1", "--choose", "to_clean=true"]
  status, _, lines = convert(source, target, "--to=orbax", *options)
  assert status == 0
  assert any("to_clean True" in line for line in lines)
  config = json.loads((target / "base" / "config.json").read_text())
  assert config["module"]["concat_gain"] == 1.0
  assert config["sampling"]["to_clean"] is True


# ---- Refusals ----


@pytest.mark.parametrize("form", ["orbax", "diffusers", "vgen"])
@pytest.mark.parametrize(
  ("change", "part"),
  [
    (lambda a: a.pop("out.0.bias"), "1 missing: out.0.bias"),
    (lambda a: a.update(x=np.zeros(2, "f")), "1 unexpected: x"),
    (
      lambda a: a.update({"out.0.bias": np.zeros(7, "f")}),
      "out.0.bias is (7,) and should be (32,)",
    ),
    (
      lambda a: a["out.0.bias"].__setitem__(3, np.nan),
      "1 of 32 values of 'out.0.bias' are NaN",
    ),
  ],
)
def test_weights_that_do_not_fit(
  refuses, damaged, tmp_path, form, change, part
):
  file = damaged(change)
  line = refuses(file, tmp_path / "out", f"--to={form}")
  assert part in line and str(file) in line


def test_truncated_file(refuses, repository, tmp_path):
  whole = (repository / "vae" / UNET).read_bytes()
  file = tmp_path / "vae.safetensors"
  file.write_bytes(whole[:-1])
  assert str(file) in refuses(file, tmp_path / "out", "--to=orbax")
  file.write_bytes(whole[:100])
  assert str(file) in refuses(file, tmp_path / "out", "--to=orbax")


class Evil:
  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_pickle(refuses, tmp_path, zipped):
  file, trace = tmp_path / "unet.pth", tmp_path / "ran"
  torch.save(
    {"state_dict": Evil(str(trace))},
    file,
    _use_new_zipfile_serialization=zipped,
  )
  line = refuses(file, tmp_path / "out", "--to=orbax")
  assert "nothing was run" in line
  assert not trace.exists()


def test_stable_diffusion(refuses, tmp_path):
  arrays = {
    "model.diffusion_model.input_blocks.0.0.weight": np.zeros((8, 4, 3, 3)),
    "model.diffusion_model.input_blocks.1.1.proj_in.weight": np.zeros((8, 8)),
  }
  save_torch(tmp_path / "v1-5.ckpt", arrays)
  line = refuses(tmp_path / "v1-5.ckpt", tmp_path / "out", "--to=orbax")
  assert "image U-Net of Stable Diffusion alone" in line


@pytest.mark.parametrize("form", ["orbax", "diffusers", "vgen"])
def test_existing_target(refuses, files, tmp_path, form):
  target = tmp_path / "out"
  (target / "base").mkdir(parents=True)
  line = refuses(files / "released.pth", target, f"--to={form}")
  assert "exists already" in line and str(target) in line


@pytest.mark.parametrize(
  ("variant", "form", "part"),
  [
    ("refine", "vgen", "vgen has no U-Net like refine"),
    ("refine", "diffusers", "diffusers has no U-Net like refine"),
    ("image_to_video", "vgen", "vgen has no U-Net like base"),
    ("released", "modelscope", "modelscope has no U-Net like base"),
  ],
)
def test_variant_that_the_form_lacks(
  refuses, files, tmp_path, variant, form, part
):
  line = refuses(files / f"{variant}.pth", tmp_path / "o", f"--to={form}")
  assert part in line and variant in line


@pytest.mark.parametrize("form", ["vgen", "modelscope"])
def test_no_unet(refuses, repository, tmp_path, form):
  line = refuses(repository / "vae", tmp_path / "out", f"--to={form}")
  assert f"a file of {form} holds one U-Net, and the source has 0" in line


def test_overflow_of_the_dtype(refuses, damaged, tmp_path):
  def change(arrays):
    arrays["out.2.bias"][1] = 1e6

  file = damaged(change)
  line = refuses(file, tmp_path / "o", "--to=orbax", "--dtype=float16")
  assert "1 of 4 values of 'out.2.bias'" in line and "as float16" in line


@pytest.mark.parametrize("dtype", [np.int8, np.bool_])
def test_quantised_weights(refuses, damaged, tmp_path, dtype):
  def change(arrays):
    arrays["out.2.bias"] = arrays["out.2.bias"].astype(dtype)

  line = refuses(damaged(change), tmp_path / "o", "--to=orbax")
  assert "'out.2.bias' is" in line


def test_padding_outside_of_the_vocabulary(refuses, repository, tmp_path):
  options = ["--to=diffusers", "--choose=pad_token_id=99999"]
  line = refuses(repository, tmp_path / "o", *options)
  assert "pad_token_id 99999 is not one of the" in line


def test_groups_that_vgen_lacks(refuses, repository, tmp_path):
  copied = shutil.copytree(repository / "unet", tmp_path / "unet")
  public_standin.rewrite_json(
    copied / "config.json", lambda c: c.update(norm_num_groups=16)
  )
  line = refuses(copied, tmp_path / "out.pth", "--to=vgen")
  assert "vgen has norm_groups 32" in line and "has 16" in line


@pytest.mark.parametrize(
  ("options", "part"),
  [
    (["--choose", "gain=2"], "unknown choice 'gain'; known are concat_gain"),
    (["--choose", "to_clean=perhaps"], "cannot be 'perhaps'"),
    (["--choose", "to_clean"], "--choose"),
    (["--dtype", "int8"], "--dtype"),
    (["--to", "onnx"], "--to"),
  ],
)
def test_bad_option(refuses, files, tmp_path, options, part):
  source = files / "released.pth"
  options = options if "--to" in options else [*options, "--to=orbax"]
  assert part in refuses(source, tmp_path / "out", *options)


def test_absent_source(refuses, tmp_path):
  line = refuses(tmp_path / "absent", tmp_path / "out", "--to=orbax")
  assert f"no weights at {tmp_path / 'absent'}" in line


def test_missing_arguments(refuses, files, tmp_path):
  assert "--to" in refuses(files / "released.pth", tmp_path / "out")


@pytest.mark.parametrize("form", ["orbax", "diffusers", "vgen"])
def test_target_below_a_file(refuses, files, tmp_path, form):
  (tmp_path / "file").write_text("")
  target = tmp_path / "file" / "out"
  line = refuses(files / "released.pth", target, f"--to={form}")
  assert "cannot write" in line


@pytest.mark.parametrize("form", ["orbax", "diffusers", "vgen"])
def test_full_disk(refuses, files, tmp_path, form):
  """Simulated: no file may grow beyond 100 kB."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
  try:
    line = refuses(files / "released.pth", tmp_path / "out", f"--to={form}")
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert f"cannot write {tmp_path / 'out'}" in line
  assert "File too large" in line
  assert not (tmp_path / "out").exists()


# ---- `i2vgen sample` over such weights ----


def test_sample_reports_the_choices(run, convert, repository, photos, tmp_path):
  converted = tmp_path / "ours"
  status, *_ = convert(
    repository, converted, "--to=orbax", "--choose=pad_token_id=0"
  )
  assert status == 0
  last = public_standin.VOCABULARY - 1
  for weights, pad in ((repository, last), (converted, 0)):
    output = tmp_path / f"{pad}.mp4"
    status, lines = run(
      "sample",
      f"--weights={weights}",
      f"--image={photos['square']}",
      "--prompt=a kite",
      f"--output={output}",
      "--stage=base",
      *("--size=16x16", "--num-frames=1", "--steps=1", "--guidance-scale=1"),
      "--no-progress",
    )
    assert status == 0
    assert lines[0] == (
      f"i2vgen: weights take scaling_factor 0.18125, pad_token_id {pad}, "
      "to_clean True, black_edge False, concat_gain 1.0"
    )
    report = json.loads(output.with_suffix(".json").read_text())
    assert report["weights"]["choices"]["pad_token_id"] == pad
    assert report["weights"]["folder"] == str(weights)


def test_sample_refuses_incomplete_weights(
  refused, repository, photos, tmp_path
):
  copied = shutil.copytree(repository, tmp_path / "copied")
  arrays = arrays_of(safetensors_files.read(copied / "unet" / UNET))
  del arrays["conv_norm_out.bias"]
  safetensors_files.write(copied / "unet" / UNET, tensors_of(arrays))
  line = refused(
    "sample",
    f"--weights={copied}",
    f"--image={photos['square']}",
    "--prompt=a kite",
    f"--output={tmp_path / 'out.mp4'}",
  )
  assert "1 missing: conv_norm_out.bias" in line
