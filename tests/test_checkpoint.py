"""Checkpoints: where they are found, what config.json may say, who their encoder is, what does not load."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from checkpoint_edits import Json, as_transformers_5, copy_of, edit
from conftest import MAX_PIXELS, TEXT_LAYERS, MakeCheckpoint
from mlx.utils import tree_flatten
from store_samples import new_store
from tiny_checkpoint import Tiny

from cache.base.errors import CheckpointError, InputError
from cache.base.home import Home
from cache.key import EncoderSpec
from cache.pixel_index import PixelIndex
from checkpoint import folder as folder_module
from checkpoint import identity
from checkpoint.config import read_checkpoint, tensor_names
from checkpoint.family import LayerState
from checkpoint.folder import DEFAULT_MODEL, SMALL_MODEL, default_model, find_checkpoint
from checkpoint.identity import encoder_spec, lowest_vision_bits
from checkpoint.loading import cast, load_model


def _spec(path: Path, home: Path, max_pixels: int | None = None) -> EncoderSpec:
    with PixelIndex(Home(home)) as index:
        return encoder_spec(find_checkpoint(str(path), print), index, max_pixels)


def _id(path: Path, home: Path) -> str:
    return _spec(path, home).encoder_id.hex


def _parameters(path: Path) -> dict[str, Any]:
    flat: Any = tree_flatten(load_model(find_checkpoint(str(path), print)).parameters())
    return dict(flat)


# --- where it is


def test_the_default_model_is_the_users_else_the_demos_else_a_hub_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEEONCE_MODEL", raising=False)
    monkeypatch.setattr(folder_module, "memory_bytes", lambda: 16 * 10**9)
    assert (default_model("demo"), default_model("mine-1234")) == ("demo", DEFAULT_MODEL)
    monkeypatch.setattr(folder_module, "memory_bytes", lambda: 8 * 10**9)
    assert (default_model("demo"), default_model("mine-1234")) == ("demo", SMALL_MODEL)
    monkeypatch.setenv("SEEONCE_MODEL", "/models/mine")
    assert default_model("demo") == default_model("mine-1234") == "/models/mine"


def test_a_folder_is_found_by_a_relative_path_and_through_a_link(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a link").symlink_to(plain)
    monkeypatch.chdir(tmp_path)
    found = find_checkpoint("a link", print)
    assert (found.path, found.revision) == (plain.resolve(), "")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at all", "~/no such model", "one-word", "a/b/c", ""])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"No model folder at .* give a folder with config\.json"):
        find_checkpoint(name, print)


def test_a_hub_id_is_found_offline_with_its_revision(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "hub" / "snapshots" / ("c0ffee" * 6 + "beef")
    copy_of(plain, snapshot)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(snapshot))
    found = find_checkpoint("someone/Qwen3-VL-tiny", print)
    assert (found.name, found.revision) == ("someone/Qwen3-VL-tiny", snapshot.name)


def test_an_unknown_hub_id_without_a_network_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"could not be downloaded .* --model PATH or SEEONCE_MODEL"):
        find_checkpoint("nobody/no-such-model", print)


# --- what config.json says


def test_shapes_are_read(plain: Path) -> None:
    config = read_checkpoint(plain)
    assert (config.architecture, config.vision.depth, len(config.text.layers)) == ("qwen3_vl", 4, 3)
    assert config.vision.deepstack_visual_indexes == (0, 1, 2)
    assert config.text.max_context == 4096
    assert not config.rewritten


@pytest.mark.parametrize("name", ["plain", "moe", "qwen3_5", "qwen3_5_moe"])
def test_what_transformers_5_writes_loads_as_the_same_model(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(name)
    want = _parameters(path)
    got = _parameters(as_transformers_5(copy_of(path, tmp_path / "five")))
    assert got.keys() == want.keys()
    assert all(bool(mx.array_equal(got[key], want[key])) for key in want)


@pytest.mark.parametrize("name", ["plain", "moe", "qwen3_5", "qwen3_5_moe"])
def test_what_transformers_5_writes_has_the_same_encoder(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(name)
    five = as_transformers_5(copy_of(path, tmp_path / "five"))
    assert read_checkpoint(five).rewritten
    assert _id(five, tmp_path) == _id(path, tmp_path)


def test_layers_of_qwen3_5_keep_a_state_of_fixed_size_but_every_fourth(qwen3_5: Path) -> None:
    config = read_checkpoint(qwen3_5)
    assert [layer.is_recurrent for layer in config.text.layers] == [True, True, True, False]
    # of one row: 3 inputs of 256 channels, 4 heads of 32 x 32; of one token: 2 heads of keys and values
    assert config.text.layers[0] == LayerState(num_window=3 * 256, num_recurrent=4 * 32 * 32)
    assert config.text.layers[3] == LayerState(num_per_token=2 * 2 * 16)
    assert config.vision.deepstack_visual_indexes == ()


@pytest.mark.parametrize(
    "kinds",
    [
        ["linear_attention"] * 4,
        ["full_attention"] + ["linear_attention"] * 3,
        [],
        ["linear_attention", "sliding_attention", "linear_attention", "full_attention"],
    ],
)
def test_layers_of_other_kinds_or_in_another_order_than_mlx_vlm_has_them_are_refused(
    kinds: list[str], qwen3_5: Path, tmp_path: Path
) -> None:
    odd = edit(
        copy_of(qwen3_5, tmp_path / "m"), "config.json", lambda c: c["text_config"].update(layer_types=kinds)
    )
    with pytest.raises(CheckpointError, match=r"^A Qwen3.5 with .* is not supported"):
        read_checkpoint(odd)


def test_both_layouts_of_qwen3_5_and_its_4_bit_text_have_one_encoder(
    qwen3_5: Path, checkpoint_of: MakeCheckpoint, tmp_path: Path
) -> None:
    others = (Tiny(layout="mlx"), Tiny(text_bits=4))
    for other in others:
        path = checkpoint_of(replace(other, max_pixels=MAX_PIXELS, family="qwen3_5"))
        assert _id(path, tmp_path) == _id(qwen3_5, tmp_path)
    spec = _spec(qwen3_5, tmp_path)
    assert (spec.architecture, spec.num_layers) == ("qwen3_5", 1)


def test_weights_that_a_checkpoint_keeps_in_float32_stay_so_beside_others(
    checkpoint_of: MakeCheckpoint, tmp_path: Path
) -> None:
    tiny = Tiny(max_pixels=MAX_PIXELS, family="qwen3_5", dtype="bfloat16")
    path, names = copy_of(checkpoint_of(tiny), tmp_path / "m"), (".A_log", "linear_attn.norm.weight")
    weights: Any = mx.load(str(path / "model.safetensors"))
    kept = {name: value.astype(mx.float32) for name, value in weights.items() if name.endswith(names)}
    mx.save_safetensors(str(path / "model.safetensors"), weights | kept, {"format": "mlx"})
    model = load_model(find_checkpoint(str(path), print)).language_model
    cast(model, "bfloat16")
    flat: Any = tree_flatten(model.parameters())
    dtypes = {(name.endswith(names), value.dtype) for name, value in flat}
    assert dtypes == {(True, mx.float32), (False, mx.bfloat16)}


def test_a_vision_config_of_another_kind_is_not_renamed(plain: Path, tmp_path: Path) -> None:
    other = edit(
        copy_of(plain, tmp_path / "other"),
        "config.json",
        lambda config: config["vision_config"].update(model_type="siglip"),
    )
    with pytest.raises(CheckpointError, match="do not load as qwen3_vl"):
        load_model(find_checkpoint(str(other), print))


def test_embeddings_tied_by_both_flags_stay_tied(checkpoint_of: MakeCheckpoint) -> None:
    tied = checkpoint_of(Tiny(max_pixels=MAX_PIXELS, tied=True))
    assert not any("lm_head" in name for name in _parameters(tied))


def test_another_kind_of_model_is_named_with_what_is_supported(plain: Path, tmp_path: Path) -> None:
    other = edit(copy_of(plain, tmp_path / "m"), "config.json", lambda c: c.update(model_type="llama"))
    with pytest.raises(CheckpointError, match=r"'llama' checkpoint; supported are Qwen3-VL"):
        read_checkpoint(other)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '"qwen3_vl"', "\x00\x01", '{"model_type": "qwen3_vl"}']
)
def test_a_broken_config_is_refused_in_one_line(content: str, plain: Path, tmp_path: Path) -> None:
    broken = copy_of(plain, tmp_path / "m")
    (broken / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json.*download the checkpoint again"):
        read_checkpoint(broken)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("vision_config", "depth", None),
        ("vision_config", "deepstack_visual_indexes", "1, 2"),
        ("vision_config", "patch_size", "sixteen"),
        ("text_config", "hidden_size", []),
        ("text_config", "max_position_embeddings", None),
    ],
)
def test_a_garbled_field_is_refused(
    section: str, field: str, value: object, plain: Path, tmp_path: Path
) -> None:
    broken = copy_of(plain, tmp_path / "m")
    edit(broken, "config.json", lambda config: config[section].update({field: value}))
    with pytest.raises(CheckpointError, match="lacks or garbles a field of qwen3_vl"):
        read_checkpoint(broken)


# --- who the encoder is


def test_layouts_and_language_models_share_an_encoder(
    plain: Path, mlx_layout: Path, text_4bit: Path, tmp_path: Path
) -> None:
    assert _id(plain, tmp_path) == _id(mlx_layout, tmp_path) == _id(text_4bit, tmp_path)


def test_other_vision_weights_are_another_encoder(
    plain: Path, vision_4bit: Path, checkpoint_of: MakeCheckpoint, tmp_path: Path
) -> None:
    seeded = checkpoint_of(Tiny(max_pixels=MAX_PIXELS, seed=1))
    assert len({_id(path, tmp_path) for path in (plain, vision_4bit, seeded)}) == 3


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("config.json", lambda c: c["vision_config"].update(num_heads=2)),
        ("config.json", lambda c: c["vision_config"].update(deepstack_visual_indexes=[2, 1, 0])),
        ("config.json", lambda c: c["vision_config"].update(deepstack_visual_indexes=[0, 1, 3])),
        ("preprocessor_config.json", lambda c: c.update(max_pixels=MAX_PIXELS // 2)),
        ("preprocessor_config.json", lambda c: c.update(min_pixels=4096)),
        ("preprocessor_config.json", lambda c: c.update(image_mean=[0.5, 0.5, 0.4])),
        ("preprocessor_config.json", lambda c: c.update(image_std=[0.4, 0.5, 0.5])),
        ("preprocessor_config.json", lambda c: c.update(rescale_factor=1 / 127.5)),
    ],
)
def test_what_changes_results_changes_the_encoder_id(
    name: str, change: Callable[[Json], object], plain: Path, tmp_path: Path
) -> None:
    changed = edit(copy_of(plain, tmp_path / "m"), name, change)
    assert _id(changed, tmp_path) != _id(plain, tmp_path)


def test_the_compute_type_and_the_pixel_limit_change_the_encoder_id(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEEONCE_DTYPE", raising=False)
    ids = {_id(plain, tmp_path), _spec(plain, tmp_path, 4096).encoder_id.hex}
    monkeypatch.setenv("SEEONCE_DTYPE", "bfloat16")
    assert len({*ids, _id(plain, tmp_path)}) == 3


def test_a_pixel_limit_above_the_checkpoints_own_changes_nothing(plain: Path, tmp_path: Path) -> None:
    assert _spec(plain, tmp_path, MAX_PIXELS * 9) == _spec(plain, tmp_path)


@pytest.mark.parametrize("max_pixels", [0, -5, 1023])
def test_a_pixel_limit_below_one_token_is_refused(max_pixels: int, plain: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one merged token alone covers 1024 pixels"):
        _spec(plain, tmp_path, max_pixels)


def test_an_unknown_compute_type_is_refused(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEEONCE_DTYPE", "int8")
    with pytest.raises(CheckpointError, match="SEEONCE_DTYPE is 'int8'; expected one of float32"):
        _spec(plain, tmp_path)


def test_the_lowest_bits_of_a_vision_tower_are_known(plain: Path, vision_4bit: Path, tmp_path: Path) -> None:
    assert lowest_vision_bits(_spec(plain, tmp_path)) is None
    assert lowest_vision_bits(_spec(vision_4bit, tmp_path)) == 4


def test_an_identity_is_worked_out_once(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = new_store(tmp_path).home.path  # what is remembered lies in the store
    first = _spec(plain, home)
    monkeypatch.setattr(identity, "_resolve", lambda *_: pytest.fail("hashed again"))
    assert _spec(plain, home) == first


def test_other_weights_under_the_same_name_are_noticed(
    plain: Path, checkpoint_of: MakeCheckpoint, tmp_path: Path
) -> None:
    home = new_store(tmp_path).home.path
    path = copy_of(plain, tmp_path / "m")
    before = _id(path, home)
    other = checkpoint_of(Tiny(max_pixels=MAX_PIXELS, text_layers=TEXT_LAYERS, seed=1))
    shutil.copyfile(other / "model.safetensors", path / "model.safetensors")
    assert _id(path, home) == _id(other, home) != before


def test_a_remembered_identity_that_is_garbled_is_worked_out_again(plain: Path, tmp_path: Path) -> None:
    home = new_store(tmp_path).home
    want = _spec(plain, home.path)
    with PixelIndex(home) as index:
        index.put_note(identity._encoder_note(plain.resolve()), "{}")
    assert _spec(plain, home.path) == want


# --- what does not load


def test_a_folder_without_weights_is_refused(plain: Path, tmp_path: Path) -> None:
    path = copy_of(plain, tmp_path / "m")
    (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has a config\.json but no \*\.safetensors"):
        _spec(path, tmp_path)


@pytest.mark.parametrize("num_bytes", [0, 5, 100, 30_000, -1])
def test_weights_that_are_cut_short_are_refused(num_bytes: int, plain: Path, tmp_path: Path) -> None:
    path = copy_of(plain, tmp_path / "m")
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[:num_bytes])
    with pytest.raises(CheckpointError, match="download the checkpoint again"):
        _spec(path, tmp_path)


def test_weights_of_other_sizes_than_the_config_says_are_refused(
    plain: Path, checkpoint_of: MakeCheckpoint, tmp_path: Path
) -> None:
    path = copy_of(plain, tmp_path / "m")
    other = checkpoint_of(replace(Tiny(max_pixels=MAX_PIXELS), vision_depth=5))
    shutil.copyfile(other / "model.safetensors", path / "model.safetensors")
    with pytest.raises(CheckpointError, match="do not load as qwen3_vl"):
        _spec(path, tmp_path)


def test_names_are_those_in_the_file(plain: Path) -> None:
    assert {"lm_head.weight", "model.visual.patch_embed.proj.weight"} < set(tensor_names(plain))


@pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="other backends compute these")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_experts_that_a_cpu_cannot_compute_are_refused_in_one_line(moe: Path, dtype: str) -> None:
    model = load_model(find_checkpoint(str(moe), print))
    with pytest.raises(CheckpointError, match=f"not in {dtype}: .*SEEONCE_DTYPE=float32") as refused:
        cast(model.language_model, dtype)
    assert "\n" not in str(refused.value)
    cast(model.vision_tower, dtype)


@pytest.mark.parametrize("bits", [None, 4])
def test_experts_in_float32_or_packed_are_cast(checkpoint_of: MakeCheckpoint, bits: int | None) -> None:
    path = checkpoint_of(Tiny(max_pixels=MAX_PIXELS, moe=True, text_bits=bits))
    model = load_model(find_checkpoint(str(path), print))
    cast(model.language_model, "bfloat16" if bits else "float32")
