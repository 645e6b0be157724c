"""Weights come out of PyTorch's files as they went in, and nothing else comes out of them."""

import collections
import json
import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from maskdino_jax.checkpoints import torch_files
from tests.checkpoints import fake_torch
from tests.checkpoints.fake_torch import WRITERS, Storage, Tensor, tensor

GRID = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture(autouse=True)
def _named(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "real_torch" not in request.fixturenames:
        fake_torch.install(monkeypatch)


@pytest.fixture
def real_torch() -> Any:
    return pytest.importorskip("torch")


@pytest.fixture(params=WRITERS)
def write(request: pytest.FixtureRequest) -> Any:
    return WRITERS[request.param]


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int64", "int32", "uint8", "bool", "bfloat16"])
def test_every_type_keeps_its_values(tmp_path: Path, write: Any, dtype: str) -> None:
    values = GRID.astype(getattr(ml_dtypes, dtype, dtype))
    write(tmp_path / "x.pth", {"model": {"a": tensor(values), "scalar": tensor(values[1, 1])}})
    found = torch_files.read(tmp_path / "x.pth")
    assert found["a"].dtype == values.dtype
    assert found["scalar"].shape == ()
    np.testing.assert_array_equal(found["a"], values)
    np.testing.assert_array_equal(found["scalar"], values[1, 1])


def test_views_of_one_storage_follow_their_strides_and_offsets(tmp_path: Path, write: Any) -> None:
    whole = Storage(GRID.ravel())
    views = {
        "whole": Tensor(whole, (3, 4), (4, 1)),
        "transposed": Tensor(whole, (4, 3), (1, 4)),
        "column": Tensor(whole, (3,), (4,), offset=2),
        "last": Tensor(whole, (), (), offset=11),
        "none": Tensor(whole, (0, 4), (4, 1)),
    }
    write(tmp_path / "x.pth", views)
    found = torch_files.read(tmp_path / "x.pth")
    np.testing.assert_array_equal(found["whole"], GRID)
    np.testing.assert_array_equal(found["transposed"], GRID.T)
    np.testing.assert_array_equal(found["column"], [2, 6, 10])
    assert found["last"] == 11
    assert found["none"].shape == (0, 4)


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((13,), (1,), 0),
        ((3, 4), (4, 1), 1),
        ((2,), (12,), 0),
        ((1,), (1,), 12),
        ((2,), (-1,), 1),
        ((1,), (1,), -1),
        ((12, 2), (1, 0), 0),  # repeats elements: more than the storage has
        ((2,), (1, 1), 0),
        ((-1,), (1,), 0),
        ((True,), (1,), 0),
        ((1.0,), (1,), 0),
    ],
)
def test_a_tensor_never_reaches_outside_of_its_storage(
    tmp_path: Path, write: Any, size: Any, stride: Any, offset: Any
) -> None:
    write(tmp_path / "x.pth", {"a": Tensor(Storage(GRID.ravel()), size, stride, offset)})
    with pytest.raises(ValueError, match=r"x\.pth: a tensor of size"):
        torch_files.read(tmp_path / "x.pth")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_numpy_arrays(tmp_path: Path, protocol: int) -> None:
    arrays = {"rows": GRID, "columns": np.asfortranarray(GRID), "big": GRID.astype(">f8"), "scalar": np.array(3.0)}
    content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True, "number": np.float32(1)}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol))
    found = torch_files.read(tmp_path / "x.pkl")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype.isnative
        assert found[name].flags.c_contiguous


def test_arrays_pickled_by_python_2(tmp_path: Path) -> None:
    raw = np.array([1.5, -2.0], "<f4").tobytes()
    content = (
        b"\x80\x02}U\x01wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85"
    )
    content += b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08"
    (tmp_path / "x.pkl").write_bytes(content + raw + b"tbs.")
    np.testing.assert_array_equal(torch_files.read(tmp_path / "x.pkl")["w"], [1.5, -2.0])


def test_parameters_of_2017(tmp_path: Path) -> None:
    """torchvision's first files hold `Parameter(tensor)` made by NEWOBJ, followed by flags as its state."""
    inner = pickle.dumps(tensor(GRID), 4)
    body = inner[inner.index(b"\x95") + 9 : -1]  # without protocol, frame and stop
    content = b"\x80\x04}\x8c\x01wctorch.nn.parameter\nParameter\n" + body + b"\x85\x81(\x88\x89}tbs."
    (tmp_path / "x.pkl").write_bytes(content)
    np.testing.assert_array_equal(torch_files.read(tmp_path / "x.pkl")["w"], GRID)


