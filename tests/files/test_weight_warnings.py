"""NaN and infinite weights are told, and files in which damage would not show."""

import warnings
from random import Random

import pytest
import torch
from torch import nn

import bayesify
from bayesify.cli.commands import main
from bayesify.cli.source import Source
from bayesify.errors import FileRefusedError, UsageError
from bayesify.files.read_weights import read_weights
from bayesify.files.weight_warnings import not_finite
from tests.files.made_files import net, saved


def test_finite_weights_and_masks_are_not_told():
    model = net()
    model.register_buffer("mask", torch.full((2, 2), -torch.inf))
    assert not_finite(model) is None
    assert not_finite(nn.Linear(2, 2, device="meta")) is None
    assert not_finite(nn.LazyLinear(2)) is None


def test_the_first_tensor_and_the_count_are_told():
    model = net()
    with torch.no_grad():
        model[0].weight[0, :2] = torch.tensor([torch.nan, torch.inf])
    assert not_finite(model) == "0.weight has NaN or infinite weights (2 of 12)"
    with torch.no_grad():
        model[3].bias[0] = -torch.inf
    assert not_finite(model) == "0.weight has NaN or infinite weights (2 of 12), the first of 2 tensors that do"


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_numbers_of_every_kind_are_looked_at_and_a_sum_that_overflows_is_no_infinity(dtype):
    largest = torch.full((4,), torch.finfo(dtype).max, dtype=torch.float64).to(dtype)
    model = nn.ParameterDict({"weight": nn.Parameter(largest, requires_grad=False)})
    assert not_finite(model) is None
    with torch.no_grad():
        model["weight"].copy_(torch.tensor([1.0, torch.nan, 1.0, torch.nan]).to(dtype))
    assert not_finite(model) == "weight has NaN or infinite weights (2 of 4)"


def broken() -> nn.Module:
    model = net()
    with torch.no_grad():
        model[0].bias[0] = torch.nan
    return model


def test_opening_a_file_warns_once_at_the_callers_line(file):
    path = file(saved(broken()))
    for call in (bayesify.load, lambda path: Source(str(path)).open()):
        with pytest.warns(UserWarning, match="NaN") as told:
            call(path)
        assert [str(warning.message) for warning in told] == [f"{path}: 0.bias has NaN or infinite weights (1 of 3)"]
    with pytest.warns(UserWarning, match="NaN") as told:
        bayesify.load(path)
    assert told[0].filename == __file__


def test_a_factorys_weights_are_told_by_their_file(file):
    path = file(saved(broken().state_dict()))
    with pytest.warns(UserWarning, match=f"{path}: 0.bias has NaN"):
        Source("tests.files.made_files:net", weights=str(path)).open()


def test_convert_and_predict_warn_of_them(recwarn):
    with pytest.warns(UserWarning, match=r"^convert\(Sequential\): 0.bias has NaN"):
        bayesify.convert(broken())
    model = bayesify.convert(net().eval())
    bayesify.predict(model, torch.randn(3, 4))
    assert not recwarn.list
    with torch.no_grad():
        model[3].weight[0, 0] = torch.inf
    with pytest.warns(UserWarning, match=r"^predict\(Sequential\): 3.weight has NaN or infinite weights \(1 of 6\)$"):
        bayesify.predict(model, torch.randn(3, 4))


def test_the_command_says_it_on_stderr_once(file, capsys):
    path = file(saved(broken()), "m.pt")
    with pytest.raises(SystemExit):
        main(["convert", str(path)])
    assert capsys.readouterr().err.count("NaN or infinite") == 1


FORMATS = {"zip": False, "old": True}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("what", ["module", "weights"])
def test_a_file_without_checksums_is_told_where_its_numbers_are_read(form, what, file, recwarn):
    path = file(saved(net() if what == "module" else net().state_dict(), FORMATS[form]))
    call = bayesify.load if what == "module" else read_weights
    call(path, meta=True)
    assert not recwarn.list
    call(path)
    texts = [str(warning.message) for warning in recwarn.list]
    assert [text.startswith(f"{path}: has no checksums") for text in texts] == [True] * (form == "old")


def test_a_zip_that_was_written_without_checksums_is_told(file):
    torch.serialization.set_crc32_options(False)
    try:
        content = saved(net())
    finally:
        torch.serialization.set_crc32_options(True)
    with pytest.warns(UserWarning, match="no checksums"):
        bayesify.load(file(content))


def test_300_flipped_bits_and_100_cuts_of_an_old_file_are_refused_or_told(file):
    content, random = saved(net().state_dict(), old=True), Random(0)
    expected, different = net().state_dict(), 0
    for _ in range(300):
        place = random.randrange(8 * len(content))
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                found = read_weights(file(bytes(changed))).state_dict
            except (FileRefusedError, UsageError):
                continue
        same = list(found) == list(expected) and all(torch.equal(found[name], expected[name]) for name in expected)
        different += not same
        assert told
    assert different
    for _ in range(100):
        with pytest.raises(FileRefusedError):
            read_weights(file(content[: random.randrange(len(content))]))
