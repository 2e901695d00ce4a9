"""Whatever bytes a model folder holds: it loads, or one line says why not. No traceback, no hang,
no code run from a pickle.
"""

import builtins
import io
import json
import os
import pickle
import struct
import zipfile

import pytest
import torch
from conftest import tiny_config, tiny_encoder, tiny_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minitransformer import Encoder, load_pretrained, save_pretrained
from minitransformer.errors import UserError

pytestmark = pytest.mark.timeout(120)  # a hang is a failure
quick = settings(
    max_examples=80,
    deadline=5000,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.integers(min_value=-(2**70), max_value=2**70),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=8,
)
sizes = st.integers(-3, 70) | st.sampled_from([2**31, 2**63, 10**30])


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """{file name: bytes} of a model that loads."""
    folder = tmp_path_factory.mktemp("good")
    config = tiny_config(num_hidden_layers=1, hidden_size=8, intermediate_size=8)
    save_pretrained(folder, tiny_encoder(config), tiny_tokenizer())
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory, good):
    """outcome(files): "loads" or the line of the UserError of the good model with these files
    instead; None leaves a file out. Any other exception is the test's failure.
    """
    folder = tmp_path_factory.mktemp("fuzz")

    def of(**files):
        for path in folder.iterdir():
            path.unlink()
        for name, content in (good | files).items():
            if content is not None:
                (folder / name).write_bytes(content)
        before = set(os.listdir(folder))
        try:
            encoder, _ = load_pretrained(folder)
        except UserError as error:
            said = str(error)
        else:
            assert isinstance(encoder, Encoder)
            said = "loads"
        assert "\n" not in said
        assert set(os.listdir(folder)) == before
        return said

    assert of() == "loads"
    return of


def mangled(content: bytes, draw) -> bytes:
    """A few bytes changed, left out or put in, or all cut off behind some place."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        where = draw(st.integers(0, max(0, len(data) - 1)))
        how = draw(st.sampled_from(["change", "drop", "insert", "cut", "repeat"]))
        some = draw(st.binary(min_size=1, max_size=8))
        if how == "change":
            data[where : where + len(some)] = some
        elif how == "drop":
            del data[where : where + len(some)]
        elif how == "insert":
            data[where:where] = some
        elif how == "cut":
            del data[where:]
        else:
            data += data[where : where + 100]
    return bytes(data)


# ---- config.json ---------------------------------------------------------------------------------


@quick
@given(
    content=st.binary(max_size=200)
    | st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass"))
    | anything.map(lambda value: json.dumps(value).encode())
)
def test_any_bytes_as_config(outcome, content):
    assert outcome(**{"config.json": content}) != "loads"


@quick
@given(data=st.data())
def test_a_config_with_anything_in_its_places(outcome, good, data):
    config = json.loads(good["config.json"])
    names = st.sampled_from(sorted(config)) | st.text(max_size=8)
    for name, value in data.draw(st.dictionaries(names, anything | sizes, max_size=4)).items():
        config[name] = value
    for name in data.draw(st.lists(st.sampled_from(sorted(config)), max_size=2, unique=True)):
        del config[name]
    outcome(**{"config.json": json.dumps(config).encode()})


@quick
@given(data=st.data())
def test_a_config_with_damaged_bytes(outcome, good, data):
    outcome(**{"config.json": mangled(good["config.json"], data.draw)})


@pytest.mark.parametrize("depth", [10, 1000, 100_000])
@pytest.mark.parametrize(("opens", "closes"), ["[]", ('{"a":', "}")])
def test_a_config_of_great_depth(outcome, depth, opens, closes):
    content = opens * depth + "1" + closes * depth
    assert outcome(**{"config.json": content.encode()}) != "loads"


# ---- safetensors ---------------------------------------------------------------------------------


def safetensors_of(header, body: bytes, size=None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + body


@quick
@given(content=st.binary(max_size=300))
def test_any_bytes_as_weights(outcome, content):
    assert outcome(**{"model.safetensors": content}) != "loads"
    assert outcome(**{"model.safetensors": None, "pytorch_model.bin": content}) != "loads"


@quick
@given(
    header=anything | st.binary(max_size=60),
    body=st.binary(max_size=40),
    size=st.none() | st.integers(0, 2**64 - 1),
)
def test_any_header_of_safetensors(outcome, header, body, size):
    assert outcome(**{"model.safetensors": safetensors_of(header, body, size)}) != "loads"


@quick
@given(data=st.data())
def test_a_header_that_lies_about_its_tensors(outcome, good, data):
    whole = good["model.safetensors"]
    length = struct.unpack("<Q", whole[:8])[0]
    header, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    names = sorted(set(header) - {"__metadata__"})
    for name in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3)):
        entry = header.get(name) or {}
        entry[data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))] = data.draw(
            st.sampled_from(["F32", "F64", "BF16", "I64", "BOOL", "F8_E4M3", "U8"])
            | st.lists(sizes, max_size=3)
            | anything
        )
        header[name] = entry
    if data.draw(st.booleans()):
        header[data.draw(st.text(max_size=10))] = header.pop(data.draw(st.sampled_from(names)), {})
    outcome(**{"model.safetensors": safetensors_of(header, body)})


@quick
@given(data=st.data())
def test_safetensors_with_damaged_bytes(outcome, good, data):
    outcome(**{"model.safetensors": mangled(good["model.safetensors"], data.draw)})


@quick
@given(
    index=anything
    | st.fixed_dictionaries(
        {
            "weight_map": st.dictionaries(
                st.text(max_size=5),
                anything
                | st.sampled_from(
                    [
                        "model.safetensors",
                        "config.json",
                        "../x.bin",
                        "/etc/passwd",
                        ".",
                        "..",
                        "a\0b.bin",
                        "con.safetensors",
                        "x" * 5000 + ".bin",
                    ]
                ),
                max_size=3,
            )
        }
    )
)
def test_any_index(outcome, good, index):
    files = {"model.safetensors": None, "model.safetensors.index.json": json.dumps(index).encode()}
    assert outcome(**files) != "loads"
    files = {"model.safetensors": None, "pytorch_model.bin.index.json": json.dumps(index).encode()}
    assert outcome(**files) != "loads"


# ---- pickles -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bin_file(good):
    content = io.BytesIO()
    tensors = {"embeddings.LayerNorm.weight": torch.ones(8), "x": torch.zeros(2, 3)}
    torch.save(tensors, content)
    return content.getvalue()


@quick
@given(data=st.data())
def test_a_bin_file_with_damaged_bytes(outcome, bin_file, data):
    content = mangled(bin_file, data.draw)
    assert outcome(**{"model.safetensors": None, "pytorch_model.bin": content}) != "loads"


def in_archive(content: bytes, good: bytes) -> bytes:
    """A .bin as torch.save writes it, with another pickle inside."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name.endswith("data.pkl") else old.read(name))
    return made.getvalue()