def test_weights_are_found_beside_other_parts(tmp_path: Path, write: Any) -> None:
    state = collections.OrderedDict(a=tensor(GRID))
    state._metadata = collections.OrderedDict({"": {"version": 1}})  # as nn.Module.state_dict leaves it
    others = {
        "optimizer": {"state": {0: {"exp_avg": tensor(GRID), "step": 7}}, "param_groups": [{"betas": (0.9, 0.999)}]},
        "scheduler": {"milestones": collections.Counter([3, 3, 5]), "last": collections.defaultdict(list, {1: [2]})},
        "iteration": 99,
        "kinds": [{1, 2}, frozenset({3}), 1j, b"raw", b"", np.float64(2.0), None],
        "model_ema": {"a": tensor(-GRID)},
    }
    write(tmp_path / "x.pth", {**others, "model": state})
    np.testing.assert_array_equal(torch_files.read(tmp_path / "x.pth")["a"], GRID)
    write(tmp_path / "x.pth", others)
    np.testing.assert_array_equal(torch_files.read(tmp_path / "x.pth")["a"], -GRID)


def test_a_common_prefix_is_dropped(tmp_path: Path) -> None:
    fake_torch.write_zip(tmp_path / "x.pth", {"module.model.a.b": tensor(GRID), "module.model.c": tensor(GRID)})
    assert list(torch_files.read(tmp_path / "x.pth")) == ["a.b", "c"]
    fake_torch.write_zip(tmp_path / "x.pth", {"module.a": tensor(GRID), "c": tensor(GRID)})
    assert list(torch_files.read(tmp_path / "x.pth")) == ["module.a", "c"]


class _Attack:
    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("place", ["model", "optimizer"])
def test_code_is_refused_and_does_not_run(tmp_path: Path, write: Any, place: str) -> None:
    marker = tmp_path / "ran"
    content = {"model": {"a": tensor(GRID)}, "optimizer": {}}
    content[place] = {"a": tensor(GRID), "b": _Attack(os.system, f"touch {marker}")}
    write(tmp_path / "x.pth", content)
    with pytest.raises(ValueError, match=rf"x\.pth: it asks for {os.system.__module__}\.system"):
        torch_files.read(tmp_path / "x.pth")
    assert not marker.exists()
    pickle.loads(pickle.dumps(content["optimizer" if place == "optimizer" else "model"]["b"]))
    assert marker.exists()  # so the attack was a real one


@pytest.mark.parametrize(
    "wanted", ["builtins eval", "builtins getattr", "builtins bytearray", "numpy load", "torch load"]
)
def test_only_what_weights_need_is_known(tmp_path: Path, wanted: str) -> None:
    (tmp_path / "x.pkl").write_bytes(b"\x80\x02c" + wanted.replace(" ", "\n").encode() + b"\n.")
    with pytest.raises(ValueError, match=f"asks for {wanted.replace(' ', '.')},"):
        torch_files.read(tmp_path / "x.pkl")


@pytest.mark.parametrize(
    "target", ["torch._utils _rebuild_tensor_v2", "torch FloatStorage", "torch.nn.parameter Parameter", "numpy dtype"]
)
def test_a_pickle_cannot_change_the_reader(tmp_path: Path, write: Any, target: str) -> None:
    """The instruction BUILD sets attributes: here on what stands for an allowed class or function."""
    attack = b"\x80\x02c" + target.replace(" ", "\n").encode() + b"\nN}U\x05valueccollections\nOrderedDict\ns\x86b."
    (tmp_path / "x.pkl").write_bytes(attack)
    with pytest.raises(ValueError, match=r"x\.pkl: "):
        torch_files.read(tmp_path / "x.pkl")
    write(tmp_path / "x.pth", {"a": tensor(GRID)})
    np.testing.assert_array_equal(torch_files.read(tmp_path / "x.pth")["a"], GRID)


def test_files_cut_off_anywhere_are_refused(tmp_path: Path, write: Any) -> None:
    path = tmp_path / "x.pth"
    write(path, {"model": {"a": tensor(GRID)}, "optimizer": {"b": tensor(GRID)}})  # also in what is not used
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"x\.pth: .*fetch it again"):
            torch_files.read(path)