@quick
@given(
    content=st.binary(max_size=100) | anything.map(lambda value: pickle.dumps(value, 2)),
    archive=st.booleans(),
)
def test_any_pickle(outcome, bin_file, content, archive):
    content = in_archive(content, bin_file) if archive else content
    assert outcome(**{"model.safetensors": None, "pytorch_model.bin": content}) != "loads"


CALLS = [
    ("builtins", "exec"),
    ("builtins", "eval"),
    ("builtins", "open"),
    ("os", "system"),
    ("posix", "system"),
    ("subprocess", "Popen"),
    ("torch", "load"),
    ("torch.hub", "load"),
    ("torch.storage", "_load_from_bytes"),
    ("builtins", "getattr"),
    ("operator", "attrgetter"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("collections", "OrderedDict"),
    ("torch.serialization", "load"),
    ("numpy", "load"),
    ("builtins", "__import__"),
    ("torch.jit", "load"),
    ("importlib", "import_module"),
    ("pickle", "loads"),
]


@quick
@given(
    call=st.sampled_from(CALLS),
    arguments=st.lists(anything, max_size=3).map(tuple),
    opcode=st.sampled_from([b"R", b"\x81", b"b"]),
    archive=st.booleans(),
)
def test_no_pickle_calls_what_it_names(outcome, bin_file, call, arguments, opcode, archive):
    """Each names a function and calls it, builds it as an object, or sets its state."""
    module, name = call
    inner = pickle.dumps(arguments, 2)[2:-1]  # without protocol and stop
    content = b"\x80\x02c" + f"{module}\n{name}\n".encode() + inner + opcode + b"."
    content = in_archive(content, bin_file) if archive else content
    ran = []
    with pytest.MonkeyPatch.context() as patch:
        for dangerous in ("exec", "eval", "__import__"):
            whole = getattr(builtins, dangerous)
            patch.setattr(
                builtins,
                dangerous,
                lambda *a, whole=whole, **k: (
                    ran.append(a) if a and a[0] in arguments else None,
                    whole(*a, **k),
                )[1],
            )
        patch.setattr(os, "system", lambda *a: ran.append(a))
        assert outcome(**{"model.safetensors": None, "pytorch_model.bin": content}) != "loads"
    assert not ran


# ---- tokenizer -----------------------------------------------------------------------------------


@settings(quick, max_examples=25)  # each builds a tokenizer or two
@given(data=st.data())
def test_a_tokenizer_with_damaged_bytes(outcome, good, data):
    name = data.draw(
        st.sampled_from(
            ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"]
        )
    )
    outcome(**{name: mangled(good[name], data.draw)})
    without = {"tokenizer.json": None} if name != "tokenizer.json" else {}
    outcome(**without, **{name: data.draw(st.binary(max_size=100))})


@settings(quick, max_examples=25)  # each builds a tokenizer or two
@given(data=st.data())
def test_a_tokenizer_with_anything_in_its_places(outcome, good, data):
    name = data.draw(
        st.sampled_from(["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
    )
    content = json.loads(good[name])
    keys = st.sampled_from(sorted(content)) | st.sampled_from(["cls_token", "do_lower_case"])
    content |= data.draw(st.dictionaries(keys, anything, max_size=3))
    without = {"tokenizer.json": None} if data.draw(st.booleans()) else {}
    outcome(**{**without, name: json.dumps(content).encode()})