def test_parts_of_another_size_or_order_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    for count in (11, 13):
        storage = Storage(GRID.ravel(), count=count)
        fake_torch.write_zip(path, {"a": Tensor(storage, (2,), (1,))})
        with pytest.raises(ValueError, match=f"has 48 bytes where the pickle says {4 * count}"):
            torch_files.read(path)
        fake_torch.write_legacy_file(path, {"a": Tensor(storage, (2,), (1,))})
        with pytest.raises(ValueError, match="another size than the pickle says"):
            torch_files.read(path)
    fake_torch.write_zip(path, {"a": tensor(GRID)}, byteorder="big")
    with pytest.raises(ValueError, match="big-endian"):
        torch_files.read(path)
    fake_torch.write_zip(path, {"a": tensor(GRID)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed"):
        torch_files.read(path)


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>", b"version https://git-lfs", b"\x80\x02]."])
def test_foreign_files_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pth: .*Give a \.pth"):
        torch_files.read(tmp_path / "x.pth")
    with pytest.raises(FileNotFoundError, match=r"y\.pth"):
        torch_files.read(tmp_path / "y.pth")


def test_entries_that_are_no_tensors_are_named(tmp_path: Path, write: Any) -> None:
    write(tmp_path / "x.pth", {"model": {"a": tensor(GRID), "b": [1, 2]}})
    with pytest.raises(ValueError, match="its entry 'b' is a list"):
        torch_files.read(tmp_path / "x.pth")


def _safetensors(path: Path, header: Any, data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    halves = np.array([1.5, -2], ml_dtypes.bfloat16)
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [3, 4], "data_offsets": [4, 52]},
        "b": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]},
    }
    _safetensors(path, header, halves.tobytes() + GRID.tobytes())
    found = torch_files.read(path)
    np.testing.assert_array_equal(found["a"], GRID)
    np.testing.assert_array_equal(found["b"], halves)
    for offsets in ([8, 56], [4, 48], [-4, 44], [52, 4]):
        header["a"]["data_offsets"] = offsets
        _safetensors(path, header, halves.tobytes() + GRID.tobytes())
        with pytest.raises(ValueError, match=r"a of F32 \[3, 4\] lies at"):
            torch_files.read(path)
    path.write_bytes((10**9).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="1000000000 bytes"):
        torch_files.read(path)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    shared = GRID.copy()
    arrays = {
        "one": shared,
        "other": shared,
        "transposed": GRID.T,
        "half": GRID.astype(ml_dtypes.bfloat16),
        "count": np.array(7),
        "empty": np.zeros((0, 3), np.float32),
    }
    torch_files.write_pth(tmp_path / "x.pth", arrays)
    found = torch_files.read(tmp_path / "x.pth")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert np.shares_memory(found["one"], found["other"])
    with pytest.raises(ValueError, match="z is complex64"):
        torch_files.write_pth(tmp_path / "x.pth", {"z": np.zeros(1, np.complex64)})


def test_what_is_written_is_the_pickle_that_pytorch_would_write(tmp_path: Path) -> None:
    """Python's own unpickler makes the calls and the storages of `torch.save` from it."""
    torch_files.write_pth(tmp_path / "x.pth", {"a": GRID, "b": np.array(1.0)})
    calls = []

    class _Plain(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
                return lambda *args: calls.append(args) or args
            return super().find_class(module, name)

        def persistent_load(self, pid: Any) -> Any:
            return pid

    with zipfile.ZipFile(tmp_path / "x.pth") as archive, archive.open("archive/data.pkl") as file:
        content = _Plain(file).load()
    assert list(content["model"]) == ["a", "b"]
    storages = sys.modules["torch"]
    assert calls == [
        (("storage", storages.FloatStorage, "0", "cpu", 12), 0, (3, 4), (4, 1), False, {}),
        (("storage", storages.DoubleStorage, "1", "cpu", 1), 0, (), (), False, {}),
    ]


@pytest.mark.torch
@pytest.mark.parametrize("new_format", [True, False])
def test_pytorch_writes_what_we_read(tmp_path: Path, real_torch: Any, new_format: bool) -> None:
    torch = real_torch
    grid = torch.arange(12.0).reshape(3, 4)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    extra = {
        "t": grid.T,
        "part": grid[1:, 2],
        "half": grid.bfloat16(),
        "count": torch.tensor(3),
        "one": grid,
        "p": model[0].weight,
    }
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    content = {"model": {**model.state_dict(), **extra}, "optimizer": optimizer.state_dict(), "iteration": 5}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=new_format)
    found = torch_files.read(tmp_path / "x.pth")
    assert set(found) == set(content["model"])
    for name, value in content["model"].items():
        np.testing.assert_array_equal(found[name].astype(np.float64), value.detach().double().numpy())
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": content["model"], "__author__": "third_party"}))
    again = torch_files.read(tmp_path / "x.pkl")
    for name in found:
        np.testing.assert_array_equal(again[name], found[name])


@pytest.mark.torch
def test_pytorch_reads_what_we_write(tmp_path: Path, real_torch: Any) -> None:
    shared = GRID.copy()
    arrays = {"one": shared, "other": shared, "count": np.array(7), "half": GRID.astype(np.float16)}
    torch_files.write_pth(tmp_path / "x.pth", {**arrays, "wide": GRID.astype(ml_dtypes.bfloat16)})
    found = real_torch.load(tmp_path / "x.pth", weights_only=True)["model"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name].numpy(), array)
    assert found["wide"].dtype == real_torch.bfloat16
    assert found["one"].data_ptr() == found["other"].data_ptr()
